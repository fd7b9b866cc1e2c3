"""superres from files to files: what it writes, where, from which settings, and what a second call does."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from medfields.cases import Stacks
from medfields.cli import superres as module
from medfields.cli.superres import parse
from medfields.errors import InputError, UnknownName
from medfields.io import read_field, read_volume, write_volume

FAST = ("--method", "srr-cg", "--steps", "5")


def test_writes_volume_field_run_folder_and_report(medfields, stacks: tuple[Path, Path], tmp_path: Path) -> None:
    said = medfields("superres", *stacks, "-o", "iso.nii.gz", "--spacing", 1, *FAST)
    assert said.code == 0, said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iso.field", "iso.nii.gz", "iso.run"]
    assert {"config.toml", "env.json", "log.jsonl", "summary.json", "report.html"} <= {p.name for p in (tmp_path / "iso.run").iterdir()}
    volume, field = read_volume(tmp_path / "iso.nii.gz"), read_field(tmp_path / "iso.field")
    assert volume.grid.shape == (20, 20, 20) and np.allclose(volume.grid.spacing, 1)
    assert float(volume.data.std()) > 1
    assert np.allclose(field.on(volume.grid).volume().data, volume.data, atol=1e-2)
    assert field.grid is not None and field.grid.same_as(volume.grid)
    assert field.about["method"] == "srr-cg" and field.about["config"]["steps"] == 5
    assert [i["name"] for i in field.about["inputs"]] == ["axial.nii.gz", "sagittal.nii.gz"]
    for word in ("iso.nii.gz", "iso.field", "report.html", "srr-cg:", "20 x 20 x 20"):
        assert word in said.out


def test_second_call_replays_to_the_same_bytes(medfields, stacks: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("superres", *stacks, "-o", "iso.nii.gz", "--spacing", 1, *FAST)
    contents = []
    for _ in range(2):
        said = medfields(*words)
        assert said.code == 0
        contents.append([(tmp_path / name).read_bytes() for name in ("iso.nii.gz", "iso.field")])
    assert contents[0] == contents[1]
    assert "reloaded" in said.err


def test_resolved_configuration_does_the_same_again(medfields, stacks: tuple[Path, Path], tmp_path: Path) -> None:
    assert medfields("superres", *stacks, "-o", "a.nii.gz", "--spacing", 1.5, "--profile", "box", *FAST).code == 0
    config = tomllib.loads((tmp_path / "a.run/config.toml").read_text())
    assert (config["method"], config["spacing"], config["profile"], config["hyper"]["steps"]) == ("srr-cg", 1.5, "box", 5)
    assert medfields("superres", "--config", "a.run/config.toml", "-o", "b.nii.gz").code == 0
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert (tmp_path / "a.run/config.toml").read_text() == (tmp_path / "b.run/config.toml").read_text()


def test_defaults_then_file_then_flags(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('method = "srr-cg"\nspacing = 2.0\n\n[hyper]\nweight = 0.5\nsteps = 7\n')
    options, method = parse(["a.nii.gz", "-o", "x.nii.gz", "--config", str(file), "--steps", "9"])
    assert (options.spacing, method.weight, method.steps, options.profile) == (2.0, 0.5, 9, "gauss")
    options, method = parse(["a.nii.gz", "-o", "x.nii.gz", f"--config={file}", "--spacing", "3"])
    assert (options.spacing, method.steps) == (3.0, 7)
    _, other = parse(["a.nii.gz", "-o", "x.nii.gz", "--config", str(file), "--method", "srr-tv"])
    assert other == type(other)()  # the numbers of one method are not handed to another


def test_a_flag_replaces_the_other_way_to_say_it_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    for text, words, expected in (
        ("spacing = 2.0\n", ["--like", "ref.nii"], (None, "ref.nii")),
        ('like = "ref.nii"\n', ["--spacing=1.5"], (1.5, "")),
        ('like = "ref.nii"\n', [], (None, "ref.nii")),
    ):
        file.write_text(text)
        options, _ = parse(["a.nii.gz", "-o", "x.nii.gz", "--config", str(file), *words])
        assert (options.spacing, options.like) == expected


def test_files_with_mistakes_name_them(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    for text, error, words in (
        ("spacings = 1.0\n", UnknownName, "spacing"),
        ('method = "srr-cg"\n[hyper]\nstep = 1\n', UnknownName, "steps"),
        ('method = "srr-cg"\n[hyper]\nsteps = "many"\n', InputError, "steps"),
        ('task = "ct"\n', InputError, "superres"),
        ("hyper = 3\n", InputError, "hyper"),
    ):
        file.write_text(text)
        with pytest.raises(error, match=words):
            parse(["a.nii.gz", "-o", "x.nii.gz", "--config", str(file)])


def test_several_contrasts_give_several_volumes(medfields, tmp_path: Path) -> None:
    for stack in Stacks.toy(0, contrasts=2).stacks:
        write_volume(stack.volume, tmp_path / f"{stack.contrast}.nii.gz")
    said = medfields("superres", "--contrast", "t1=c0.nii.gz", "t2=c1.nii.gz", "-o", "iso.nii.gz", "--spacing", 1, *FAST)
    assert said.code == 0, said.err
    assert {"iso_t1.nii.gz", "iso_t2.nii.gz", "iso.field", "iso.run"} <= {p.name for p in tmp_path.iterdir()}
    one, two = (read_volume(tmp_path / f"iso_{c}.nii.gz").data for c in ("t1", "t2"))
    assert read_field(tmp_path / "iso.field").channels == 2 and float((one - two).abs().max()) > 1


def test_like_takes_the_grid_of_an_image(medfields, stacks: tuple[Path, Path], tmp_path: Path) -> None:
    grid = Stacks.toy(0).grid.crop((3, 4, 5), (8, 9, 7))
    from medfields.space import Volume

    write_volume(Volume(np.zeros((8, 9, 7)), grid), tmp_path / "ref.nii.gz")
    assert medfields("superres", *stacks, "-o", "iso.nii.gz", "--like", "ref.nii.gz", *FAST).code == 0
    assert read_volume(tmp_path / "iso.nii.gz").grid.same_as(grid)


def test_folder_name_gives_a_dicom_series_and_a_second_call_replays_it(medfields, stacks: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("superres", stacks[0], "-o", "out/", "--spacing", 2, *FAST)
    volumes = []
    for _ in range(2):
        said = medfields(*words)
        assert said.code == 0, said.err
        volumes.append(read_volume(tmp_path / "out"))
    assert "reloaded" in said.err and volumes[0].grid.shape == (10, 10, 10) and (volumes[0].data == volumes[1].data).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.field", "out.run"]
    (tmp_path / "out/notes.txt").write_text("precious")
    before = sorted((tmp_path / "out").iterdir())
    said = medfields(*words)
    assert said.code == 5 and "already holds files" in said.err and sorted((tmp_path / "out").iterdir()) == before
    (tmp_path / "out/notes.txt").unlink()
    said = medfields("superres", "out/0001.dcm", "-o", "out/", *FAST)
    assert said.code == 5 and "overwritten" in said.err and len(list((tmp_path / "out").iterdir())) == 10


def test_a_folder_of_others_is_no_place_for_a_series(medfields, stacks: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/0001.dcm").write_text("precious")
    said = medfields("superres", stacks[0], "-o", "out/", "--spacing", 2, *FAST)
    assert said.code == 5 and "already holds files" in said.err and (tmp_path / "out/0001.dcm").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_method_file_by_its_path(medfields, stacks: tuple[Path, Path], tmp_path: Path) -> None:
    assert medfields("new", "my-idea").code == 0
    said = medfields("superres", *stacks, "-o", "iso.nii.gz", "--method", "./my_idea.py", "--steps", 3, "--net.width", 8, "--net.depth", 2)
    assert said.code == 0 and "my-idea:" in said.out, said.err
    config = tomllib.loads((tmp_path / "iso.run/config.toml").read_text())
    assert config["method"] == str(tmp_path / "my_idea.py") and config["hyper"]["net"]["width"] == 8
    log = [json.loads(line) for line in (tmp_path / "iso.run/log.jsonl").read_text().splitlines()]
    assert any(row.get("stage") == "fit" and row["step"] == 3 for row in log)


def test_report_can_be_written_again(medfields, stacks: tuple[Path, Path], tmp_path: Path) -> None:
    assert medfields("superres", *stacks, "-o", "iso.nii.gz", "--spacing", 1, *FAST).code == 0
    page = tmp_path / "iso.run/report.html"
    first = page.read_text()
    page.unlink()
    said = medfields("report", "iso.run")
    assert said.code == 0 and page.read_text() == first
    assert medfields("report", "iso.run", "--truth", "iso.nii.gz").code == 0 and "Error against the truth" in page.read_text()
    (tmp_path / "iso.run/summary.json").unlink()
    assert medfields("report", "iso.run").code == 4
    assert medfields("report", "no.run").code == 4


def test_hyper_parameters_named_like_options_are_refused(tmp_path: Path) -> None:
    module.plugins.entries()
    from medfields.cli.new import TEMPLATE

    text = (
        TEMPLATE.format(title="X", line="x.", class_name="X", spec="Siren", lr="1e-4")
        .replace("nodes: int", "spacing: int")
        .replace("self.nodes", "self.spacing")
    )
    (tmp_path / "x.py").write_text(text)
    with pytest.raises(InputError, match="spacing"):
        parse(["a.nii.gz", "-o", "x.nii.gz", "--method", str(tmp_path / "x.py")])
