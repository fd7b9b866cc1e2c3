"""The bench on a toy task: what methods get, what is scored, what is repeated, and the page of results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medfields import plugins
from medfields.errors import FileError, UnknownName
from medfields.evaluate import asked_superres, bench, results, rows
from medfields.evaluate.tasks import superres
from medfields.io import write_volume
from medfields.space import Grid, Volume

STUB = '''"""Nearest stack voxels, for tests.

Needs: stacks.
Gives: intensity.
"""
from dataclasses import dataclass
from typing import Any, ClassVar
import torch
from medfields.solve import Method
from medfields.space import Volume

@dataclass(frozen=True)
class Stub(Method):
    """A stub."""
    gain: float = {gain}
    paper: ClassVar[str] = ""
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {{}}

    def solve(self, case, run, prior=None):
        assert {lesson}
        first = [next(s for s in case.stacks if s.contrast == c) for c in case.contrasts]
        return Volume(torch.cat([self.gain * s.volume.on(case.grid).data for s in first]), case.grid)
'''


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> superres.Task:
    """Two contrasts of one generated head, in a data folder of its own."""
    grid = Grid.from_spacing((36, 36, 36), 1.0, (-17.5, -17.5, -17.5))
    x = grid.world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    r = np.linalg.norm(x, axis=-1)
    for n, name in enumerate(("t1", "t2")):
        data = 60 * (r < 16) * (1 + 0.3 * np.sin(x[..., 0] / (3 + n)) * np.cos(x[..., 2] / 2.5))
        write_volume(Volume(data, grid), tmp_path / f"data/{name}.nii.gz")
    monkeypatch.setenv("MEDFIELDS_DATA", str(tmp_path / "data"))
    sources = (superres.Source("t1", "t1.nii.gz", (2,)), superres.Source("t2", "t2.nii.gz", (0,)))
    toy = superres.Task("toy", "toy pair, 3x", sources, (6, 6, 6), (24, 24, 24), 3, lesions=True)
    monkeypatch.setitem(superres.TASKS, "toy", toy)
    monkeypatch.setattr(superres, "LESION_RADIUS", 1.5)
    monkeypatch.setattr(superres, "LESIONS", 1)
    monkeypatch.setattr(superres, "ABLATIONS", (superres.Ablation("no profile", ("toy",), profile="none"),))
    return toy


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    path = tmp_path / "stub.py"
    path.write_text(STUB.format(gain=1.0, lesson="case.profile == 'gauss' or run.seed >= 0"))
    return path


def test_methods_see_the_crop_and_scores_lie_inside(task: superres.Task, tmp_path: Path) -> None:
    scan = superres.acquire(task, tmp_path)
    assert superres.acquire(task, tmp_path) == scan
    trial = superres.trial(task, scan, 0)
    again, other, plain = superres.trial(task, scan, 0), superres.trial(task, scan, 1), superres.trial(task, scan, 0, lesions=False)
    assert trial.case.contrasts == ("t1", "t2") and trial.case.grid.shape == (24, 24, 24)
    faces = trial.case.grid.box()
    for s in trial.case.stacks:
        centres = s.volume.grid.box(-0.49 * float(s.volume.grid.spacing.min()))
        assert all(a >= b - 1e-4 for a, b in zip(centres.lo, faces.lo, strict=True)) and s.thickness == pytest.approx(3.0)
    index = np.argwhere(trial.mask)
    assert index.min() == 6 and index.max() == 17  # 6 mm from the faces of 24 voxels
    first = [t.case.stacks[0].volume.data for t in (trial, again, other, plain)]
    assert np.array_equal(first[0], first[1]) and not np.array_equal(first[0], first[2])
    changed = (first[0] - first[3]).abs().numpy()[0]
    assert changed.max() > 1.0 and np.mean(changed < 0.05) > 0.5  # the lesions, and nothing but the lesions: the noise is the same
    own = trial.lesions[:, :, trial.mask].sum()
    assert own == trial.lesions.sum() > 0 and not (trial.lesions[0].any(0) & trial.lesions[1].any(0)).any()


def test_a_tilt_turns_the_stacks_to_and_fro(task: superres.Task, tmp_path: Path) -> None:
    """So that none lies along the voxels of the answer, nor along another."""
    tilt = np.array([0.0, 6.0, 0.0])
    tilted = replace(task, name="tilted", sources=(superres.Source("t1", "t1.nii.gz", (2, 0)),), start=(9, 9, 9), shape=(18, 18, 18), lesions=False,
                     tilt=tuple(tilt.tolist()))
    found = superres.trial(tilted, superres.acquire(tilted, tmp_path), 0).case.stacks
    for stack, axis, sign in zip(found, (2, 0), (1, -1), strict=True):
        assert stack.normal == pytest.approx(Rotation.from_rotvec(sign * tilt, degrees=True).as_matrix()[:, axis], abs=1e-6)
    assert superres.scan_name(tilted) != superres.scan_name(replace(tilted, tilt=(0.0, 0.0, 0.0)))


def test_leak_counts_what_lesions_do_to_the_other_contrast(task: superres.Task, tmp_path: Path) -> None:
    trial = superres.trial(task, superres.acquire(task, tmp_path), 0)
    lacking = trial.truth.data.clone()
    having = lacking.clone()
    own, other = trial.lesions[0].any(0), trial.lesions[1].any(0)
    depth = superres.LESION_DEPTH * trial.ranges
    having[0][own] -= 0.8 * depth[0]
    having[1][own] -= 0.1 * depth[1]
    having[1][other] += 0.6 * depth[1]
    found = superres.leak(Volume(having, trial.truth.grid), Volume(lacking, trial.truth.grid), trial)
    assert found["leak"] == pytest.approx((0.1 + 0.0) / 2, rel=1e-3) and found["leak_worst"] == pytest.approx(0.1, rel=1e-3)
    assert found["kept"] == pytest.approx((0.8 + 0.6) / 2, rel=1e-3)
    assert superres.score(trial.truth, trial)["ssim"] == pytest.approx(1.0)


def test_a_run_in_its_own_process_says_everything(task: superres.Task, stub: Path, tmp_path: Path) -> None:
    """The child cannot see the toy task, so the process ends with an error; the same job here gives a whole row."""
    job = bench.Job("superres", "toy", str(stub), "no profile", 3, str(superres.acquire(task, tmp_path)))
    assert bench.run_apart(job) is None
    row = bench.run_here(job)
    assert row["config"] == {"gain": 1.0} and row["variant"] == "no profile" and 5 < row["psnr"] < 60 and row["peak_mb"] > 50
    assert row["leak"] < 1e-3 and row["kept"] > 0.3 and set(row["contrasts"]) == {"t1", "t2"}
    assert row["machine"]["threads"] >= 1 and row["machine"]["torch"] and row["date"].endswith("+00:00")
    json.dumps(row)


def test_the_child_process_runs(data: Path, tmp_path: Path) -> None:
    scan = superres.acquire(superres.TASKS["cord-2x4"], tmp_path)
    row = bench.run_apart(bench.Job("superres", "cord-2x4", "cubic-mean", "", 0, str(scan)))
    assert row is not None and 15 < row["psnr"] < 30 and row["fidelity"] == "classical"


def test_only_what_is_missing_is_run(task: superres.Task, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def record(job: bench.Job) -> dict[str, object]:
        ran.append(job.label.removeprefix(f"toy {stub} "))
        return bench.run_here(job)

    monkeypatch.setattr(bench, "run_apart", record)
    places = {"tasks": ["toy"], "rows": tmp_path, "page": tmp_path / "RESULTS.md", "cache": tmp_path}
    assert bench.bench(methods=[str(stub)], seeds=[0, 1], **places) == 0
    assert ran == ["seed 0", "seed 1", "(no profile) seed 0", "(no profile) seed 1"]
    ran.clear()
    assert bench.bench(methods=[str(stub)], seeds=[0, 1, 2], ablations=False, **places) == 0
    assert ran == ["seed 2"]
    ran.clear()
    stub.write_text(STUB.format(gain=0.9, lesson="True"))  # other hyper-parameters are another run
    bench.bench(methods=[str(stub)], seeds=[0], ablations=False, **places)
    bench.bench(methods=[str(stub)], seeds=[0], ablations=False, again=True, **places)
    assert ran == ["seed 0", "seed 0"]
    assert len(rows.read_rows(tmp_path / "superres.jsonl")) == 7 and len(rows.latest(rows.read_rows(tmp_path / "superres.jsonl"))) == 5
    results.check(tmp_path, tmp_path / "RESULTS.md")


def test_a_failed_run_leaves_no_row(task: superres.Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(STUB.format(gain=1.0, lesson="False"))
    places = {"tasks": ["toy"], "rows": tmp_path, "page": tmp_path / "RESULTS.md", "cache": tmp_path}
    assert bench.bench(methods=[str(broken)], seeds=[0], ablations=False, **places) == 1
    assert not (tmp_path / "superres.jsonl").exists() and "FAILED" in capsys.readouterr().err
    with pytest.raises(UnknownName, match="task"):
        bench.bench(**places | {"tasks": ["no-such"]})
    with pytest.raises(UnknownName, match="family"):
        bench.bench("no-such", **places)


def row(task: str, method: str, psnr: float, variant: str = "", **more: object) -> dict[str, object]:
    """A row with today's scan and configuration."""
    machine = {"cpu": "a cpu", "threads": 2, "torch": "2.13.0"}
    rest = {"seed": 0, "ssim": 0.9, "seconds": 50.0, "peak_mb": 500.0, "fidelity": plugins.find(method).fidelity, "machine": machine}
    today = {"scan": superres.scan_name(superres.TASKS[task]), "config": superres.configured(method, variant).config()}
    return {"task": task, "method": method, "variant": variant, "psnr": psnr, **rest, **today, **more}


