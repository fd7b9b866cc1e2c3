"""Slices that moved: their geometry, their poses found again, what is left out, and their files."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medfields.cases import Slices, Stack
from medfields.errors import FileError, GeometryError, InputError, OutputError
from medfields.evaluate import moved
from medfields.evaluate.families import data_folder
from medfields.io import read_volume
from medfields.io.slices import read_slices, write_slices
from medfields.solve import Run
from medfields.solve.motion import Alternation, Found, Level, covering, fixed, rigid_between
from medfields.solve.plane_doubt import uncertainty
from medfields.solve.plane_system import PlaneSystem
from medfields.solve.robust import believed
from medfields.solve.settle import aligned, coarsest, settled, steadiness
from medfields.space import Grid, Volume
from medfields.space.rigid import maps_of, six

RNG = np.random.default_rng(3)
CENTRES, WIDTHS, HEIGHTS = RNG.uniform(-16, 16, (60, 3)), RNG.uniform(2.0, 5.0, 60), RNG.uniform(-60, 100, 60)


def head(x: np.ndarray) -> np.ndarray:
    """A subject that is known everywhere."""
    d2 = ((x[..., None, :] - CENTRES) ** 2).sum(-1)
    return 200 * (1 / (1 + np.exp(np.linalg.norm(x, axis=-1) - 20))) + (HEIGHTS * np.exp(-d2 / (2 * WIDTHS**2))).sum(-1)


def scanned(poses: list[np.ndarray], side: int = 24, bad: tuple[int, ...] = ()) -> list[Stack]:
    """Three orthogonal stacks of `head`, 2 mm in the plane and 4 mm thick, slice n of all of them seen through poses[n]."""
    stacks, n = [], 0
    z = np.linspace(-5, 5, 21)
    weight = np.exp(-4 * np.log(2) * (z / 4) ** 2)
    for axis in (2, 0, 1):
        order = [(axis + 1) % 3, (axis + 2) % 3, axis]
        count = side // 2
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, order] * [2.0, 2.0, 4.0]
        affine[:3, 3] = -affine[:3, :3] @ [(side - 1) / 2, (side - 1) / 2, (count - 1) / 2]
        grid, data = Grid((side, side, count), affine), np.zeros((side, side, count))
        for k in range(count):
            x = grid.world(np.stack(np.meshgrid(np.arange(side), np.arange(side), k, indexing="ij"), -1))[:, :, 0]
            x = (x[:, :, None] + z[:, None] * np.eye(3)[axis]) @ poses[n][:3, :3].T + poses[n][:3, 3]
            data[:, :, k] = (head(x) * weight).sum(-1) / weight.sum() + np.random.default_rng(n).normal(0, 1, (side, side))
            if n in bad:
                data[:, :, k] = 0.3 * data[:, :, k] + np.random.default_rng(n).normal(0, 40, (side, side))
            n += 1
        stacks.append(Stack(Volume(data, grid), 4.0, name=f"s{axis}", through=2))
    return stacks


def shaken(degrees: float, mm: float, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(maps_of(np.c_[np.radians(rng.uniform(-degrees, degrees, (36, 3))), rng.uniform(-mm, mm, (36, 3))], np.zeros(3)))


def ball() -> Volume:
    grid = Grid.from_spacing((48,) * 3, 1.0, [-23.5] * 3)
    return Volume((grid.points().norm(dim=-1) < 22).float(), grid)


def case_of(poses: list[np.ndarray], bad: tuple[int, ...] = ()) -> tuple[Slices, np.ndarray]:
    """The case, and which slices it kept, as numbers of the poses."""
    case = Slices.of(scanned(poses, bad=bad), [ball()] * 3, spacing=2.0)
    return case, np.array([12 * s.stack + s.order for s in case.slices])


@functools.cache
def found_of(degrees: float, mm: float, bad: tuple[int, ...] = ()) -> tuple[Slices, Found, np.ndarray, np.ndarray]:
    poses = shaken(degrees, mm)
    case, kept = case_of(poses, bad)
    return case, settled(case, Run(seed=0)), np.stack(poses)[kept], kept


def test_poses_are_found_again() -> None:
    case, found, true, _ = found_of(6.0, 3.0)
    before, turned_before = moved.errors(case, np.tile(np.eye(4), (len(true), 1, 1)), true)
    after, turned = moved.errors(case, found.poses, true)
    assert np.median(before) > 2 and np.median(turned_before) > 4
    assert np.median(after) < 0.2 * np.median(before) and np.median(turned) < 0.3 * np.median(turned_before)
    assert (found.worth > 0).all() and np.median(found.likeness) > 0.95


def test_corrupted_slices_are_left_out_and_no_others() -> None:
    bad = (5, 17, 30)
    case, found, true, kept = found_of(4.0, 2.0, bad)
    spoilt = np.isin(kept, bad)
    assert (found.worth[spoilt] == 0).all() and (found.worth[~spoilt] > 0).all()
    after, _ = moved.errors(case, found.poses, true)
    assert np.median(after[~spoilt]) < 0.5


def test_a_stack_that_lies_elsewhere_is_laid_on_the_others() -> None:
    off = maps_of(np.array([[*np.radians([12.0, -15.0, 8.0]), 8.0, -6.0, 5.0]]), np.zeros(3))[0]
    poses = [np.eye(4)] * 24 + [off] * 12
    case, kept = case_of(poses)
    found = aligned(case, Run(seed=0), 4.0)
    true = np.stack(poses)[kept]
    assert moved.errors(case, np.tile(np.eye(4), (len(true), 1, 1)), true)[0].max() > 10
    assert moved.errors(case, found, true)[0].max() < 4  # close enough for slices to find their places


def test_a_steadier_stack_is_known() -> None:
    poses = [*shaken(0, 0)[:12], *shaken(8, 4)[12:]]
    case, _ = case_of(poses)
    assert steadiness(case, 0) > max(steadiness(case, 1), steadiness(case, 2)) + 0.02


def test_errors_do_not_count_where_the_subject_lies_as_a_whole() -> None:
    case, kept = case_of(shaken(0, 0))
    true = np.stack(shaken(5, 3))[kept]
    whole = maps_of(np.array([[0.3, -0.2, 0.5, 20.0, -7.0, 3.0]]), np.zeros(3))[0]
    mm, degrees = moved.errors(case, whole @ true, true)
    assert mm.max() < 1e-3 and degrees.max() < 1e-3


def test_nothing_moves_as_a_whole() -> None:
    case, kept = case_of(shaken(0, 0))
    rest = np.tile(np.eye(4), (len(kept), 1, 1))
    whole = maps_of(np.array([[0.3, -0.2, 0.5, 20.0, -7.0, 3.0]]), np.zeros(3))[0]
    np.testing.assert_allclose(fixed(whole @ rest, case, rest, np.ones(len(kept))), rest, atol=1e-6)


def test_rigid_between_ignores_what_weighs_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    m = maps_of(np.array([[0.4, 0.1, -0.7, 3.0, 4.0, 5.0]]), np.zeros(3))[0]
    y = x @ m[:3, :3].T + m[:3, 3]
    y[:5] += 30
    np.testing.assert_allclose(rigid_between(x, y, np.r_[np.zeros(5), np.ones(45)]), m, atol=1e-9)


def test_six_numbers_and_back() -> None:
    poses, about = np.random.default_rng(1).uniform(-1, 1, (7, 6)), np.array([10.0, -20.0, 30.0])
    maps = maps_of(poses, about)
    np.testing.assert_allclose(six(maps, about), poses, atol=1e-12)
    turn = Rotation.from_rotvec(poses[2, :3]).as_matrix()
    x = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(maps[2, :3, :3] @ x + maps[2, :3, 3], turn @ (x - about) + about + poses[2, 3:])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_lies_where_its_stack_has_it(axis: int) -> None:
    """Cut along any axis of an oblique, mirrored lattice: every pixel keeps its place in the world and its value."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix() * [-1.2, 0.9, 3.0]
    affine[:3, 3] = [7.0, -3.0, 5.0]
    grid = Grid((8, 9, 7), affine)
    data = np.random.default_rng(0).normal(size=grid.shape)
    case = Slices.of([Stack(Volume(data, grid), 3.0, through=axis)], [None])
    assert len(case.slices) == grid.shape[axis]
    for s in case.slices:
        index = np.stack(np.meshgrid(*map(np.arange, s.values.shape), indexing="ij"), -1)
        world = s.image.grid.world(np.concatenate([index, np.zeros_like(index[..., :1])], -1))
        np.testing.assert_allclose(world, np.take(grid.world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)), s.order, axis))
        np.testing.assert_allclose(s.values, np.take(data, s.order, axis), rtol=1e-5)


