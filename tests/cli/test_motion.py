"""superres --motion from files to files: what it writes and says, and what bad input gets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medfields.cli.bids import mask_beside
from medfields.io import read_field, read_volume, write_volume
from medfields.io.slices import read_slices
from medfields.space import Grid, Volume
from medfields.space.rigid import maps_of

FAST = ("--method", "moved-slices", "--alternations", "3", "--steps", "5")
RNG = np.random.default_rng(0)
CENTRES, WIDTHS, HEIGHTS = RNG.uniform(-10, 10, (30, 3)), RNG.uniform(2.0, 4.0, 30), RNG.uniform(20, 100, 30)


def head(x: np.ndarray) -> np.ndarray:
    return 100 * (np.linalg.norm(x, axis=-1) < 14) + (HEIGHTS * np.exp(-((x[..., None, :] - CENTRES) ** 2).sum(-1) / (2 * WIDTHS**2))).sum(-1)


def acquired(axis: int, poses: np.ndarray, subject=head, count: int = 8) -> Volume:  # type: ignore[no-untyped-def]
    """A stack of 2 mm pixels and 4 mm slices, slice k of it seen through poses[k]."""
    order = [(axis + 1) % 3, (axis + 2) % 3, axis]
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * [2.0, 2.0, 4.0]
    affine[:3, 3] = -affine[:3, :3] @ [7.5, 7.5, (count - 1) / 2]
    grid = Grid((16, 16, count), affine)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    z = np.linspace(-4, 4, 9)
    weight = np.exp(-4 * np.log(2) * (z / 4) ** 2)
    x = grid.world(index)[..., None, :] + z[:, None] * np.eye(3)[axis]
    x = np.einsum("kab,ijkqb->ijkqa", poses[:, :3, :3], x) + poses[:, :3, 3][None, None, :, None]
    return Volume((subject(x) * weight).sum(-1) / weight.sum(), grid)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], np.ndarray]:
    """Three stacks with BIDS names, masks beside them, and the true poses."""
    folder = tmp_path_factory.mktemp("stacks")
    rng, paths = np.random.default_rng(1), []
    poses = maps_of(np.c_[np.radians(rng.uniform(-4, 4, (24, 3))), rng.uniform(-2, 2, (24, 3))], np.zeros(3))
    for n, axis in enumerate((2, 0, 1)):
        stack = acquired(axis, poses[8 * n : 8 * n + 8])
        paths.append(folder / f"sub-01_run-{n + 1}_T2w.nii.gz")
        write_volume(stack, paths[-1])
        inside = stack.grid.points().norm(dim=-1) < 15
        write_volume(Volume(inside.float(), stack.grid), folder / f"sub-01_run-{n + 1}_T2w_desc-brain_mask.nii.gz")
    return paths, poses


def test_writes_volume_field_slices_and_report(medfields, moved, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    paths, _ = moved
    said = medfields("superres", *paths, "-o", "brain.nii.gz", "--motion", "--spacing", 2, "--preview", *FAST)
    assert said.code == 0, said.err
    written = ["brain.field", "brain.nii.gz", "brain.run", "brain_preview.nii.gz", "brain_slices", "brain_uncertainty.nii.gz"]
    assert sorted(p.name for p in tmp_path.iterdir()) == written
    assert "masks found beside the stacks" in said.err and "sub-01_run-1_T2w.nii.gz: 8 slices, moved by" in said.out
    volume, field = read_volume(tmp_path / "brain.nii.gz"), read_field(tmp_path / "brain.field")
    truth = head(volume.grid.points().double().numpy())
    inside = np.linalg.norm(volume.grid.points().numpy(), axis=-1) < 10
    assert np.allclose(volume.grid.spacing, 2) and float(volume.data[0, 0, 0, 0]) == 0  # no slice looks there
    assert np.allclose(field.on(volume.grid).volume().data[0][inside], volume.data[0][inside], atol=1e-2)
    preview, doubt = (read_volume(tmp_path / f"brain_{name}.nii.gz") for name in ("preview", "uncertainty"))
    assert preview.grid.same_as(volume.grid) and doubt.grid.same_as(volume.grid)
    assert np.corrcoef(truth[inside], preview.data[0].numpy()[inside])[0, 1] > 0.8 and said.err.count("brain_preview.nii.gz shows") == 4
    assert float(doubt.data.min()) > 0 and float(doubt.data[0][inside].mean()) < 0.2 * float(np.ptp(truth))
    assert len(list((tmp_path / "brain.run/stages").iterdir())) == 4
    assert np.corrcoef(truth[inside], volume.data[0].numpy()[inside])[0, 1] > 0.85
    summary = json.loads((tmp_path / "brain.run/summary.json").read_text())
    images, masks, rows = read_slices(tmp_path / "brain_slices")
    assert len(images) == len(masks) == len(rows) == len(summary["notes"]["motion"]["poses"]) and len(images) >= 18
    first = read_volume(paths[int(rows[0]["stack"])])
    pose = maps_of(np.array([summary["notes"]["motion"]["poses"][0]]), np.array(summary["notes"]["motion"]["about"]))[0]
    wanted = pose @ first.grid.crop((0, 0, int(rows[0]["order"])), (16, 16, 1)).affine
    np.testing.assert_allclose(images[0].grid.affine[:3, [0, 1, 3]], wanted[:3, [0, 1, 3]], atol=1e-3)
    turns = [float(r["turn_x_deg"]) for r in csv.DictReader((tmp_path / "brain_slices/slices.csv").open())]
    assert np.ptp(turns) > 1
    page = (tmp_path / "brain.run/report.html").read_text()
    assert "slices that moved" in page and "None was left out" in page and page.count("<svg") >= 4
    assert "Stage by stage" in page and "poses at 6.0 mm" in page and "How sure it is" in page
    config = str(tmp_path / "brain.run/config.toml")
    assert medfields("superres", "--config", config, "-o", "again.nii.gz", "--no-uncertainty").code == 0
    assert not (tmp_path / "again_uncertainty.nii.gz").exists()
    assert torch.equal(read_volume(tmp_path / "again.nii.gz").data, volume.data)
    before = page
    assert medfields("report", "brain.run").code == 0
    assert (tmp_path / "brain.run/report.html").read_text().count("<img") == before.count("<img")


def test_a_folder_of_slices_goes_on_from_its_poses(medfields, moved, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    paths, _ = moved
    assert medfields("motion", *paths, "-o", "a.nii.gz", "--spacing", 2, *FAST).code == 0
    said = medfields("superres", "a_slices", "-o", "b.nii.gz", "--motion", "--like", "a.nii.gz", *FAST)
    assert said.code == 0, said.err
    a, b = (read_volume(tmp_path / f"{n}.nii.gz") for n in "ab")
    assert b.grid.same_as(a.grid)
    inside = a.grid.points().norm(dim=-1) < 10
    assert float(torch.corrcoef(torch.stack([a.data[0][inside], b.data[0][inside]]))[0, 1]) > 0.95
    said = medfields("superres", "a_slices", "-o", "c.nii.gz", "--motion", "--slices", "a_slices", *FAST)
    assert said.code == 5 and "would be overwritten" in said.err


def test_strangers_are_not_made_into_one(medfields, moved, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    paths, _ = moved
    noise = np.random.default_rng(5).normal(100, 30, (16, 16, 8))
    write_volume(Volume(noise, read_volume(paths[2]).grid), tmp_path / "other.nii.gz")
    said = medfields("superres", *paths[:2], "other.nii.gz", "-o", "x.nii.gz", "--motion", "--spacing", 2, *FAST)
    assert said.code == 11 and "other.nii.gz could not be laid on the others" in said.err and not (tmp_path / "x.nii.gz").exists()


def test_bad_input_is_named(medfields, moved, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    paths, _ = moved
    grid = read_volume(paths[0]).grid

    def says(code: int, *told: str, words: tuple = ()) -> None:
        said = medfields("superres", "-o", "x.nii.gz", "--motion", *words, *FAST)
        assert said.code == code, (said.code, said.err)
        assert all(t in said.err for t in told), said.err

    says(2, "nothing to work on")
    says(2, "one stack cannot tell", words=(paths[0],))
    write_volume(Volume(read_volume(paths[0]).data[..., :2], Grid((16, 16, 2), grid.affine)), tmp_path / "two.nii.gz")
    says(3, "has 2 slices", words=(paths[0], "two.nii.gz"))
    says(3, "20 mm thick and 4 mm apart", "--thickness", words=(*paths, "--thickness", "20"))
    says(2, "2 thicknesses for 3 stacks", words=(*paths, "--thickness", "4", "4"))
    write_volume(Volume(torch.zeros(grid.shape), grid), tmp_path / "empty.nii.gz")
    says(2, "is empty", words=(*paths, "--masks", "empty.nii.gz"))
    far = Grid(grid.shape, grid.affine + np.array([[0, 0, 0, 500]] * 3 + [[0] * 4]))
    write_volume(Volume(torch.ones(grid.shape), far), tmp_path / "far.nii.gz")
    says(3, "marks nothing of", words=(*paths, "--masks", "far.nii.gz"))
    write_volume(Volume(torch.linspace(-1, 1, 16)[:, None, None].expand(grid.shape), grid), tmp_path / "negative.nii.gz")
    says(2, "it is an image", words=(*paths, "--masks", "negative.nii.gz"))
    says(2, "2 masks for 3 stacks", words=(*paths, "--masks", "far.nii.gz", "far.nii.gz"))


def test_masks_are_found_by_their_names(tmp_path: Path) -> None:
    for image, mask in (("sub-01_run-1_T2w.nii.gz", "sub-01_run-1_T2w_desc-brain_mask.nii.gz"), ("sub-02_T2w.nii", "sub-02_desc-brain_mask.nii"),
                        ("c.nii.gz", "c_mask.nii.gz")):
        assert mask_beside(tmp_path / image) is None
        (tmp_path / mask).touch()
        assert mask_beside(tmp_path / image) == tmp_path / mask
    assert mask_beside(tmp_path / "sub-03_T2w.nii.gz") is None


def test_a_mask_beside_one_stack_serves_the_others_and_another_grid_is_said(medfields, moved, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    paths, _ = moved
    bare = [tmp_path / f"{n}.nii.gz" for n in "abc"]
    for path, target in zip(paths, bare, strict=True):
        write_volume(read_volume(path), target)
    (tmp_path / "a_mask.nii.gz").write_bytes(paths[0].with_name("sub-01_run-1_T2w_desc-brain_mask.nii.gz").read_bytes())
    said = medfields("superres", *bare, "-o", "x.nii.gz", "--motion", "--spacing", 2, *FAST)
    assert said.code == 0, said.err
    assert "no mask for b.nii.gz, c.nii.gz: that of another stack is used" in said.err
    said = medfields("superres", *bare, "-o", "y.nii.gz", "--motion", "--masks", "a_mask.nii.gz", "--spacing", 2, *FAST)
    assert said.code == 0 and "a_mask.nii.gz lies on another grid than b.nii.gz: resampled" in said.err
