"""Tracked sweeps: where pixels lie, which frames count, what is refused, and what the classical methods make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medfields import plugins
from medfields.cases import Sweep
from medfields.classical.nearest import bridged
from medfields.errors import FileError, GeometryError, InputError
from medfields.fields import MLP, GridEncoding
from medfields.io import read_volume
from medfields.io.sweep import read_calibration, read_sweep
from medfields.solve import Run
from medfields.space import Grid
from sweep_samples import IMAGE_TO_PROBE, SHAPE, calibration, fields, places, pose, ramp, text, write

RAS = np.array([-1.0, -1.0, 1.0])
RNG = np.random.default_rng(0)
GREY = RNG.integers(1, 255, (9, *SHAPE))
PHANTOM, CONFIG = "h_ultrasound/SpinePhantomFreehand.igs.mha", "h_ultrasound/PlusDeviceSet_VolumeReconstructionOnly_SpinePhantom_NN_MEAN.xml"


def sweep(folder: Path, frames: np.ndarray = GREY, **more: object) -> Path:
    calibration(folder / "c.xml")
    return write(folder / "s.igs.mha", frames, more.pop("said", fields()), **more)  # type: ignore[arg-type]


def pixels(affines: np.ndarray) -> np.ndarray:
    """[F, I, J, 3] mm of all pixel centres, which have whole numbers."""
    u, v = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    return np.stack([np.stack([u, v], -1) @ a[:3, :2].T + a[:3, 3] for a in affines])


@pytest.mark.parametrize("packed", [True, False])
def test_pixels_lie_where_the_chain_of_transforms_puts_them(tmp_path: Path, packed: bool) -> None:
    found = read_sweep(sweep(tmp_path, packed=packed), calibration=tmp_path / "c.xml")
    assert (found.frames == GREY).all() and found.world == "Reference"
    assert np.allclose(pixels(found.affines), RAS * places(), atol=1e-4)
    assert np.allclose(np.linalg.norm(found.affines[:, :3, 2], axis=1), 1)
    assert np.allclose(np.einsum("fi,fij->fj", found.affines[:, :3, 2], found.affines[:, :3, :2]), 0, atol=1e-9)


@pytest.mark.parametrize(("orientation", "turned"), [
    ("MFA", lambda f: f), ("UFA", lambda f: f[:, ::-1]), ("MNA", lambda f: f[:, :, ::-1]), ("UNA", lambda f: f[:, ::-1, ::-1]),
    ("FMA", lambda f: f.transpose(0, 2, 1)), ("NUA", lambda f: f[:, ::-1, ::-1].transpose(0, 2, 1))])
def test_frames_that_are_stored_another_way_round_mean_the_same(tmp_path: Path, orientation: str, turned: Callable) -> None:
    found = read_sweep(sweep(tmp_path, turned(GREY), orientation=orientation), calibration=tmp_path / "c.xml")
    assert (found.frames == GREY).all() and np.allclose(pixels(found.affines), RAS * places(), atol=1e-4)


def test_the_calibration_is_a_configuration_or_sixteen_numbers_or_in_the_frames(tmp_path: Path) -> None:
    whole = read_sweep(sweep(tmp_path), calibration=tmp_path / "c.xml").affines
    (tmp_path / "c.txt").write_text("\n".join(", ".join(f"{v:.9g}" for v in row) for row in IMAGE_TO_PROBE))
    assert np.allclose(read_sweep(tmp_path / "s.igs.mha", calibration=tmp_path / "c.txt").affines, whole)
    said = [frame | {"ImageToProbeTransform": text(IMAGE_TO_PROBE), "ImageToProbeTransformStatus": "OK"} for frame in fields()]
    assert np.allclose(read_sweep(sweep(tmp_path, said=said)).affines, whole, atol=1e-6)
    u, v = (places()[:, 1, 0] - places()[:, 0, 0]), (places()[:, 0, 1] - places()[:, 0, 0])
    straight = []
    for n in range(9):
        m = np.eye(4)
        m[:3] = np.stack([u[n], v[n], np.cross(u[n], v[n]), places()[n, 0, 0]], 1)
        straight.append({"ImageToReferenceTransform": text(m)})
    assert np.allclose(read_sweep(sweep(tmp_path, said=straight)).affines, whole, atol=1e-6)


def test_frames_that_are_not_valid_are_left_out_and_counted(tmp_path: Path) -> None:
    said = fields()
    said[2]["ProbeToTrackerTransformStatus"] = "INVALID"
    said[4]["ImageStatus"] = "INVALID"
    del said[7]["ReferenceToTrackerTransform"]
    said[5]["StylusToTrackerTransformStatus"] = "INVALID"  # of no concern
    found = read_sweep(sweep(tmp_path, said=said), calibration=tmp_path / "c.xml")
    kept = [0, 1, 3, 5, 6, 8]
    assert (found.frames == GREY[kept]).all() and np.allclose(pixels(found.affines), RAS * places()[kept], atol=1e-4)
    assert "3 of 9 frames have no valid image or pose and are left out" in found.notes
    with pytest.raises(GeometryError, match="none of the 9 frames"):
        read_sweep(sweep(tmp_path, said=[frame | {"ImageStatus": "INVALID"} for frame in fields()]), calibration=tmp_path / "c.xml")


def test_tracking_in_metres_is_seen_and_read(tmp_path: Path) -> None:
    path = sweep(tmp_path, said=fields(scale=1e-3))
    with pytest.raises(GeometryError, match="in metres") as error:
        read_sweep(path, calibration=tmp_path / "c.xml")
    assert "--unit m" in error.value.hint
    found = read_sweep(path, calibration=tmp_path / "c.xml", unit="m")
    assert np.allclose(pixels(found.affines), RAS * places(), atol=1e-3)
    assert len(read_sweep(path, calibration=tmp_path / "c.xml", unit="mm").frames) == 9  # a probe that hardly moved
    with pytest.raises(GeometryError, match="would have moved by"):
        read_sweep(sweep(tmp_path), calibration=tmp_path / "c.xml", unit="m")
    with pytest.raises(InputError, match="cannot be 'inch'"):
        read_sweep(path, calibration=tmp_path / "c.xml", unit="inch")


def test_what_the_tracking_or_the_calibration_lacks_is_said(tmp_path: Path) -> None:
    path = sweep(tmp_path)
    with pytest.raises(GeometryError, match="no calibration is given") as error:
        read_sweep(path)
    assert "--calibration" in error.value.hint
    other = tmp_path / "other.xml"
    other.write_text((tmp_path / "c.xml").read_text().replace("Probe", "Needle"))
    with pytest.raises(GeometryError, match="leads from the image to Needle, of which"):
        read_sweep(path, calibration=other)
    with pytest.raises(GeometryError, match="holds no tracking"):
        read_sweep(sweep(tmp_path, said=[{"Timestamp": "0"}] * 9), calibration=tmp_path / "c.xml")
    flat = [frame | {"ProbeToTrackerTransform": text(np.diag([1.0, 0, 1, 1]))} for frame in fields()]
    with pytest.raises(GeometryError, match="Probe to Tracker of frame 0 is singular"):
        read_sweep(sweep(tmp_path, said=flat), calibration=tmp_path / "c.xml")


@pytest.mark.parametrize(("content", "kind", "match"), [
    ("1 0 0 0 0 1 0 0", FileError, "has 8 numbers"), ("one two", FileError, "is no matrix"), ("<a><b>", FileError, "cannot read"),
    ("<a/>", FileError, "states no transform"), (text(np.diag([0.1, 0.0, 0.1, 1])), GeometryError, "singular"),
    (text(pose((0, 0, 0), (3, 4, 5)).T), GeometryError, "no affine map"), ("", FileError, "is empty"),
    ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', FileError, "entities")])
def test_a_calibration_that_is_none(tmp_path: Path, content: str, kind: type[Exception], match: str) -> None:
    (tmp_path / "c.xml").write_text(content)
    with pytest.raises(kind, match=match):
        read_calibration(tmp_path / "c.xml")


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_that_is_cut_off(tmp_path: Path, packed: bool) -> None:
    whole = sweep(tmp_path, packed=packed).read_bytes()
    for length in (40, len(whole) // 3, len(whole) - 200):
        (tmp_path / "s.igs.mha").write_bytes(whole[:length])
        with pytest.raises(FileError, match="cut off"):
            read_sweep(tmp_path / "s.igs.mha", calibration=tmp_path / "c.xml")


def test_only_pixels_that_the_probe_sees_count(tmp_path: Path) -> None:
    """Black in every frame at the rim is outside; black within is tissue; the clip rectangle cuts."""
    frames = GREY.copy()
    frames[:, :4] = 0
    frames[:, :, 15:] = 0
    frames[:, 10:12, 5:8] = 0
    case = Sweep.of(read_sweep(sweep(tmp_path, frames), calibration=tmp_path / "c.xml"))
    expected = np.zeros(SHAPE, bool)
    expected[4:, :15] = True
    assert (case.mask.numpy() == expected).all()
    clip = '<VolumeReconstruction ClipRectangleOrigin="6 2" ClipRectangleSize="10 9" />'
    case = Sweep.of(read_sweep(tmp_path / "s.igs.mha", calibration=calibration(tmp_path / "c.xml", clip)))
    expected[:] = False
    expected[6:16, 2:11] = True
    assert (case.mask.numpy() == expected).all()


def test_the_grid_holds_every_counted_pixel_and_no_more(tmp_path: Path) -> None:
    tracked = read_sweep(sweep(tmp_path), calibration=tmp_path / "c.xml")
    case = Sweep.of(tracked)
    low, high = ((RAS * places()).reshape(-1, 3).min(0), (RAS * places()).reshape(-1, 3).max(0))
    index = case.grid.index(np.stack([low, high]))
    assert np.allclose(case.grid.spacing, 2 * case.pixel) and case.pixel == pytest.approx(0.81, abs=0.02)
    assert (index[0] >= -1e-4).all() and (index[0] < 0.5).all() and (index[1] <= np.array(case.grid.shape) - 1 + 1e-4).all()
    assert np.allclose(Sweep.of(tracked, spacing=0.5).grid.spacing, 0.5)
    with pytest.raises(GeometryError, match="no frame of"):
        Sweep.of(tracked, grid=Grid.from_spacing((9, 9, 9), 1.0, [500, 0, 0]))
    with pytest.raises(GeometryError, match="is no volume"):
        Sweep.of(tracked, grid=Grid.from_spacing((9, 9, 1), 1.0))


def test_squares_of_pixels_lie_in_their_middle() -> None:
    case = Sweep.toy(0)
    coarse = case.coarser(2)
    assert coarse.frames[3, 4, 5] == pytest.approx(float(case.frames[3, 8:10, 10:12].mean()), rel=1e-5)
    middle = case.affines[3] @ [8.5, 10.5, 0, 1]
    assert np.allclose(coarse.affines[3] @ [4, 5, 0, 1], middle) and not coarse.mask[0, 0] and coarse.mask[2, 2]
    assert coarse.frames[3, 1, 1] == pytest.approx(float(case.frames[3][2:4, 2:4][case.mask[2:4, 2:4]].mean()), rel=1e-5)


def test_frames_are_held_out_whole_and_never_at_the_ends() -> None:
    case = Sweep.toy(0)
    shown, held = case.without(3, 2)
    assert len(shown.frames) == 7 and torch.equal(held.frames, case.frames[[2, 5]]) and np.array_equal(held.affines, case.affines[[2, 5]])
    assert shown.grid is case.grid
    with pytest.raises(InputError, match="too few"):
        case.only([0, 1]).without(5, 5)


def test_a_fingerprint_knows_poses_values_and_mask() -> None:
    case = Sweep.toy(0)
    moved = case.affines.copy()
    moved[3, 0, 3] += 0.01
    others = [Sweep(case.frames, moved, case.mask, case.grid), Sweep(case.frames + 1, case.affines, case.mask, case.grid),
              Sweep(case.frames, case.affines, case.mask.roll(1, 0), case.grid), Sweep.toy(1)]
    assert len({c.fingerprint() for c in (case, *others)}) == 5 and case.fingerprint() == Sweep.toy(0).fingerprint()


@pytest.fixture
def linear(tmp_path: Path) -> Sweep:
    """Frames of a function that is linear in the place, rounded to whole grey values."""
    return Sweep.of(read_sweep(sweep(tmp_path, ramp(places()).round()), calibration=tmp_path / "c.xml"), spacing=1.0)


@pytest.mark.parametrize(("method", "most"), [("nearest", 4.0), ("compounding", 4.0)])
def test_compounding_recovers_a_ramp(linear: Sweep, method: str, most: float) -> None:
    """In the inner voxels; half a voxel is 2 grey values here, and a mean over a few mm of a ramp is its middle."""
    shown, held = linear.without(5, 4)
    result = plugins.load(method)().solve(shown, Run())
    inner = torch.zeros_like(held.mask)
    inner[6:-6, 4:-4] = True
    error = (held.resliced(result, 0) - held.frames[0][held.mask])[inner[held.mask]]
    assert error.abs().max() < most and error.mean().abs() < 1.0
    x = linear.grid.points().numpy()
    seen = result.data[0].numpy() > 0
    truth = ramp(RAS * x)
    assert 0.1 < seen.mean() < 1 and np.abs(result.data[0].numpy() - truth)[seen].max() < 30


def test_holes_are_bridged_along_the_shortest_stick_only() -> None:
    values, seen = np.zeros((9, 9, 9), np.float32), np.zeros((9, 9, 9), bool)
    values[2, 4, 4], values[6, 4, 4] = 10.0, 30.0  # two steps on either side of the middle
    values[4, 0, 4], values[4, 8, 4] = 100.0, 100.0  # four
    seen[values > 0] = True
    out = bridged(values, seen, 4)
    assert out[4, 4, 4] == 20 and out[3, 4, 4] == 15 and out[2, 4, 4] == 10 and out[0, 0, 0] == 0
    assert bridged(values, seen, 1)[4, 4, 4] == 0


def test_the_width_is_chosen_by_frames_that_are_left_out() -> None:
    """Sparse smooth frames alone want a wide kernel; a single width is taken as it is."""
    run, case = Run(), Sweep.toy(0)
    plugins.load("compounding")(sigmas=(0.1, 1.0, 8.0), every=3, between=0.0).solve(case, run)
    assert run.notes["sigma_mm"] == 1.0
    plugins.load("compounding")(sigmas=(8.0,)).solve(case, run)
    assert run.notes["sigma_mm"] == 8.0
    with pytest.raises(InputError, match="sigmas must be positive"):
        plugins.load("compounding")(sigmas=(0.0,))


def test_the_misfit_is_of_counted_pixels_alone() -> None:
    case = Sweep.toy(0)
    assert case.misfit(lambda x: torch.zeros(len(x), 1)) == pytest.approx(float(case.frames[:, case.mask].square().mean()), rel=1e-4)


def test_gaps_are_filled_along_straight_lines_and_jumps_are_not() -> None:
    case = Sweep.toy(0)
    far = case.affines.copy()
    far[5:, 1, 3] += 30
    case = Sweep(case.frames, far, case.mask, case.grid)
    at, filled = case.path(0.3), case.filled(0.3)
    assert set(range(9)) <= set(at.tolist()) and not ((at > 4) & (at < 5)).any() and len(filled.frames) == len(at) > 40
    apart = np.linalg.norm(np.diff(filled.outlines(), axis=0), axis=2).max(1)
    assert (apart > 0.3 + 1e-9).sum() == 1  # the jump
    n = int(np.argmin(np.abs(at - 2.5)))
    share = at[n] - 2
    assert 0 < share < 1 and torch.allclose(filled.frames[n], torch.lerp(case.frames[2], case.frames[3], float(share)), atol=1e-3)
    assert np.allclose(filled.affines[n], (1 - share) * far[2] + share * far[3])
    assert np.array_equal(case.path(0), np.arange(9)) and torch.equal(case.only([4]).filled(0.3).frames, case.frames[[4]])


def test_voxels_are_reached_within_half_the_widest_gap_and_a_voxel() -> None:
    case = Sweep.toy(0)
    one = case.only([4])
    assert one.reach() == 1.0 and 2 * (case.reach() - 1) == pytest.approx(np.linalg.norm(np.diff(case.outlines(), axis=0), axis=2).max())
    x = case.grid.points().numpy().reshape(-1, 3)
    nearest = np.linalg.norm(x[:, None] - one.points(0).numpy(), axis=2).min(1)
    reached = one.reached().ravel()
    assert reached[nearest < 0.3].all() and not reached[nearest > 1.9].any() and 0.05 < reached.mean() < 0.5
    beside = Sweep(case.frames, case.affines + np.array([[0, 0, 0, 500.0]] + 3 * [4 * [0.0]]), case.mask, case.grid)
    assert not beside.reached().any()


def test_the_field_is_drawn_straight_between_frames_or_not_at_all(linear: Sweep) -> None:
    """Of frames that are far apart, one is left out: a fine field knows it from the path, and not from the frames alone."""
    shown, held = linear.without(5, 4)
    method = plugins.load("us-field")
    options = {"net": MLP(GridEncoding(levels=4, finest_mm=0.5, coarsest_mm=4.0, log2_table=14), width=16, depth=1), "steps": 60, "samples": 2048}
    errors = [held.misfit(method(**options, between=mm).solve(shown, Run(seed=0))) for mm in (0.3, 0.0)]
    assert errors[0] < 0.7 * errors[1], errors


def test_a_field_learns_the_frames_it_is_shown() -> None:
    case = Sweep.toy(0)
    method = plugins.load("us-field")(**{**plugins.load("us-field").tiny, "steps": 200, "samples": 1024, "between": 0.0})
    field = method.solve(case, Run())
    error = torch.cat([field(case.points(n))[:, 0] - case.frames[n][case.mask] for n in range(9)])
    assert error.square().mean() < 0.2 * case.frames[:, case.mask].var()  # speckle alone is 0.12


@pytest.mark.data
def test_nearest_is_what_plus_makes_of_the_same_sweep(data: Path) -> None:
    """On the lattice of the reconstruction by PLUS, where that is not 0."""
    theirs = read_volume(data / "h_ultrasound/SpinePhantomFreehandReconstructed.mha")
    tracked = read_sweep(data / PHANTOM, calibration=data / CONFIG)
    case = Sweep.of(tracked, grid=theirs.grid)
    assert case.frames.shape == (21, 820, 616) and case.pixel == pytest.approx(0.0822, abs=1e-3)
    ours = plugins.load("nearest")().solve(case, Run()).data[0]
    there = (theirs.data[0] > 0) & (ours > 0)
    assert there.float().mean() > 0.1
    assert torch.corrcoef(torch.stack([ours[there], theirs.data[0][there]]))[0, 1] > 0.95
    # Half a millimetre to the side it is less like it: no half pixel is lost.
    moved = [torch.corrcoef(torch.stack([ours.roll(s, d)[there], theirs.data[0][there]]))[0, 1] for d in range(3) for s in (-1, 1)]
    assert max(moved) < torch.corrcoef(torch.stack([ours[there], theirs.data[0][there]]))[0, 1]