def test_coarser_pixels_lie_in_the_middle_of_those_they_average() -> None:
    grid = Grid.from_spacing((7, 9, 6), (1.0, 1.5, 4.0), (3, 4, 5))
    x = grid.points()
    linear = Volume(2 * x[..., 0] + 3 * x[..., 1], grid)
    case = Slices.of([Stack(linear, 4.0, through=2)], [None])
    for s in case.coarser(3).slices:
        at = s.image.grid.points()[:, :, 0]
        full = s.values[:2, :]
        torch.testing.assert_close(full, (2 * at[..., 0] + 3 * at[..., 1])[:2], rtol=1e-5, atol=1e-4)
    assert case.coarser(3).slices[0].values.shape == (3, 3)


def test_moved_slices_carry_their_poses() -> None:
    case, kept = case_of(shaken(0, 0))
    poses = np.stack(shaken(10, 5))[kept]
    np.testing.assert_allclose(case.moved(poses).affines, poses @ case.affines)
    assert torch.equal(case.moved(poses).slices[3].values, case.slices[3].values)


def test_masks_choose_what_counts() -> None:
    stacks = scanned(shaken(0, 0))
    nothing = Volume(torch.zeros(4, 4, 4), Grid.from_spacing((4,) * 3, 1.0, [100] * 3))
    with pytest.raises(InputError, match="no slice of stack 's0'"):
        Slices.of(stacks, [ball(), nothing, ball()])
    with pytest.raises(InputError, match="too few"):
        Slices.of([Stack(Volume(s.volume.data[..., :1] * torch.arange(1.0, 3.0), Grid((24, 24, 2), s.volume.grid.affine)), 4.0) for s in stacks[:1]],
                  [None])
    case, _ = case_of(shaken(0, 0))
    assert np.linalg.norm(case.points(), axis=1).max() < 23.5


