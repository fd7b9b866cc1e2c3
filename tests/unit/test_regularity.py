"""Penalties on deformations: closed forms on affine and quadratic displacements, invariances, and gradients where space folds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from io_samples import rotation
from medfields.fields import Affine, BSpline, displacement
from medfields.losses import regularity as r
from medfields.space import Box, Grid

EYE = torch.eye(3, dtype=torch.float64)
TURN = torch.tensor(rotation((0.4, -0.7, 1.1)))
SHEAR = torch.tensor([[1.2, 0.1, -0.2], [0.0, 0.9, 0.3], [0.1, -0.1, 1.1]], dtype=torch.float64)
PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "volume": r.volume_change, "symmetric": r.symmetric_volume_change, "fold": r.fold, "conformal": r.conformal, "hyperelastic": r.hyperelastic,
    "diffusion": lambda f: r.diffusion(f - EYE.to(f)), "variation": lambda f: r.variation(f - EYE.to(f))}


def diagonal(*by: float) -> Tensor:
    return torch.diag(torch.tensor(by, dtype=torch.float64))[None]


def many(n: int = 20, size: float = 0.2, seed: int = 0) -> Tensor:
    """Gradients of deformations, none folded."""
    return EYE + size * torch.randn(n, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_determinant_and_cofactor() -> None:
    f = many(size=1.0)
    torch.testing.assert_close(r.determinant(f), torch.linalg.det(f))
    torch.testing.assert_close(r.cofactor(f), torch.linalg.det(f)[:, None, None] * torch.linalg.inv(f).mT)
    flat = diagonal(2, 3, 0)
    assert r.determinant(flat) == 0 and torch.equal(r.cofactor(flat), diagonal(0, 0, 6))


@pytest.mark.parametrize("name", PENALTIES)
def test_nothing_moved_costs_nothing(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        assert abs(float(PENALTIES[name](EYE.to(dtype).expand(4, 3, 3)))) <= 1e-9


@pytest.mark.parametrize("name", PENALTIES)
def test_means_over_points(name: str) -> None:
    f = torch.cat([many(5), -many(3, seed=1)])  # some of them folded
    each = torch.stack([PENALTIES[name](one[None]) for one in f])
    torch.testing.assert_close(PENALTIES[name](f), each.mean())
    torch.testing.assert_close(PENALTIES[name](f.reshape(2, 4, 3, 3)), each.mean())
    assert (each >= 0).all() and each.sum() > 0


def test_volume() -> None:
    """det = 6, 1/2 and -1."""
    f = torch.cat([diagonal(1, 2, 3), diagonal(0.5, 1, 1), diagonal(1, -1, 1)])
    torch.testing.assert_close(r.volume_change(f), torch.tensor((5 + 0.5 + 2) / 3, dtype=torch.float64))
    torch.testing.assert_close(r.fold(f), torch.tensor(1 / 3, dtype=torch.float64))
    assert r.fold(f[:2]) == 0
    torch.testing.assert_close(r.fold(diagonal(-2, 2, 1)), torch.tensor(4.0, dtype=torch.float64))


def test_symmetric_volume_change() -> None:
    for by in (2.0, 5.0, 8.0):
        wanted = torch.tensor(by + 1 / by - 2, dtype=torch.float64)
        torch.testing.assert_close(r.symmetric_volume_change(diagonal(by, 1, 1)), wanted)
        torch.testing.assert_close(r.symmetric_volume_change(diagonal(1, 1 / by, 1)), wanted)
    # below 0.1 the tangent there: 8.1 - 99 (d - 0.1)
    for d in (0.05, 0.0, -2.0):
        torch.testing.assert_close(r.symmetric_volume_change(diagonal(d, 1, 1)), torch.tensor(8.1 - 99 * (d - 0.1), dtype=torch.float64))


def test_diffusion_and_variation() -> None:
    slope = torch.cat([SHEAR[None] - EYE, diagonal(3, 0, 4)])
    one = float((SHEAR - EYE).square().sum())
    torch.testing.assert_close(float(r.diffusion(slope)), (one + 25) / 2)
    torch.testing.assert_close(float(r.variation(slope, 1e-9)), (one**0.5 + 5) / 2)
    torch.testing.assert_close(float(r.variation(diagonal(3, 0, 4), 12.0)), 1.0)


def test_conformal() -> None:
    """(|f|^2 / 3)^(3/2) / det - 1 of diag(1, 1, 2) is 2^(3/2) / 2 - 1; of a similarity it is zero, whatever its scale."""
    torch.testing.assert_close(float(r.conformal(diagonal(1, 1, 2), 1.0, 0.0)), 2**0.5 - 1)
    torch.testing.assert_close(float(r.conformal(diagonal(1, 1, 2), 1.0, 0.0, power=2.0)), (2**0.5 - 1) ** 2)
    torch.testing.assert_close(float(r.conformal(diagonal(1, 1, 2), 0.0, 3.0)), 1.5)
    for scale in (0.3, 1.0, 1.7):
        assert float(r.conformal(scale * TURN[None], 1.0, 0.0)) <= 1e-12
        torch.testing.assert_close(float(r.conformal(scale * TURN[None], 1.0, 1.0)), scale**3 + scale**-3 - 2, rtol=1e-9, atol=1e-9)
    assert float(r.conformal(-0.5 * TURN[None], 1.0, 0.0)) > 10  # a reflection is none


def test_hyperelastic() -> None:
    """diag(1, 1, 2): length 1/2, areas (2, 2, 1) so 2 (4 - 1)^2, volume 1/4."""
    f = diagonal(1, 1, 2)
    torch.testing.assert_close(float(r.hyperelastic(f, 1, 0, 0)), 0.5)
    torch.testing.assert_close(float(r.hyperelastic(f, 0, 1, 0)), 18.0)
    torch.testing.assert_close(float(r.hyperelastic(f, 0, 0, 1)), 0.25)
    torch.testing.assert_close(float(r.hyperelastic(f, 2, 3, 4)), 1 + 54 + 1.0)
    assert float(r.hyperelastic(diagonal(1, 1, 0.5), 0, 1, 0)) == 0  # areas may shrink
    torch.testing.assert_close(float(r.hyperelastic(diagonal(0.5, 1, 1), 0, 0, 1)), float(r.hyperelastic(f, 0, 0, 1)))  # 1/d costs as d
    # a shear of 1 along x turns the face across y: |columns of cof|^2 = 2, 1, 1
    torch.testing.assert_close(float(r.hyperelastic(torch.tensor([[[1.0, 1, 0], [0, 1, 0], [0, 0, 1]]], dtype=torch.float64), 0, 1, 0)), 1.0)


@pytest.mark.parametrize("name", PENALTIES)
def test_axes_may_be_turned(name: str) -> None:
    f, cost = many(), PENALTIES[name]
    if name != "hyperelastic":  # whose areas are those of the axes
        torch.testing.assert_close(cost(TURN @ f @ TURN.mT), cost(f))
    swap = EYE[[2, 0, 1]] * torch.tensor([1, -1, -1])
    torch.testing.assert_close(cost(swap @ f @ swap.mT), cost(f))
    if name in ("volume", "symmetric", "fold", "conformal"):  # a rotation of the body costs nothing
        torch.testing.assert_close(cost(TURN @ f), cost(f))
    assert abs(float(cost(f.mT @ diagonal(1.1, 0.9, 1.2)) - cost(f))) > 1e-9 or name == "fold"


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("f", [EYE[None], diagonal(1, 1, 0), diagonal(1, 1, -1), diagonal(0, 0, 0), diagonal(1, 1, 1e-3), diagonal(1, 1, 1e-9),
                               diagonal(-5, 4, 3), 1.3 * TURN[None]],
                         ids=["one", "flat", "mirror", "zero", "barrier", "squeezed", "folded", "similar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite(name: str, f: Tensor, dtype: torch.dtype) -> None:
    f = f.to(dtype).clone().requires_grad_()
    value = PENALTIES[name](f)
    assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, f)[0]).all()


@pytest.mark.parametrize("name", ["symmetric", "fold", "conformal", "hyperelastic"])
def test_folds_are_pushed_open(name: str) -> None:
    """A step down the gradient makes a negative determinant larger."""
    for f in (diagonal(1.1, 0.9, -0.3), diagonal(1, 1, -1.2) @ TURN):
        f = f.clone().requires_grad_()
        slope = torch.autograd.grad(PENALTIES[name](f), f)[0]
        assert r.determinant(f - 1e-3 * slope / slope.norm()) > r.determinant(f)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_are_true(name: str) -> None:
    assert torch.autograd.gradcheck(PENALTIES[name], many(4).requires_grad_())


@pytest.mark.parametrize("cost", [r.symmetric_volume_change, lambda f: r.hyperelastic(f, 0, 0, 1), lambda f: r.conformal(f, 0, 1)],
                         ids=["symmetric", "hyperelastic", "conformal"])
def test_barriers_go_on_as_straight_lines(cost: Callable[[Tensor], Tensor]) -> None:
    at = [float(cost(diagonal(d, 1, 1))) for d in (5e-4, 0.0, -1.0, -2.0)]
    slope = at[3] - at[2]
    torch.testing.assert_close([at[2] - at[1], (at[1] - at[0]) / 5e-4], [slope, slope], rtol=1e-6, atol=0)
    assert slope > 50


# --- of displacements ---

BOX = Box((-30, -20, -10), (30, 20, 50))


def test_affine_displacements() -> None:
    warp = displacement(Affine.of(torch.block_diag(SHEAR, torch.ones(1, 1, dtype=torch.float64)).numpy()), BOX)
    _, slope, h = warp.value_jacobian_hessian(BOX.random(9))
    torch.testing.assert_close(float(r.volume_change(slope + torch.eye(3))), float((torch.linalg.det(SHEAR) - 1).abs()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(float(r.diffusion(slope)), float((SHEAR - EYE).square().sum()), rtol=1e-5, atol=1e-6)
    assert r.bending(h) == 0


@pytest.mark.parametrize("spacing", [(5.0, 5.0, 5.0), (4.0, 6.0, 8.0)])
def test_bending_of_a_quadratic_displacement(spacing: tuple[float, float, float]) -> None:
    """u = (0.01 x^2, 0.02 x y, 0) mm: second derivatives 0.02, and 0.02 twice, so 12e-4 in 1/mm^2, whatever the lattice and the box."""
    grid = Grid.from_spacing((20, 16, 16), spacing, (-45, -40, -30))
    warp = displacement(BSpline.on(grid, 2), BOX)
    x = grid.points().double()
    exact = torch.stack([0.01 * x[..., 0] ** 2, 0.02 * x[..., 0] * x[..., 1], 0 * x[..., 0]])
    exact[0] -= 0.01 * spacing[0] ** 2 / 4  # a quadratic B-spline adds h^2 / 8 f'' to the coefficients
    with torch.no_grad():
        warp.net.coefficients.copy_(exact / warp.radius[0])
    at = Box((-25, -15, -5), (10, 15, 30)).random(30, torch.Generator().manual_seed(0))
    value, slope, h = (t.detach() for t in warp.value_jacobian_hessian(at))
    torch.testing.assert_close(value[:, 0], 0.01 * at[:, 0] ** 2, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(float(r.bending(h)), 12e-4, rtol=1e-3, atol=0)
    steep = (0.02 * at[:, 0]) ** 2 + (0.02 * at[:, 1]) ** 2 + (0.02 * at[:, 0]) ** 2
    torch.testing.assert_close(r.diffusion(slope), steep.mean(), rtol=1e-3, atol=1e-4)
    turned = torch.einsum("ai,nijk,bj,ck->nabc", TURN.float(), h, TURN.float(), TURN.float())
    torch.testing.assert_close(r.bending(turned), r.bending(h))