def test_the_page_is_what_the_rows_say(tmp_path: Path) -> None:
    ours, small = "own-slices", "forrest-small"
    table = [row("forrest-2x5", ours, 27.0, seed=s) for s in (0, 1)] + [row("forrest-2x5", ours, 25.5, "not taught")]
    table += [row(small, ours, 27.0), row(small, ours, 25.5, "no profile"), row(small, "cubic-mean", 22.0), row(small, "siren", 24.0)]
    table += [row("forrest-2x5", "srr-tv", 26.8), row("forrest-2x5", "cubic-mean", 22.0), row("forrest-2x5", "srr-tv", 26.4)]  # a newer one
    table += [row("forrest-2x5", "srr-cg", 40.0, config={"smooth": 7.0}), row("forrest-2x5", "srr-cg", 40.0, scan="another")]  # of yesterday
    text = results.section("superres", table)  # type: ignore[arg-type]
    order = ("| **own-slices** (the default) | 27.00 ± 0.00 |", "| srr-tv *classical* | 26.40", "| own-slices (not taught)", "| cubic-mean *class")
    places = [text.index(line) for line in order]
    assert places == sorted(places) and "26.80" not in text and "40.00" not in text and "| 2 |" in text
    verdicts = {line[0]: line[2:] for line in asked_superres.requirements(rows.latest(table[:-2]))}  # type: ignore[arg-type]
    assert verdicts["own-slices over the best classical (srr-tv), `forrest-2x5`"] == ["+0.60 dB", "yes"]
    assert verdicts["time of own-slices, `forrest-2x5`, slowest seed"] == ["50.0 s", "yes"]
    assert verdicts["time of own-slices, `forrest-3x4`, slowest seed"] == ["not measured", "**no**"]
    assert verdicts["the slice profile in own-slices"] == ["+1.50 dB", "**no**"]
    assert verdicts["own-slices over cubic-mean"] == ["+5.00 dB", "yes"] and verdicts["siren over cubic-mean"] == ["+2.00 dB", "**no**"]
    assert verdicts["hash over cubic-mean"] == ["not measured", "**no**"]
    path, page = tmp_path / "superres.jsonl", tmp_path / "RESULTS.md"
    for r in table:
        rows.append_row(path, r)  # type: ignore[arg-type]
    with pytest.raises(FileError, match="not what"):
        results.check(tmp_path, page)
    results.write(tmp_path, page)
    results.check(tmp_path, page)
    with open(path, "a") as file:
        file.write("{half a row\n")
    with pytest.raises(FileError, match=f"line {len(table) + 1}"):
        rows.read_rows(path)