def test_the_system_is_its_own_transpose() -> None:
    case, found, *_ = found_of(4.0, 2.0, (5, 17, 30))
    system = PlaneSystem(case, found)
    rng = torch.Generator().manual_seed(0)
    c, y = torch.randn(system.lattice.shape, generator=rng), torch.randn(len(system.value), generator=rng)
    left = float((system.apply(c)[0].double() * y).sum())
    assert left == pytest.approx(float((c.double() * system.adjoint([y])).sum()), rel=1e-3, abs=1e-2)
    spoilt = system.plane == int(np.flatnonzero(found.worth == 0)[0])
    assert float(system.apply(c)[0][spoilt].abs().max()) == 0


def test_an_alternation_can_stop_and_go_on() -> None:
    case, _ = case_of(shaken(4, 2))
    rest = np.tile(np.eye(4), (len(case.slices), 1, 1))
    level = Level.of_spacing(case, 4.0, rest)
    straight, first, second = (Alternation(level, Found.at(rest), rest) for _ in range(3))
    for _ in range(2):
        straight.step()
    first.step()
    second.load_state_dict(first.state_dict())
    second.step()
    assert torch.equal(straight.poses, second.poses) and torch.equal(straight.c, second.c)


def test_a_lattice_is_grown_by_whole_voxels() -> None:
    grid = Grid.from_spacing((5, 6, 7), 2.0, (1, 2, 3))
    wide, inner = covering(grid, np.array([[-3.2, 4.0, 5.0], [5.0, 25.0, 5.0]]), 1.0)
    assert wide.crop([s.start for s in inner], [s.stop - s.start for s in inner]).same_as(grid)
    low, high = wide.world(np.zeros(3)), wide.world(np.array(wide.shape) - 1.0)
    assert (low <= [-4.2, 2, 3]).all() and (high >= [9, 26, 15]).all()


