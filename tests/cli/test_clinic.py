"""What stands before and after superres --motion: assess, segment-mask, n4, slices, and fields read as thick slices."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medfields.cases import Slices, Stack
from medfields.cli.bids import mask_beside
from medfields.fields import BSpline, Field
from medfields.io import read_volume, write_field, write_volume
from medfields.io.slices import read_slices, write_slices
from medfields.solve.quality import outlying, rank_share
from medfields.space import Grid, Volume
from medfields.space.rigid import maps_of

THICK = 6.0  # mm
SIGMA = THICK / 2.3548


@pytest.fixture
def wave(tmp_path: Path) -> tuple[Path, float]:
    """f(x) = cos(k z), nearly exactly, as a .field file; and k."""
    k = 0.7 / SIGMA
    grid = Grid.from_spacing((8, 8, 120), (4.0, 4.0, 0.5), origin=(-14, -14, -30))
    field = Field(BSpline.on(grid), grid.box(), unit="a.u.")
    # The cubic spline with samples of a wave as coefficients is that wave, damped by a known factor.
    damping = (4 + 2 * np.cos(k * 0.5)) / 6
    with torch.no_grad():
        field.net.coefficients.copy_(torch.cos(k * grid.points()[..., 2])[None] / damping)
    field.grid = grid
    write_field(field, tmp_path / "wave.field")
    return tmp_path / "wave.field", k


def test_a_thick_slice_damps_a_wave_across_it(medfields, wave: tuple[Path, float], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, k = wave
    # The slices of `like` are its first axis, which points down the wave.
    affine = np.array([[0, 0, 2.0, -3], [0, 2.0, 0, -3], [THICK, 0, 0, -12], [0, 0, 0, 1]])
    like = Grid((5, 4, 4), affine)
    write_volume(Volume(np.random.default_rng(0).normal(size=like.shape), like), tmp_path / "like.nii.gz")
    said = medfields("query", path, "-o", "out.nii.gz", "--like", "like.nii.gz", "--thickness", THICK)
    assert said.code == 0 and "a.u." in said.out, said.err
    out = read_volume(tmp_path / "out.nii.gz")
    assert out.grid.same_as(like)
    wanted = torch.cos(k * like.points()[..., 2]) * float(np.exp(-((k * SIGMA) ** 2) / 2))
    assert float((out.data[0] - wanted).abs().max()) < 0.01
    assert medfields("query", path, "-o", "axial.nii.gz", "--orientation", "axial", "--thickness", THICK).code == 0
    axial = read_volume(tmp_path / "axial.nii.gz")
    assert np.allclose(axial.grid.spacing, [4, 4, THICK]) and axial.grid.shape == (8, 8, 10)
    wanted = torch.cos(k * axial.grid.points()[..., 2]) * float(np.exp(-((k * SIGMA) ** 2) / 2))
    assert float((axial.data[0] - wanted)[:, :, 2:-2].abs().max()) < 0.01
    assert medfields("query", path, "-o", "sagittal.nii.gz", "--orientation", "sagittal", "--thickness", THICK, "--spacing", 2).code == 0
    side = read_volume(tmp_path / "sagittal.nii.gz")  # the wave runs within these slices, which leave it as it is
    assert np.allclose(side.grid.spacing, [2, 2, THICK]) and abs(side.grid.directions[0, 2]) == 1
    assert float((side.data[0] - torch.cos(k * side.grid.points()[..., 2]))[:, 2:-2].abs().max()) < 0.01


def test_slices_are_asked_for_in_one_way(medfields, wave: tuple[Path, float], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, _ = wave
    for words, told in ((("--thickness", "5"), "--orientation axial"), (("--orientation", "axial"), "--thickness MM"),
                        (("--thickness", "-1", "--orientation", "axial"), "must be in (0, 100]"),
                        (("--thickness", "5", "--orientation", "axial", "--gradient", "vector"), "exclude one another")):
        said = medfields("query", path, "-o", "x.nii.gz", *words)
        assert said.code in (2, 3) and told in said.err, said.err
    assert not (tmp_path / "x.nii.gz").exists()


RNG = np.random.default_rng(3)
CENTRES, WIDTHS, HEIGHTS = RNG.uniform(-12, 12, (25, 3)), RNG.uniform(2.5, 5.0, 25), RNG.uniform(20, 100, 25)
COUNT = 12  # slices of a stack


def head(x: np.ndarray) -> np.ndarray:
    """A ball of blobs, radius 16 mm."""
    blobs = (HEIGHTS * np.exp(-((x[..., None, :] - CENTRES) ** 2).sum(-1) / (2 * WIDTHS**2))).sum(-1)
    return (60 + blobs) / (1 + np.exp(2 * (np.linalg.norm(x, axis=-1) - 16)))


def acquired(axis: int, poses: np.ndarray) -> Volume:
    """A stack of 2 mm pixels and 3 mm slices across an axis of the world, slice k of it seen through poses[k]."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, [(axis + 1) % 3, (axis + 2) % 3, axis]] * [2.0, 2.0, 3.0]
    affine[:3, 3] = -affine[:3, :3] @ [11.5, 11.5, (COUNT - 1) / 2]
    grid = Grid((24, 24, COUNT), affine)
    z = np.linspace(-3, 3, 7)
    weight = np.exp(-4 * np.log(2) * (z / 3) ** 2)
    x = grid.world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))[..., None, :] + z[:, None] * np.eye(3)[axis]
    x = np.einsum("kab,ijkqb->ijkqa", poses[:, :3, :3], x) + poses[:, :3, 3][None, None, :, None]
    return Volume((head(x) * weight).sum(-1) / weight.sum(), grid)


