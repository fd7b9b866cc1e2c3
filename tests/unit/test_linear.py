"""Quadratic problems on a lattice."""

import numpy as np
import pytest
import torch

from medfields.cases import Stack, Stacks
from medfields.operators import SliceOperator
from medfields.solve.linear import EdgePreserving, SliceSystem, TotalVariation, conjugate_gradients, gradient, gradient_adjoint, padded
from medfields.space import Grid, Volume


def test_gradient_and_its_adjoint():
    x, p = torch.randn(5, 6, 7), torch.randn(3, 5, 6, 7)
    assert torch.allclose((gradient(x) * p).sum(), (x * gradient_adjoint(p)).sum(), atol=1e-4)
    assert gradient(torch.ones(4, 4, 4)).abs().max() == 0


def test_conjugate_gradients_solve_a_dense_system():
    a = torch.randn(30, 30, dtype=torch.float64)
    a = a @ a.T + 10 * torch.eye(30, dtype=torch.float64)
    want = torch.randn(30, dtype=torch.float64)
    assert torch.allclose(conjugate_gradients(lambda v: a @ v, a @ want, torch.zeros(30, dtype=torch.float64), 60), want, atol=1e-3)


def test_fast_diagonalisation_inverts_the_normal_matrix_in_one_step():
    """Where all stacks see the whole lattice; here the lattice is cut down to what they see."""
    case = Stacks.toy(0, size=40)
    system = SliceSystem(case, case.grid.crop((8, 8, 8), (23, 23, 23)))
    assert all(o.inside.any() for o in system.operators)
    guess = system.preconditioner(0.1, 0.05)
    c = torch.randn(system.lattice.shape)
    assert torch.allclose(guess(system.normal(c, smooth=0.1, near=0.05)), c, atol=2e-3)


def test_preconditioner_changes_the_way_not_the_answer():
    case = Stacks.toy(0)
    system = SliceSystem(case, padded(case)[0])
    b = system.adjoint(system.y)
    plain, fast = (conjugate_gradients(lambda v: system.normal(v, 0.1), b, torch.zeros_like(b), 300, p)
                   for p in (None, system.preconditioner(0.1)))
    assert torch.allclose(plain, fast, atol=5e-3)


def test_oblique_stacks_fall_back_to_iterations():
    case = Stacks.toy(0)
    affine = case.stacks[0].volume.grid.affine.copy()
    affine[:3, :3] = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]]) @ affine[:3, :3]
    turned = Stack(Volume(case.stacks[0].volume.data, Grid(case.stacks[0].volume.grid.shape, affine)), 4.0, through=2)
    system = SliceSystem(Stacks((turned, case.stacks[1]), case.grid), padded(case)[0])
    assert system.preconditioner(0.2) is None
    c = torch.randn(system.lattice.shape)
    b = system.normal(c, smooth=0.2, near=0.2)
    assert torch.allclose(system.solver(0.2, 0.2, steps=80)(b, torch.zeros_like(b)), c, atol=2e-2)


def test_padding_holds_every_profile():
    case = Stacks.toy(0)
    wide, inner = padded(case)
    assert all(w > n for w, n in zip(wide.shape, case.grid.shape, strict=True))
    assert np.allclose(wide.crop([s.start for s in inner], case.grid.shape).affine, case.grid.affine)


@pytest.mark.parametrize("contrasts", [1, 2])
def test_total_variation_lowers_its_objective(contrasts):
    case = Stacks.toy(0, contrasts)
    lattice = padded(case)[0]
    systems = [SliceSystem(case.only(c), lattice) for c in case.contrasts]
    weight = 0.01

    def objective(x):
        data = sum(((a - y) ** 2).sum() for s, c in zip(systems, x, strict=True) for a, y in zip(s.apply(c), s.y, strict=True)) / 2
        return float(data + weight * torch.stack([gradient(c) for c in x]).square().sum((0, 1)).sqrt().sum())

    state = TotalVariation(systems, weight)
    start = objective(state.x)
    for _ in range(100):
        state.step()
    best = objective(state.x)
    assert best < 0.97 * start
    noise = torch.randn(state.x.shape, generator=torch.Generator().manual_seed(0))
    assert all(objective(state.x + e * noise) > best for e in (0.003, -0.003))


def test_a_single_slice_is_rebuilt_on_its_own_grid():
    grid = Grid.from_spacing((8, 8, 1), (1, 1, 5))
    lattice, inner = padded(Stacks((Stack(Volume(torch.rand(8, 8, 1), grid), 5.0),), grid))
    assert SliceOperator(lattice, grid, 2, "gauss", 5.0).shape == (8, 8, 1) and lattice.crop([s.start for s in inner], grid.shape).same_as(grid)


def test_lagged_diffusivity_reaches_the_least_of_its_objective():
    case = Stacks.toy(0)
    system, weight, edge = SliceSystem(case, padded(case)[0]), 0.05, 0.1
    state = EdgePreserving(system, weight, edge, torch.zeros(system.lattice.shape), steps=40)
    for _ in range(30):
        state.step()
    x = state.x.clone().requires_grad_()
    misfit = sum((a - y).square().sum() for a, y in zip(system.apply(x), system.y, strict=True)) / 2
    cost = misfit + weight * edge**2 * ((1 + gradient(x).square().sum(0) / edge**2).sqrt() - 1).sum()
    (slope,) = torch.autograd.grad(cost, x)
    assert float(slope.norm()) < 2e-3 * float(system.adjoint(system.y).norm()) and float(state.change) < 1e-3