def test_doubt_falls_on_what_does_not_fit() -> None:
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(20), 200)
    residual = rng.normal(0, 1, len(of))
    residual[of == 7] = rng.uniform(-30, 30, 200)
    residual[::50] = 25
    pixels, slices = believed(residual, of, 20)
    assert slices[7] < 0.1 and np.delete(slices, 7).min() > 0.9
    good = (of != 7) & (np.arange(len(of)) % 50 != 0)
    assert pixels[::50].max() < 0.01 and np.median(pixels[good]) > 0.9
    assert believed(rng.normal(0, 1, len(of)), of, 20)[1].min() == 1


def test_slices_are_written_and_read(tmp_path: Path) -> None:
    case, kept = case_of(shaken(0, 0))
    placed = case.moved(np.stack(shaken(10, 5))[kept]).slices
    masks = [Volume(s.mask.float()[:, :, None], s.image.grid) for s in placed]
    rows = [{"stack": s.stack, "order": s.order, "thickness_mm": "4"} for s in placed]
    folder = tmp_path / "slices"
    for _ in range(2):  # a folder of slices is replaced
        write_slices(folder, [s.image for s in placed], [4.0] * len(placed), masks, rows)
    images, read, table = read_slices(folder)
    for s, image, mask, row in zip(placed, images, read, table, strict=True):
        np.testing.assert_allclose(image.grid.affine[:3, [0, 1, 3]], s.image.grid.affine[:3, [0, 1, 3]], atol=1e-4)
        assert image.grid.spacing[2] == pytest.approx(4.0, abs=1e-4)
        assert torch.allclose(image.data, s.image.data) and mask is not None and torch.equal(mask.data[0, :, :, 0] > 0.5, s.mask)
        assert (row["stack"], row["order"]) == (str(s.stack), str(s.order))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["slices"]
    (folder / "thesis.doc").write_text("")
    with pytest.raises(OutputError, match="other files"):
        write_slices(folder, [placed[0].image], [4.0], [None], rows[:1])