def motion(degrees: float, mm: float, seed: int) -> np.ndarray:
    """[COUNT, 4, 4] random poses."""
    rng = np.random.default_rng(seed)
    return maps_of(np.c_[np.radians(rng.normal(0, 1, (COUNT, 3)) * degrees), rng.normal(0, 1, (COUNT, 3)) * mm], np.zeros(3))


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three stacks of one head, the first at rest, the others moved more and more; with BIDS masks."""
    folder, paths = tmp_path_factory.mktemp("scanned"), []
    for n, axis in enumerate((2, 0, 1)):
        stack = acquired(axis, motion(4.0 * n, 2.0 * n, n))
        paths.append(folder / f"sub-01_run-{n + 1}_T2w.nii.gz")
        write_volume(stack, paths[-1])
        inside = stack.grid.points().norm(dim=-1) < 17
        write_volume(Volume(inside.float(), stack.grid), folder / f"sub-01_run-{n + 1}_T2w_desc-brain_mask.nii.gz")
    return paths


def test_assess_tells_still_from_moved(medfields, scanned: list[Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    said = medfields("assess", *reversed(scanned), "-o", "table.csv")
    assert said.code == 0, said.err
    assert "masks found beside the stacks" in said.err and "use sub-01_run-1_T2w.nii.gz as the first" in said.out
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [r["stack"] for r in rows] == [p.name for p in scanned]
    alike, rank = ([float(r[name]) for r in rows] for name in ("ncc", "rank"))
    assert alike[0] > alike[1] + 0.03 > alike[2] + 0.06 and rank[1] < rank[2]
    assert [r["direction"] for r in rows] == ["axial", "sagittal", "coronal"]
    assert float(rows[0]["mask_ml"]) == pytest.approx(4 / 3 * np.pi * 1.7**3, rel=0.05) and rows[0]["pixel_mm"] == "2 x 2"
    spoilt = read_volume(scanned[0])
    spoilt.data[0, :, :, 5] = torch.rand(24, 24, generator=torch.Generator().manual_seed(0)) * 200
    write_volume(spoilt, tmp_path / "spoilt.nii.gz")
    said = medfields("assess", "spoilt.nii.gz", "--masks", scanned[0].with_name("sub-01_run-1_T2w_desc-brain_mask.nii.gz"), "--thickness", 2.5)
    assert said.code == 0 and said.out.splitlines()[1].split()[3] == "2.5" and said.out.splitlines()[1].split()[-1] == "5"
    said = medfields("assess", scanned[0], "-o", scanned[0])
    assert said.code == 2 and ".csv" in said.err


def test_the_rank_is_that_of_the_slices_and_only_a_slice_unlike_both_neighbours_is_outlying() -> None:
    rng = np.random.default_rng(0)
    grid = Grid.from_spacing((16, 16, 10), (1, 1, 4))
    low = np.einsum("ijr,rk->ijk", rng.normal(size=(16, 16, 3)), rng.normal(size=(3, 10)))  # three pictures make all slices
    assert rank_share(list(Slices.of([Stack(Volume(low, grid), 4.0, through=2)], [None]).slices)) == 0.3
    drift = np.cumsum(rng.normal(size=(16, 16, 10)) * 0.3, -1) + rng.normal(size=(16, 16, 1)) * 5
    drift[..., 7] = rng.normal(size=(16, 16))
    assert outlying(list(Slices.of([Stack(Volume(drift, grid), 4.0, through=2)], [None]).slices)) == (7,)


def scanner_header(path: Path) -> None:
    """Codes and an origin in the header as a scanner may write them: the qform counts, and differs a little from the sform."""
    image = nibabel.load(path)
    image.set_qform(image.affine, 1)
    moved = image.affine.copy()
    moved[:3, 3] += [0.25, -0.125, 0.0625]
    image.set_sform(moved, 2)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


def same_header(a: Path, b: Path) -> None:
    """Both files put their voxels in the same place, in both of their ways to say it."""
    one, other = nibabel.load(a), nibabel.load(b)
    assert one.shape == other.shape
    assert [int(one.header[n]) for n in ("sform_code", "qform_code")] == [int(other.header[n]) for n in ("sform_code", "qform_code")]
    for get in ("get_sform", "get_qform"):
        np.testing.assert_allclose(getattr(one, get)(), getattr(other, get)(), rtol=0, atol=1e-6)
    assert np.abs(one.affine - other.affine).max() < 1e-6 and read_volume(a).grid.same_as(read_volume(b).grid, 1e-6)


def test_n4_takes_a_bias_away_and_keeps_level_and_header(medfields, scanned: list[Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("SimpleITK")
    grid = Grid.from_spacing((40, 40, 14), (1, 1, 3), origin=(-19.5, -19.5, -19.5))  # three tissues, finely mixed
    x, tissue = grid.points(), torch.tensor([60.0, 100.0, 140.0])[torch.randint(3, grid.shape, generator=torch.Generator().manual_seed(0))]
    stack = Volume(torch.where(x.norm(dim=-1) < 17, tissue, 1.0), grid)
    log = 0.02 * x[..., 0] - 0.015 * x[..., 1] + 0.0008 * x[..., 2] ** 2
    write_volume(Volume((x.norm(dim=-1) < 17).float(), grid), tmp_path / "mask.nii.gz")
    write_volume(stack.with_data(stack.data * log.exp()), tmp_path / "biased.nii.gz")
    scanner_header(tmp_path / "biased.nii.gz")
    said = medfields("n4", "biased.nii.gz", "-o", "flat.nii.gz", "--mask", "mask.nii.gz")
    assert said.code == 0 and "bias 0." in said.out, said.err
    inside = x.norm(dim=-1) < 14
    ratio = (read_volume(tmp_path / "flat.nii.gz").data[0] / stack.data[0])[inside].log()
    before = log[inside]
    assert float(ratio.std()) < 0.25 * float(before.std())
    assert abs(float(ratio.mean() - before.mean())) < 0.05
    same_header(tmp_path / "biased.nii.gz", tmp_path / "flat.nii.gz")
    said = medfields("n4", "biased.nii.gz", scanned[1], "-o", "folder")
    assert said.code == 0 and sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["biased.nii.gz", scanned[1].name]
    for words, code in ((("biased.nii.gz", "-o", "biased.nii.gz"), 5), (("biased.nii.gz", scanned[1], "-o", "one.nii.gz"), 5),
                        (("biased.nii.gz", "-o", "x.nii.gz", "--shrink", 0), 2)):
        assert medfields("n4", *words).code == code
    write_volume(stack.with_data(-stack.data), tmp_path / "negative.nii.gz")
    said = medfields("n4", "negative.nii.gz", "-o", "x.nii.gz", "--mask", "mask.nii.gz")
    assert said.code == 2 and "not positive" in said.err and not (tmp_path / "x.nii.gz").exists()


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def drawn(x: torch.Tensor) -> torch.Tensor:
    """Whether points are in an ellipsoid, whose turn shows."""
    return (x / torch.tensor([14.0, 8.0, 12.0])).norm(dim=-1) < 1


POSE = maps_of(np.array([[0.0, 0.0, 0.25, 7.0, -4.0, 0.0]]), np.zeros(3))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Grid, Grid]:
    """The grids of a_T2w.nii.gz and b_T2w.nii.gz, of a subject that moved in between, and known.nii.gz, the mask of the first."""
    for name, axis, poses in (("a_T2w", 2, np.tile(np.eye(4), (COUNT, 1, 1))), ("b_T2w", 0, np.tile(POSE, (COUNT, 1, 1)))):
        write_volume(acquired(axis, poses), tmp_path / f"{name}.nii.gz")
    scanner_header(tmp_path / "b_T2w.nii.gz")
    a, b = (read_volume(tmp_path / f"{n}_T2w.nii.gz").grid for n in "ab")
    write_volume(Volume(drawn(a.points()).float(), a), tmp_path / "known.nii.gz")
    return a, b


def where_it_is(b: Grid) -> torch.Tensor:
    """The true mask of the second stack."""
    m = torch.from_numpy(POSE[0]).float()
    return drawn(b.points() @ m[:3, :3].T + m[:3, 3])


def test_a_mask_is_carried_to_a_subject_that_moved(medfields, pair: tuple[Grid, Grid], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    said = medfields("segment-mask", "a_T2w.nii.gz", "b_T2w.nii.gz", "-o", ".", "--mask", "known.nii.gz", "--of", "a_T2w.nii.gz")
    assert said.code == 0 and "as it was given" in said.out and "laid by 1" in said.out, (said.out, said.err)
    path = tmp_path / "b_T2w_desc-brain_mask.nii.gz"
    assert mask_beside(tmp_path / "b_T2w.nii.gz") == path
    same_header(tmp_path / "b_T2w.nii.gz", path)
    laid = read_volume(path).data[0] > 0.5
    assert dice(laid, where_it_is(pair[1])) > 0.88
    kept = read_volume(tmp_path / "a_T2w_desc-brain_mask.nii.gz")
    assert torch.equal(kept.data, read_volume(tmp_path / "known.nii.gz").data)
    said = medfields("segment-mask", "b_T2w.nii.gz", "-o", ".", "--mask", "known.nii.gz")
    assert said.code == 5 and "drawn by hand" in said.err


def test_a_mask_is_carried_as_headers_say_and_widened(medfields, pair: tuple[Grid, Grid], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    b = pair[1]
    said = medfields("segment-mask", "b_T2w.nii.gz", "-o", "plain", "--mask", "known.nii.gz")
    plain = read_volume(tmp_path / "plain/b_T2w_desc-brain_mask.nii.gz").data[0] > 0.5
    assert said.code == 0 and "as the headers say" in said.err and dice(plain, drawn(b.points())) > 0.85 and dice(plain, where_it_is(b)) < 0.8
    said = medfields("segment-mask", "b_T2w.nii.gz", "-o", "wide", "--mask", "known.nii.gz", "--margin", 4)
    wide = read_volume(tmp_path / "wide/b_T2w_desc-brain_mask.nii.gz").data[0] > 0.5
    where, inside = b.points()[wide], b.points()[plain]
    assert "4 mm wider" in said.out and 3.5 < float(torch.cdist(where, inside).amin(1).max()) <= 4.0 and bool(wide[plain].all())


def test_a_body_is_one_part_without_holes(medfields, scanned: list[Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("SimpleITK")
    grid = Grid.from_spacing((48, 40, 10), (1, 1, 4), origin=(-24, -20, -18))
    x = grid.points()
    body, hole, speck = x.norm(dim=-1) < 16, (x - torch.tensor([3.0, 0, 0])).norm(dim=-1) < 5, (x - torch.tensor([21.0, 17, 0])).norm(dim=-1) < 3
    noise = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    write_volume(Volume(torch.where((body & ~hole) | speck, 100.0, 5.0) + 10 * noise, grid), tmp_path / "s.nii.gz")
    scanner_header(tmp_path / "s.nii.gz")
    said = medfields("segment-mask", "s.nii.gz", "-o", "out")
    assert said.code == 0 and "Otsu" in said.out, said.err
    found = read_volume(tmp_path / "out/s_mask.nii.gz")
    same_header(tmp_path / "s.nii.gz", tmp_path / "out/s_mask.nii.gz")
    inside = found.data[0] > 0.5
    assert dice(inside, body) > 0.97 and bool(inside[hole].all()) and not bool(inside[speck].any())
    for words, code in (((), 2), (("s.nii.gz", "--of", "s.nii.gz"), 2), (("s.nii.gz", "--margin", 3), 2), (("s.nii.gz", "s.nii.gz"), 5)):
        assert medfields("segment-mask", *words, "-o", "more").code == code
    write_volume(Volume(torch.zeros(grid.shape), grid), tmp_path / "empty.nii.gz")
    assert medfields("segment-mask", "s.nii.gz", "-o", "more", "--mask", "empty.nii.gz").code == 2


def test_slices_are_compared_with_what_a_volume_shows_in_their_places(medfields, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    grid = Grid.from_spacing((44, 44, 44), 1.0, origin=(-21.5, -21.5, -21.5))
    write_volume(Volume(head(grid.points().double().numpy()), grid), tmp_path / "head.nii.gz")
    poses = motion(5.0, 2.0, 7)
    stack = acquired(1, poses)
    cut = [Volume(stack.data[:, :, :, k : k + 1].clone(), stack.grid.crop((0, 0, k), (24, 24, 1))) for k in range(COUNT)]
    cut = [Volume(s.data * (1.3 if k == 4 else 1.0), Grid(s.grid.shape, poses[k] @ s.grid.affine)) for k, s in enumerate(cut)]
    cut[6] = Volume(cut[6].data, Grid(cut[6].grid.shape, maps_of(np.array([[0.0, 0, 0, 0, 0, 8.0]]), np.zeros(3))[0] @ cut[6].grid.affine))
    cut[11] = Volume(cut[11].data, Grid(cut[11].grid.shape, maps_of(np.array([[0.0, 0, 0, 90, 0, 0]]), np.zeros(3))[0] @ cut[11].grid.affine))
    masks = [Volume((s.grid.points().norm(dim=-1) < 17).float() if k < 11 else torch.ones(s.grid.shape), s.grid) for k, s in enumerate(cut)]
    write_slices(tmp_path / "cut", cut, [3.0] * COUNT, masks, [{"stack": 0, "order": k, "thickness_mm": 3, "worth": 1} for k in range(COUNT)])
    said = medfields("slices", "head.nii.gz", "cut", "-o", "fits.csv", "--write", "cut")
    assert said.code == 0 and said.out.splitlines()[2].startswith("slice-006.nii.gz") and "1 beside the volume or empty" in said.out, said.out
    rows = list(csv.DictReader((tmp_path / "fits.csv").open()))
    right = [k for k in range(1, 11) if k != 6]
    assert min(float(rows[k]["ncc"]) for k in right) > 0.995 and min(float(rows[k]["psnr_db"]) for k in right) > 33
    assert float(rows[6]["ncc"]) < 0.95 and rows[11]["ncc"] == "" and rows[11]["pixels"] == "0"
    assert float(rows[4]["gain"]) == pytest.approx(1.3, rel=0.01) and float(rows[5]["gain"]) == pytest.approx(1.0, rel=0.01)
    written = read_volume(tmp_path / "cut/simulated-004.nii.gz")
    assert float((written.data - cut[4].data / 1.3)[masks[4].data > 0].abs().mean()) < 1.5
    same_header(tmp_path / "cut/slice-005.nii.gz", tmp_path / "cut/simulated-005.nii.gz")
    assert len(read_slices(tmp_path / "cut")[0]) == COUNT  # simulated slices are not taken for measured ones
    thin = medfields("slices", "head.nii.gz", "cut", "-o", "thin.csv", "--profile", "none")
    without = [float(r["psnr_db"]) for r in csv.DictReader((tmp_path / "thin.csv").open()) if r["ncc"]]
    assert thin.code == 0 and np.median(without) < np.median([float(rows[k]["psnr_db"]) for k in right]) - 2
    field = Field(BSpline.on(grid), grid.box())
    with torch.no_grad():
        field.net.coefficients.copy_(read_volume(tmp_path / "head.nii.gz").data)
    field.grid = grid
    write_field(field, tmp_path / "head.field")
    assert medfields("slices", "head.field", "cut", "-o", "field.csv").code == 0
    assert np.median([float(r["ncc"]) for r in csv.DictReader((tmp_path / "field.csv").open()) if r["ncc"]]) > 0.98
    for words, code in ((("head.nii.gz", "nowhere"), 4), (("head.nii.gz", "cut", "-o", "cut/slices.csv"), 5), (("cut/slice-000.nii.gz", "cut"), 3)):
        assert medfields("slices", *words).code == code
