"""Slices in space: the compiled loops against their twin, the derivative against differences, the transpose against the forward map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medfields.kernels.planes import planes_gather, planes_gather_torch, planes_scatter, planes_slope
from medfields.operators.planes import PlaneOperator
from medfields.operators.slices import SliceOperator
from medfields.space import Grid


def _scene():  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    c = torch.tensor(rng.normal(size=(9, 8, 7)), dtype=torch.float32)
    at = torch.tensor(rng.integers(0, 6, (3000, 2)), dtype=torch.float32)
    plane = torch.tensor(rng.integers(0, 4, 3000), dtype=torch.int32)
    m, t, d = rng.normal(0, 0.5, (4, 3, 2)), rng.uniform(2, 5, (4, 3)), rng.normal(0, 1, (4, 3))
    z, w = np.linspace(-1, 1, 5), np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    return c, (at, plane, m, t, d, z, w)


def test_planes_agree_with_the_twin() -> None:
    c, rest = _scene()
    value = planes_gather_torch(c, *rest)
    torch.testing.assert_close(planes_gather(c, *rest), value, rtol=1e-4, atol=1e-4)
    shift = torch.zeros(len(value), 3, requires_grad=True)
    slope = torch.autograd.grad(planes_gather_torch(c, *rest, shift=shift).sum(), shift)[0]
    both = planes_slope(c, *rest)
    torch.testing.assert_close(both[0], value, rtol=1e-4, atol=1e-4)
    # Rounding may put a node on the other side of a knot, where the slope of a linear spline jumps.
    assert (both[1] - slope).abs().quantile(0.999) < 1e-3


def test_planes_scatter_is_the_transpose() -> None:
    c, rest = _scene()
    y = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    left = float((planes_gather(c, *rest).double() * y).sum())
    assert left == pytest.approx(float((c.double() * planes_scatter(y, *rest, tuple(c.shape))).sum()), rel=1e-4, abs=1e-3)


def _turned(grid: Grid, poses: np.ndarray, backend: str, monkeypatch: pytest.MonkeyPatch) -> PlaneOperator:
    monkeypatch.setenv("MEDFIELDS_KERNELS", backend)
    lattice = Grid.from_spacing((30, 31, 29), 1.0, [-15, -15, -14])
    at = torch.stack(torch.meshgrid(torch.arange(grid.shape[0]), torch.arange(grid.shape[1]), indexing="ij"), -1).reshape(-1, 2).float()
    affines = np.stack([grid.crop((0, 0, k), (*grid.shape[:2], 1)).affine for k in range(grid.shape[2])])
    plane = torch.arange(grid.shape[2], dtype=torch.int32).repeat_interleave(len(at))
    return PlaneOperator(lattice, at.repeat(grid.shape[2], 1), plane, poses @ affines, "gauss", [3.0] * grid.shape[2])


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_slices_at_rest_are_the_stack(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing moved, slices measure what their stack does: an independent way to the same number."""
    turn = Rotation.from_rotvec([0.2, -0.3, 0.1]).as_matrix()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [1.1, 0.9, 3.0], turn @ [-5.0, -4.0, -3.0]
    grid = Grid((9, 8, 3), affine)
    operator = _turned(grid, np.tile(np.eye(4), (3, 1, 1)), backend, monkeypatch)
    c = torch.randn(operator.lattice.shape, generator=torch.Generator().manual_seed(1))
    walk = SliceOperator(operator.lattice, grid, 2, "gauss", 3.0, exact=False)
    expected = walk.apply(c).permute(2, 0, 1).reshape(-1)
    assert walk.inside.all()
    torch.testing.assert_close(operator.apply(c), expected, rtol=1e-4, atol=1e-4)
    y = torch.randn(len(expected), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(operator.adjoint(y), walk.adjoint(y.reshape(3, 9, 8).permute(1, 2, 0)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_the_slope_says_what_a_moved_slice_shows(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((9, 8, 3), np.diag([1.0, 1.0, 3.0, 1.0]) + np.array([[0, 0, 0, -4.3]] * 3 + [[0, 0, 0, 0]]))
    at_rest = _turned(grid, np.tile(np.eye(4), (3, 1, 1)), backend, monkeypatch)
    x = at_rest.lattice.points()
    c = torch.sin(x[..., 0] / 5) * torch.cos(x[..., 1] / 6) + (x[..., 2] / 8).square()
    value, slope = at_rest.slope(c)
    for axis in range(3):
        moved = np.tile(np.eye(4), (3, 1, 1))
        moved[:, axis, 3] = 0.2
        change = (_turned(grid, moved, backend, monkeypatch).apply(c) - value) / 0.2
        torch.testing.assert_close(slope[:, axis], change, rtol=0, atol=0.02)
    assert slope.abs().max() > 0.1
