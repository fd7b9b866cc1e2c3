"""The two ways to a projection against closed forms, against each other, and against where a pixel must lie."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfields.errors import InputError
from medfields.operators.projections import LineIntegral, OnGrid, Projector
from medfields.space import Box, Geometry, Grid

ANGLES = np.array([0.0, 0.7, 2.0, 4.4])
NEAR, FAR = 100.0, 150.0
UPRIGHT = np.eye(3)
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
VIEWS = {
    "parallel": Geometry.parallel(ANGLES, 56, 1.0, rows=56, offset=1.3),
    "cone": Geometry.cone(ANGLES, (56, 56), 1.6, NEAR, FAR),
    "half-fan": Geometry.cone(ANGLES, (56, 56), 1.6, NEAR, FAR, offset=(3.0, -8.0)),
    "arc": Geometry.cone(ANGLES, (56, 56), 1.6, NEAR, FAR, offset=(-2.0, 8.0), arc=True),
    "rolled, tilted helix": Geometry.cone(ANGLES, (56, 56), 1.6, NEAR, FAR, roll=0.2, tilt=0.15, rise=6.0),
}
FLAT = {"parallel": Geometry.parallel(ANGLES, 60, 1.0, offset=0.7), "fan": Geometry.fan(ANGLES, 60, 1.7, NEAR, FAR, offset=3.0),
        "arc": Geometry.fan(ANGLES, 60, 1.7, NEAR, FAR, offset=-3.0, arc=True)}


def lattice(shape: tuple[int, int, int], spacing: float | tuple[float, ...] = 1.0, turn: np.ndarray = UPRIGHT) -> Grid:
    """Centred near the isocentre, but not on it."""
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + ([0.3, -0.4, 0.0] if shape[2] == 1 else [0.3, -0.4, 0.2])
    return Grid(shape, affine)


LATTICES = {
    "upright": lattice((40, 40, 40)), "flipped, anisotropic": lattice((32, 44, 50), (-1.25, 0.9, 0.8)),
    "turned": lattice((40, 40, 40), turn=TURN), "turned, anisotropic": lattice((44, 40, 42), (0.9, 1.0, -0.95), TURN),
    "sagittal": lattice((40, 40, 40), turn=UPRIGHT[:, [2, 0, 1]]),
}


def bump(middle: np.ndarray, radius: float = 17.0, flat: bool = False):  # type: ignore[no-untyped-def]
    """(1 - r^2 / R^2)^3 within a ball (or, flat, a cylinder along z), 0 beyond: twice differentiable."""
    c = torch.as_tensor(np.asarray(middle), dtype=torch.float32)

    def value(x: torch.Tensor) -> torch.Tensor:
        d = (x - c.to(x))[..., : 2 if flat else 3]
        return (1 - d.square().sum(-1, keepdim=True) / radius**2).clamp_min(0) ** 3

    return value


def both(function, grid: Grid, g: Geometry, step: float = 0.25) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[no-untyped-def]
    """Through the lattice and along the rays."""
    through = Projector(grid, g).apply(function(grid.points())[..., 0])
    with torch.no_grad():
        along = LineIntegral(grid.box(), step).eval()(function, g.at(torch.arange(g.size))).reshape(through.shape)
    return through, along


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("grid", LATTICES.values(), ids=LATTICES)
def test_the_two_ways_agree_in_3d(grid: Grid, name: str) -> None:
    """What is left is the curvature that linear interpolation cuts off: 0.4 % for a ball of 17 voxels, a quarter for one twice as large."""
    g = VIEWS[name].subset([1, 3])
    through, along = both(bump([1.0, -2.0, 0.5]), grid, g, 0.5)
    assert float((through - along).abs().max()) < 0.005 * float(along.max())


@pytest.mark.parametrize("grid", [lattice((40, 40, 1)), lattice((36, 44, 1), (1.1, -0.9, 3.0)), lattice((42, 42, 1), turn=np.array(
    [[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]))], ids=["upright", "anisotropic", "turned"])
@pytest.mark.parametrize("g", FLAT.values(), ids=FLAT)
def test_the_two_ways_agree_in_2d(grid: Grid, g: Geometry) -> None:
    through, along = both(bump([1.0, -2.0, 0.0], flat=True), grid, g, 0.1)
    assert float((through - along).abs().max()) < 0.005 * float(along.max())


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("grid", LATTICES.values(), ids=LATTICES)
@settings(max_examples=4)
@given(place=st.tuples(*[st.floats(-9, 9)] * 3))
def test_a_ball_casts_its_shadow_where_the_formula_says(grid: Grid, name: str, place: tuple[float, ...]) -> None:
    g = VIEWS[name]
    shadow = Projector(grid, g).apply(bump(np.array(place), 6.0)(grid.points())[..., 0]).double()
    rows, columns = torch.arange(g.shape[0]).double(), torch.arange(g.shape[1]).double()
    column, row = g.project(np.array([place]))
    mass = shadow.sum((1, 2))
    assert np.allclose((shadow.sum(1) @ columns) / mass, column[:, 0], atol=0.05)
    assert np.allclose((shadow.sum(2) @ rows) / mass, row[:, 0], atol=0.05)


@pytest.mark.parametrize("g", FLAT.values(), ids=FLAT)
@given(place=st.tuples(*[st.floats(-9, 9)] * 2))
def test_a_disc_casts_its_shadow_where_the_formula_says(g: Geometry, place: tuple[float, float]) -> None:
    grid = lattice((40, 40, 1))
    shadow = Projector(grid, g).apply(bump(np.array([*place, 0]), 6.0, flat=True)(grid.points())[..., 0]).double()[:, 0]
    column, _ = g.project(np.array([[*place, 0]]))
    assert np.allclose((shadow @ torch.arange(60).double()) / shadow.sum(1), column[:, 0], atol=0.05)


@pytest.mark.parametrize("g", FLAT.values(), ids=FLAT)
def test_the_two_ways_differ_by_the_square_of_the_voxel_side(g: Geometry) -> None:
    apart = []
    for side in (2.0, 1.0, 0.5):
        through, along = both(bump([1.0, -2.0, 0.0], flat=True), lattice((round(40 / side), round(40 / side), 1), (side, side, 1.0)), g, 0.1)
        apart.append(float((through - along).square().mean().sqrt()))
    assert apart[1] < apart[0] / 3 and apart[2] < apart[1] / 3


def ellipsoid(o: np.ndarray, d: np.ndarray, middle: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Chords: the roots of |(o + s d - middle) / axes|^2 = 1."""
    p, q = (o - middle) / axes, d / axes
    a, b, c = (q * q).sum(-1), (p * q).sum(-1), (p * p).sum(-1) - 1
    return 2 * np.sqrt(np.maximum(b * b - a * c, 0)) / a