def test_a_folder_that_is_no_folder_of_slices(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no slices"):
        read_slices(tmp_path)
    from medfields.io import write_nifti

    write_nifti(Volume(torch.rand(3, 3, 2), Grid.from_spacing((3, 3, 2), 1.0)), tmp_path / "a-1.nii.gz")
    with pytest.raises(GeometryError, match="has 2 slices"):
        read_slices(tmp_path)
    write_nifti(Volume(torch.rand(3, 3, 1), Grid.from_spacing((3, 3, 1), 1.0)), tmp_path / "b-1.nii.gz")
    with pytest.raises(FileError, match="same number"):
        read_slices(tmp_path)


def _dof(path: Path) -> np.ndarray:
    """A rigid .dof file of MIRTK: the map from the subject to the stack is Rx Ry Rz x + t, angles in degrees, turning the other way round."""
    tx, ty, tz, rx, ry, rz = np.frombuffer(path.read_bytes()[12:], ">f8")
    m = np.eye(4)
    for axis, angle in (("x", rx), ("y", ry), ("z", rz)):
        m[:3, :3] = m[:3, :3] @ Rotation.from_euler(axis, -angle, degrees=True).as_matrix()
    m[:3, 3] = tx, ty, tz
    return m


def test_stacks_of_svrtk_are_laid_where_their_transforms_say() -> None:
    try:
        folder = data_folder() / "d_fetal/svrtk"
    except FileError as error:
        pytest.skip(str(error))
    mask = read_volume(folder / "mask-for-stack-2.nii.gz")
    numbers = (2, 3, 5)
    stacks = [Stack.read(folder / f"simulated-stack-d{n}.nii.gz") for n in numbers]
    case = Slices.of(stacks, [mask] * 3, spacing=1.25)
    found = aligned(case, Run(seed=0), coarsest(case))
    mine = [found[np.flatnonzero(case.stack == n)[0]] for n in range(3)]
    theirs = [np.linalg.inv(_dof(folder / f"global-transformation{n}.dof")) for n in numbers]
    x = mask.grid.points()[mask.data[0] > 0.5].double().numpy()[::20]
    for n in (1, 2):
        ours, true = (np.linalg.inv(m[n]) @ m[0] for m in (mine, theirs))
        off = np.linalg.norm(x @ (ours - true)[:3, :3].T + (ours - true)[:3, 3], axis=1).mean()
        before = np.linalg.norm(x @ (true - np.eye(4))[:3, :3].T + true[:3, 3], axis=1).mean()
        assert off < 1.25 < before  # a voxel; slices moved within their stacks too


def test_where_no_slice_looks_the_subject_is_not_sure() -> None:
    case = Slices.toy()
    across = case.centres()[np.arange(len(case.slices)), np.array([2, 0, 1])[case.stack]]
    found = Found.at(np.tile(np.eye(4), (len(case.slices), 1, 1)))
    whole, part = (uncertainty(case, replace(found, worth=worth), Run(seed=0)) for worth in (found.worth, (across < 0).astype(float)))
    ratio, x = (part.data / whole.data)[0], case.grid.points()
    inside = x.abs().amax(-1) < 9
    assert whole.grid.same_as(case.grid)
    assert float(ratio[inside & (x.amin(-1) > 3)].mean()) > 1.3 * float(ratio[inside & (x.amax(-1) < -3)].mean())


def test_a_slice_that_lies_wrong_makes_its_place_unsure() -> None:
    case = Slices.toy()
    found = Found.at(np.tile(np.eye(4), (len(case.slices), 1, 1)))
    bad = next(n for n, s in enumerate(case.slices) if s.stack == 0 and s.order == 3)
    poses = found.poses.copy()
    poses[bad, :3, 3] += [4.0, 4.0, 0.0]  # in its plane
    right, wrong = (uncertainty(case, f, Run(seed=0)).data[0] for f in (found, replace(found, poses=poses)))
    z = case.grid.points()[..., 2] - float(case.slices[bad].image.grid.affine[2, 3])
    near, far = z.abs() < 2, z.abs() > 6
    assert float((wrong / right)[near].mean()) > 1.1 * float((wrong / right)[far].mean())


def test_beyond_all_masks_nothing_was_measured() -> None:
    case = Slices.toy()
    middle = [replace(s, mask=s.mask & (torch.as_tensor(s.image.grid.world(np.stack(np.meshgrid(*map(np.arange, s.mask.shape), [0], indexing="ij"),
              -1))).norm(dim=-1)[:, :, 0] < 8)) for s in case.slices]
    case = replace(case, slices=tuple(s for s in middle if int(s.mask.sum()) >= 16))
    still, worth = np.tile(np.eye(4), (len(case.slices), 1, 1)), np.ones(len(case.slices))
    far = case.grid.points().norm(dim=-1)
    seen = case.reached(still, worth)
    assert seen[far < 7].all() and not seen[far > 11].any()
    aside = still.copy()
    aside[:, 0, 3] += 6.0
    assert (case.reached(aside, worth) != seen).any() and case.reached(still, (case.stack == 0).astype(float)).sum() < seen.sum()