def test_leak_and_joint_gain_are_judged() -> None:
    both = {"contrasts": {"t1": {"psnr": 31.0}, "t2": {"psnr": 29.0}}}
    table = [row("brainweb-t1t2", "mcginnis", 30.0, **both), row("brainweb-t1t2", "mcginnis", 29.7, "one contrast", **both),
             row("brainweb-t1t2", "mcginnis", 29.0, "tv 0", **both), row("brainweb-t1t2", "mcginnis", 28.4, "one contrast, tv 0", **both),
             row("brainweb-lesions", "mcginnis", 30.0, leak=0.03, leak_worst=0.07, kept=0.8, **both)]
    verdicts = {line[0]: line[2:] for line in asked_superres.requirements(table)}  # type: ignore[arg-type]
    assert verdicts["mcginnis, joint over one contrast, `brainweb-t1t2`"] == ["+0.30 dB", "**no**"]
    assert verdicts["mcginnis, joint over one contrast, both without total variation, `brainweb-t1t2`"] == ["+0.60 dB", "yes"]
    assert verdicts["worst lesion of one contrast seen in the other, mcginnis"] == ["7.0 %", "**no**"]
    assert "| 3.0 / 7.0 | 80.0 |" in results.section("superres", table)  # type: ignore[arg-type]


def test_ablations_differ_from_what_they_take_an_idea_from() -> None:
    for task in superres.TASKS.values():
        pairs = list(superres.plan(task))
        assert len(pairs) == len(set(pairs))
        for method, variant in pairs:
            a = superres.ablation(method, variant)
            assert a.name == variant
            if variant and not a.one_contrast and a.profile == "gauss":
                assert superres.configured(method, variant).config() != superres.configured(method, "").config()