def cuboid(o: np.ndarray, d: np.ndarray, middle: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Chords between the slabs of a box."""
    d = np.where(np.abs(d) < 1e-12, 1e-12, d)
    a, b = (middle - half - o) / d, (middle + half - o) / d
    return np.maximum(np.maximum(a, b).min(-1) - np.minimum(a, b).max(-1), 0)


MIDDLE = np.array([2.0, -3.0, 1.0])
SHAPES = {"sphere": (ellipsoid, np.array([11.0, 11, 11])), "ellipsoid": (ellipsoid, np.array([14.0, 8, 10])),
          "box": (cuboid, np.array([10.0, 7, 8]))}


@pytest.mark.parametrize("name", ["parallel", "cone", "arc"])
@pytest.mark.parametrize("shape", SHAPES)
def test_scale_by_closed_forms(shape: str, name: str) -> None:
    """A body of attenuation 0.02 / mm: its projections are 0.02 times the chords, which no wrong unit or pitch would give."""
    chord, size = SHAPES[shape]
    g, grid, mu = VIEWS[name].subset([1, 2]), lattice((40, 40, 40)), 0.02
    exact = torch.tensor(mu * chord(*g.rays(), MIDDLE, size)).float()

    def body(x: torch.Tensor) -> torch.Tensor:
        d = (x - torch.tensor(MIDDLE).to(x)) / torch.tensor(size).to(x)
        return mu * ((d.square().sum(-1, keepdim=True) if chord is ellipsoid else d.abs().amax(-1, keepdim=True)) <= 1).to(x)

    corners = (np.arange(4) - 1.5) / 4  # voxels hold averages
    voxels = sum(body(grid.points() + torch.tensor([a, b, c]).float()) for a in corners for b in corners for c in corners)[..., 0] / 64
    through = Projector(grid, g, 2).apply(voxels)
    with torch.no_grad():
        along = LineIntegral(grid.box(), 0.05).eval()(body, g.at(torch.arange(g.size))).reshape(exact.shape)
    assert float((along - exact).abs().max()) < 2.1 * 0.05 * mu  # a part at either end
    for found, scale, most in ((along, 0.001, 0.01), (through, 0.004, 0.03)):  # quarters of a voxel are how well the lattice knows the body
        assert abs(float(found.mean() / exact.mean()) - 1) < scale
        assert float((found - exact).square().mean().sqrt()) < most * float(exact.max())


def test_a_line_integral_adjusts_to_function_box_and_step() -> None:
    at = {"origin": torch.tensor([[-50.0, 0, 0], [-50, 4, 0], [0, 0, 0], [-50, 9, 0]]), "direction": torch.tensor([[1.0, 0, 0]] * 4)}
    along = LineIntegral(Box((-10, -5, -5), (20, 5, 5)), 1.0).eval()
    out = along(lambda x: torch.cat([torch.ones_like(x[..., :1]), x[..., :1], x[..., 1:2]], -1), at)
    torch.testing.assert_close(out, torch.tensor([[30.0, 150, 0], [30, 150, 120], [30, 150, 0], [0, 0, 0]]))
    limited = along(lambda x: torch.ones_like(x[..., :1]), at | {"length": torch.tensor([45.0, 60, 7, 99])})
    torch.testing.assert_close(limited[:, 0], torch.tensor([5.0, 20, 7, 0]))
    nothing = along(lambda x: torch.ones_like(x[..., :1]), {k: v[3:] for k, v in at.items()})
    assert nothing.shape == (1, 1) and float(nothing) == 0


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan")])
def test_a_step_must_be_positive(step: float) -> None:
    with pytest.raises(InputError, match="step"):
        LineIntegral(Box((0, 0, 0), (1, 1, 1)), step)


def test_random_places_have_no_bias_where_fixed_ones_have() -> None:
    along = LineIntegral(Box((0, -1, -1), (12, 1, 1)), 3.0)
    n, parts = 4000, along.parts
    at = {"origin": torch.zeros(n, 3), "direction": torch.tensor([[1.0, 0, 0]]).expand(n, 3)}

    def rough(x: torch.Tensor) -> torch.Tensor:
        return 1 + torch.cos(2 * torch.pi * parts * x[..., :1] / 12)  # a period to a part; the middles all meet its zero

    assert float(along.eval()(rough, at)[0]) < 1e-4
    torch.manual_seed(0)
    drawn = along.train()(rough, at)[:, 0]
    assert abs(float(drawn.mean()) - 12) < 4 * float(drawn.std()) / n**0.5 and float(drawn.std()) < 12 / parts**0.5


def test_chunks_equal_the_whole_and_bound_the_memory() -> None:
    g, box, sizes = VIEWS["cone"].subset([0]), Box((-20, -20, -20), (20, 20, 20)), []

    def counted(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x[..., 0].numel())
        return bump(np.zeros(3))(x)

    at = g.at(torch.arange(g.size))
    whole = LineIntegral(box, 1.0).eval()(counted, at)
    small = LineIntegral(box, 1.0, most=20_000).eval()
    sizes.clear()
    with torch.no_grad():
        torch.testing.assert_close(small(counted, at), whole, rtol=0, atol=1e-5)
    assert len(sizes) > 5 and max(sizes) <= 20_000


def test_gradients_reach_the_poses() -> None:
    along, f = LineIntegral(Box((-20, -20, -20), (20, 20, 20)), 1.0).eval(), bump([1.0, 2.0, -1.0])
    at = VIEWS["cone"].at(torch.tensor([28 * 56 + 25, 20 * 56 + 30, 56 * 56 + 26 * 56 + 31]))

    def measured(origin: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        direction = at["direction"].double() + torch.linalg.cross(turn, at["direction"].double())
        return along(f, {"origin": origin, "direction": direction})

    origin, turn = at["origin"].double().requires_grad_(), torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(measured, (origin, turn), atol=1e-4)
    assert all(g.abs().max() > 0.1 for g in torch.autograd.grad(measured(origin, turn).sum(), (origin, turn)))


def test_subrays_are_the_mean_of_finer_pixels_and_subset_takes_views() -> None:
    grid, g = lattice((14, 12, 10)), VIEWS["cone"]
    c, fine = torch.randn(grid.shape), Projector(grid, g.finer(2, 2))
    whole = Projector(grid, g, 2).apply(c)
    torch.testing.assert_close(whole, fine.apply(c).reshape(4, 56, 2, 56, 2).mean((2, 4)))
    torch.testing.assert_close(Projector(grid, g, 2).subset(np.array([2, 0])).apply(c), whole[[2, 0]])
    slice_ = Projector(lattice((14, 12, 1)), FLAT["fan"], 3)
    assert slice_.cut == (1, 3) and slice_.shape == (4, 1, 60)
    with pytest.raises(InputError, match="at least one ray"):
        Projector(grid, g, 0)


def test_norm_is_the_largest_singular_value() -> None:
    grid = lattice((7, 6, 1), 4.0)
    projector = Projector(grid, FLAT["fan"])
    columns = torch.eye(grid.size).reshape(-1, *grid.shape)
    dense = torch.stack([projector.apply(c).flatten() for c in columns], 1)
    assert abs(projector.norm(40) / float(torch.linalg.matrix_norm(dense, 2)) - 1) < 1e-3


def test_on_grid_takes_any_function_and_passes_gradients() -> None:
    grid = lattice((20, 20, 1), 2.0)
    along = OnGrid(Projector(grid, FLAT["fan"]))
    gain = torch.tensor(1.0, requires_grad=True)
    f = bump([1.0, -2.0, 0.0], flat=True)
    out = along(lambda x: gain * f(x))
    assert out.shape == (240, 1)
    torch.testing.assert_close(out.detach()[:, 0], along.projector.apply(f(grid.points())[..., 0]).flatten())
    (slope,) = torch.autograd.grad(out.sum(), gain)
    torch.testing.assert_close(slope, out.detach().sum())
    assert not along.state_dict()  # its points are geometry, not learned


@pytest.mark.gpu
def test_projectors_work_on_cuda() -> None:
    grid, g = LATTICES["turned"], VIEWS["arc"]
    f = bump([1.0, -2.0, 0.5])
    here, there = OnGrid(Projector(grid, g))(f), OnGrid(Projector(grid, g)).cuda()(f)
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-4 * float(here.max()))
    at = {k: v.cuda() for k, v in g.at(torch.arange(500, 1500)).items()}
    along = LineIntegral(grid.box(), 1.0).eval()(f, at)
    assert along.is_cuda and float((along.cpu() - here[500:1500]).abs().max()) < 0.02 * float(here.max())


ASTRA = """
import sys
import astra, numpy as np
c, angles, out = np.load(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
volume = astra.create_vol_geom(c.shape[1], c.shape[0])
image = np.ascontiguousarray(c[:, ::-1].T)  # rows of the image from +y down, columns along +x
sinograms = []
for kind, geometry in (("linear", astra.create_proj_geom("parallel", 1.0, 60, angles)),
                       ("strip_fanflat", astra.create_proj_geom("fanflat", 1.7, 60, angles, 100.0, 50.0))):
    found, sinogram = astra.create_sino(image, astra.create_projector(kind, geometry, volume))
    sinograms.append(sinogram)
np.save(out, np.stack(sinograms))
"""


def test_astra_agrees(tmp_path: Path) -> None:
    """ASTRA's CPU projectors of a slice (GPL: in a process of another interpreter, which MEDFIELDS_ASTRA_PYTHON names).

    Its parallel "linear" is the same matrix as ours. A fan has no such kind there: "strip" takes voxels for squares, pixels for intervals.
    """
    python = os.environ.get("MEDFIELDS_ASTRA_PYTHON", "")
    if not python or subprocess.run([python, "-c", "import astra"], capture_output=True, check=False).returncode:
        pytest.skip("MEDFIELDS_ASTRA_PYTHON names no interpreter that can import astra")
    grid = Grid.from_spacing((40, 40, 1), 1.0, (-19.5, -19.5, 0))
    c = bump([3.0, -2.0, 0.0], flat=True)(grid.points())[..., 0]
    np.save(tmp_path / "c.npy", c[..., 0].numpy())
    np.save(tmp_path / "angles.npy", ANGLES)
    subprocess.run([python, "-c", ASTRA, *(str(tmp_path / n) for n in ("c.npy", "angles.npy", "p.npy"))], check=True)
    theirs = np.load(tmp_path / "p.npy")
    views = (Geometry.parallel(ANGLES, 60, 1.0), 1e-5), (Geometry.fan(ANGLES, 60, 1.7, NEAR, FAR), 5e-3)
    for sinogram, (g, most) in zip(theirs, views, strict=True):
        ours = Projector(grid, g).apply(c)[:, 0].numpy()
        assert np.abs(ours - sinogram).max() < most * ours.max()


def test_rows_of_a_parallel_beam_lie_within_slices() -> None:
    """A stack is so many slices, however many rays a pixel has; rows taller than slices, tilted ones and cones average over heights."""
    grid = lattice((20, 18, 3), (1.0, 1.0, 2.0))
    c = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    angles = np.array([0.1, 1.2, 2.0])
    stack = Geometry.parallel(angles, 24, 1.3, rows=3, row_pitch=2.0, isocentre=grid.centre.tolist())
    whole = Projector(grid, stack, 3).apply(c)
    for k in range(3):
        part = grid.crop((0, 0, k), (20, 18, 1))
        one = Geometry.parallel(angles, 24, 1.3, rows=1, row_pitch=2.0, isocentre=part.centre.tolist())
        assert torch.allclose(Projector(part, one, 3).apply(c[..., k:k + 1]), whole[:, k:k + 1], atol=1e-4)
    assert Projector(grid, stack, 3).cut == (1, 3)
    tall = Geometry.parallel(angles, 24, 1.3, rows=2, row_pitch=3.0, isocentre=grid.centre.tolist())
    assert Projector(grid, tall, 3).cut == Projector(grid, VIEWS["cone"], 3).cut == (3, 3)
    turned = stack.moved(np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(0).normal(size=(3, 3)))[0], np.zeros(3))
    assert Projector(grid, turned, 3).cut == (3, 3)
