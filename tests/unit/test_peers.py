"""Other people's registration: which world they are told of, and that what they give back is ours in sign, axis and size."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medfields.cases.pair import Pair, toy_motion
from medfields.classical.ants import ANTs
from medfields.classical.demons import Demons
from medfields.classical.greedy import Greedy
from medfields.classical.itk_bspline import ITKBSpline
from medfields.classical.syn import SyN
from medfields.errors import InputError, MissingExtra
from medfields.fields import Field
from medfields.solve import Method, Run
from medfields.solve.peers import itk_displacement, itk_image, registered, seen
from medfields.space import Grid, Volume

PEERS = [SyN, Greedy, ITKBSpline, Demons, ANTs]
SHIFT = np.array([2.0, -1.0, 1.5])


def oblique() -> Pair:
    """Blobs on two oblique, anisotropic lattices, one of them left-handed with its axes exchanged; F(x) = M(start(x + SHIFT))."""
    rng = np.random.default_rng(0)
    middle = np.array([40.0, -25.0, 100.0])
    turned = Rotation.from_euler("zyx", [30, -20, 15], degrees=True).as_matrix()
    centres, widths = rng.normal(0, 8, (40, 3)) + middle, rng.uniform(2.5, 4.5, 40)

    def image(x: np.ndarray) -> np.ndarray:
        return np.exp(-((x[..., None, :] - centres) ** 2).sum(-1) / (2 * widths**2)).sum(-1)

    def grid(axes: np.ndarray, shape: tuple[int, int, int], centre: np.ndarray) -> Grid:
        affine = np.eye(4)
        affine[:3, :3] = axes
        affine[:3, 3] = centre - axes @ ((np.array(shape) - 1) / 2)
        return Grid(shape, affine)

    axes = turned @ np.diag([-1.5, 2.0, 2.5])
    start = np.eye(4)
    start[:3, 3] = [100, -50, 7]
    fixed = grid(axes, (28, 22, 18), middle)
    moving = grid(axes[:, [1, 0, 2]] * [1, -1, 1], (24, 30, 19), middle + np.array([1, -1, -1]))
    x, y = fixed.points().numpy().astype(float), moving.points().numpy().astype(float)
    mask = Volume((np.linalg.norm(x - middle, axis=-1) < 13).astype(np.float32), fixed)
    return Pair(Volume(image(x + SHIFT), fixed), Volume(image(y), Grid(moving.shape, start @ moving.affine)), mask, start=start)


def answer(peer: type[Method], case: Pair) -> Field:
    try:
        warp = peer.for_tests().solve(case, Run())
    except MissingExtra as error:
        pytest.skip(str(error))
    assert isinstance(warp, Field)
    return warp


@torch.no_grad()
def errors(warp: Field, case: Pair, true: np.ndarray) -> tuple[float, float]:
    """Mean length of what is to be found, and of what is left of it, in the mask."""
    left = warp(case.points()).numpy() - true
    return float(np.linalg.norm(true, axis=-1).mean()), float(np.linalg.norm(left, axis=-1).mean())


@pytest.mark.parametrize("peer", PEERS)
def test_it_finds_the_breath_of_the_toy(peer: type[Method]) -> None:
    case = Pair.toy()
    warp = answer(peer, case)
    before, after = errors(warp, case, toy_motion(case.points().numpy()))
    assert after < 0.3 * before
    assert warp.grid is case.grid and warp.unit == "mm"


@pytest.mark.parametrize("peer", PEERS)
def test_it_finds_a_shift_between_oblique_lattices(peer: type[Method]) -> None:
    case = oblique()
    warp = answer(peer, case)
    before, after = errors(warp, case, np.broadcast_to(SHIFT, (len(case.points()), 3)))
    assert after < 0.5 * before
    with torch.no_grad():
        assert np.abs(warp(case.points()).mean(0).numpy() - SHIFT).max() < 0.5


@pytest.mark.parametrize(("peer", "package"), [
    (SyN, "dipy.align.imwarp"), (Greedy, "picsl_greedy"), (ITKBSpline, "SimpleITK"), (Demons, "SimpleITK")])
def test_a_missing_program_is_named(peer: type[Method], package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"medfields\[peers\]"):
        peer.for_tests().solve(Pair.toy(), Run())


def test_ants_is_asked_for_by_its_own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDFIELDS_ANTS_PYTHON", raising=False)
    with pytest.raises(MissingExtra, match="MEDFIELDS_ANTS_PYTHON"):
        ANTs.for_tests().solve(Pair.toy(), Run())
    monkeypatch.setenv("MEDFIELDS_ANTS_PYTHON", "/no/such/python")
    with pytest.raises(InputError, match="No such file"):
        ANTs.for_tests().solve(Pair.toy(), Run())
    monkeypatch.setenv("MEDFIELDS_ANTS_PYTHON", sys.executable)  # it has no ANTs
    with pytest.raises(InputError, match="No module named 'ants'"):
        ANTs.for_tests().solve(Pair.toy(), Run())


def test_what_goes_to_ants_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nimport numpy as np\nfolder = sys.argv[-1] + '/'\ngiven = np.load(folder + 'images.npz')\n"
        "assert json.load(open(folder + 'settings.json'))['type_of_transform'] == 'SyNOnly' and os.environ['ANTS_RANDOM_SEED'] == '6'\n"
        "assert 'mask' in given and 'moving_mask' not in given\n"
        "i = np.moveaxis(np.indices(given['fixed'].shape), 0, -1)\n"
        "a = given['fixed_affine']\nnp.save(folder + 'u.npy', 0.1 * (i @ a[:3, :3].T + a[:3, 3]))\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("MEDFIELDS_ANTS_PYTHON", str(stand_in))
    case = Pair.toy()
    warp = ANTs.for_tests().solve(case, Run(seed=5))
    x = case.points()[::50]
    torch.testing.assert_close(warp(x), 0.1 * x, atol=1e-4, rtol=1e-4)


def test_a_program_that_fails_says_so_in_one_line() -> None:
    def fails() -> torch.Tensor:
        raise RuntimeError("somewhere.cxx:7:\nno overlap")

    case = Pair.toy()
    with pytest.raises(InputError, match="program failed: no overlap"):
        registered(Run(), case, seen(case, 5.0), "program", fails)


@pytest.mark.parametrize("steps", [(), (0, 0), (5, -1)])
def test_no_steps_are_refused(steps: tuple[int, ...]) -> None:
    for peer in (SyN, Greedy, Demons, ANTs):
        with pytest.raises(InputError, match="steps"):
            peer(steps=steps).solve(Pair.toy(), Run())


def test_slices_are_refused() -> None:
    flat = Grid((8, 8, 1), np.eye(4))
    image = Volume(np.random.default_rng(0).random(flat.shape), flat)
    with pytest.raises(InputError, match="volumes only"):
        seen(Pair(image, image), 5.0)


def test_what_is_seen_is_cut_scaled_and_painted() -> None:
    toy = Pair.toy()
    plain = seen(toy, 4.0)
    assert plain.grid.shape == (20, 20, 20) and plain.moving.grid.same_as(toy.moving.grid)  # the moving image has no mask
    small = Volume((toy.grid.points().norm(dim=-1) < 9).float(), toy.grid)
    both = seen(toy.replaced(mask=small, moving_mask=small), 4.0)
    assert both.grid.shape == (12, 12, 12)  # 8 voxels across, and 2 of 2 mm on each side
    assert both.mask is not None
    torch.testing.assert_close(both.grid.points(), toy.grid.points()[4:16, 4:16, 4:16])
    outside = both.fixed.data[both.mask.data < 0.5]
    assert torch.equal(outside, outside[:1].expand_as(outside)) and 0 < float(outside[0]) < 1
    inside = both.fixed.data[both.mask.data > 0.5]
    assert float(inside.min()) == 0 and float(inside.max()) == 1
    assert torch.equal(both.moving.data[both.mask.data < 0.5], outside)


def test_a_sheared_start_is_read_on_an_upright_lattice() -> None:
    toy, start = Pair.toy(), np.eye(4)
    start[0, 1] = 0.2
    sheared = toy.replaced(start=start)
    moving = seen(sheared, 4.0).moving
    d = moving.grid.directions
    np.testing.assert_allclose(d.T @ d, np.eye(3), atol=1e-9)
    x = torch.tensor([[0.0, 0.0, 0.0], [5.0, 3.0, -4.0], [-6.0, 2.0, 1.0]])
    low, high = np.percentile(sheared.aligned.on(moving.grid).data.numpy(), [0.5, 99.5])
    torch.testing.assert_close(moving(x) * (high - low) + low, sheared.aligned(x).float(), atol=0.1, rtol=0)


def test_itk_sees_our_world_and_its_vectors_are_ours() -> None:
    sitk = pytest.importorskip("SimpleITK")
    volume = oblique().fixed
    image = itk_image(sitk, volume)
    index = (3, 17, 5)
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), volume.grid.world(np.array(index)), atol=1e-6)
    assert image.GetPixel(index) == float(volume.data[0, 3, 17, 5])
    u = itk_displacement(sitk, sitk.Compose([image, image * 2, image * 3]))
    torch.testing.assert_close(u, torch.cat([volume.data, 2 * volume.data, 3 * volume.data]))


@pytest.mark.skipif("MEDFIELDS_ANTS_PYTHON" not in os.environ, reason="MEDFIELDS_ANTS_PYTHON names no Python with ANTs")
def test_the_same_seed_gives_the_same_bytes_of_ants() -> None:
    first, second = (answer(ANTs, Pair.toy()).on(Pair.toy().grid).volume().data for _ in range(2))
    assert torch.equal(first, second)
