"""The CT simulator against closed forms, against the operators it must not resemble, and against itself where it moves or warps."""

import numpy as np
import pytest
import torch

from medfields.errors import InputError
from medfields.evaluate.simulate_ct import add_noise, followed, lesion, moving, polychromatic, project, warp
from medfields.operators.detector import Polychromatic
from medfields.operators.materials import DENSITY, attenuation
from medfields.operators.projections import LineIntegral, Projector
from medfields.operators.spectrum import Spectrum
from medfields.space import Geometry, Grid, Volume

ANGLES = np.linspace(0.1, np.pi, 5)
RADII = np.array([21.0, 15.0, 18.0])
CENTRE = np.array([2.3, -1.1, 0.7])


def _grid(n=64, slice_=False, spacing=1.0):
    shape = (n, n, 1 if slice_ else n)
    return Grid.from_spacing(shape, spacing, [-(m - 1) / 2 * spacing for m in shape])


def _ellipsoid(grid, radii=RADII, value=0.02):
    """Voxels hold the share of them that lies inside, from the distance of their centre to the surface."""
    x = (grid.points().double().numpy() - CENTRE) / radii
    if grid.is_2d:
        x[..., 2] = 0
    rho = np.linalg.norm(x, axis=-1)
    distance = (rho - 1) * rho / np.maximum(np.linalg.norm(x / radii, axis=-1), 1e-9)
    return Volume(value * np.clip(0.5 - distance / grid.spacing[0], 0, 1), grid, "1/mm")


def _chords(geometry, radii=RADII, value=0.02, flat=False, cut=4):
    """The closed form, averaged over cut x cut rays of each pixel."""
    fine = geometry.finer(cut, 1 if flat else cut)
    o, d = fine.rays()
    o, d = (o - CENTRE) / radii, d / radii
    if flat:
        o, d = o[..., :2], d[..., :2]
    aa, ab, bb = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1)
    p = value * 2 * np.sqrt(np.maximum(ab**2 - aa * (bb - 1), 0)) / aa
    v, r, c = geometry.views, *geometry.shape
    return p.reshape(v, r, -1, c, cut).mean((2, 4))


GEOMETRIES = {
    "parallel": Geometry.parallel(ANGLES, 36, 2.0, rows=30),
    "cone": Geometry.cone(ANGLES * 2, (24, 40), (3.0, 2.7), 120.0, 200.0, offset=(1.0, -2.0), tilt=0.1),
    "arc": Geometry.cone(ANGLES * 2, (20, 40), 2.5, 120.0, 180.0, arc=True),
}


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("beam", GEOMETRIES)
def test_projections_of_an_ellipsoid_are_its_chords(beam, interpolation):
    geometry = GEOMETRIES[beam]
    p = project(_ellipsoid(_grid(96, spacing=2 / 3)), geometry, subrays=16, interpolation=interpolation)
    truth = _chords(geometry)
    assert p.dtype == np.float32 and p.shape == (5, *geometry.shape)
    assert abs(p.sum() / truth.sum() - 1) < 1e-3
    assert np.sqrt(((p - truth) ** 2).mean()) < 3e-3 * truth.max()


def test_projections_of_a_disc_in_a_slice():
    for geometry in (Geometry.parallel(ANGLES, 60, 1.0), Geometry.fan(ANGLES, 70, 1.5, 150.0, 250.0)):
        p, truth = project(_ellipsoid(_grid(128, True, 0.5)), geometry, subrays=8), _chords(geometry, flat=True, cut=8)
        assert np.sqrt(((p - truth) ** 2).mean()) < 3e-3 * truth.max()


def _smooth(x, width=13.0):
    return torch.exp(-((x - torch.tensor([3.0, -2.0, 1.0])) / (width * torch.tensor([1.0, 0.9, 1.1]))).square().sum(-1, keepdim=True)) * 0.02


@pytest.mark.parametrize("interpolation, tolerance", [("linear", 3e-3), ("cubic", 3e-4)])
def test_a_smooth_function_agrees_with_its_line_integrals(interpolation, tolerance):
    """LineIntegral takes the function itself; trilinear interpolation blurs it by a variance of h^2 / 6, as it must."""
    grid = _grid(72)
    volume = Volume(_smooth(grid.points())[..., 0], grid, "1/mm")
    for geometry in GEOMETRIES.values():
        ours = project(volume, geometry, subrays=1, step=0.25, interpolation=interpolation)
        theirs = LineIntegral(grid.box(), 0.25).eval()(_smooth, geometry.at(torch.arange(geometry.size)))
        assert np.abs(ours.reshape(-1) - theirs[:, 0].numpy()).max() < tolerance * float(theirs.max())


def test_an_oblique_anisotropic_lattice_of_noise_is_read_as_a_volume_reads_it():
    affine = np.array([[1.1, 0.3, 0, -9], [-0.2, 0.9, 0.1, -8], [0, -0.1, 1.6, -7], [0, 0, 0, 1.0]])
    volume = Volume(np.random.default_rng(0).random((18, 16, 9)), Grid((18, 16, 9), affine))
    geometry = Geometry.cone(ANGLES, (6, 7), 3.0, 60.0, 100.0)
    at = geometry.at(torch.arange(geometry.size))
    theirs = LineIntegral(volume.grid.box(), 0.02).eval()(volume, at)[:, 0].numpy()
    assert np.abs(project(volume, geometry, subrays=1, step=0.05).reshape(-1) - theirs).max() < 2e-3 * theirs.max()


def test_rays_of_a_pixel_are_shared_between_rows_and_columns():
    volume, geometry = _ellipsoid(_grid(32), RADII / 2), Geometry.parallel(ANGLES[:2], 5, 8.0, rows=4)
    fine = project(volume, geometry.finer(2, 2), subrays=1).reshape(2, 4, 2, 5, 2).mean((2, 4))
    assert np.allclose(project(volume, geometry, subrays=4), fine, atol=1e-6)
    seen = -np.log(np.exp(-project(volume, geometry.finer(3, 2), subrays=1).astype(float)).reshape(2, 4, 2, 5, 3).mean((2, 4)))
    assert np.allclose(project(volume, geometry, subrays=6, intensities=True), seen, atol=1e-6)
    assert (seen <= project(volume, geometry, subrays=6) + 1e-6).all(), "a mean of intensities is brighter"
    for bad in ({"subrays": 0}, {"step": 0.0}):
        with pytest.raises(InputError):
            project(volume, geometry, **bad)


def test_the_simulator_is_not_the_projector():
    """No inverse crime: on the very same lattice the two differ, by less than a percent."""
    volume = _ellipsoid(_grid(64, slice_=True))
    geometry = Geometry.parallel(ANGLES, 90, 1.0)
    ours, theirs = project(volume, geometry), Projector(volume.grid, geometry).apply(volume.data[0]).numpy()
    difference = np.sqrt(((ours - theirs) ** 2).mean()) / np.sqrt((theirs**2).mean())
    assert 1e-4 < difference < 1e-2


def test_polychromatic_water_and_titanium_follow_beers_law_for_each_energy():
    spectrum, water = Spectrum.tube(step_kev=10), float(attenuation("water", 70.0))
    grid, geometry = _grid(24, slice_=True), Geometry.parallel([0.0], 12, 2.0)
    index = np.indices(grid.shape)
    inside = (abs(index[0] - 11.5) < 12).astype(float)
    rod = Volume((abs(index[0] - 11.5) < 3) & (abs(index[1] - 11.5) < 2), grid)
    p = polychromatic(Volume(water * inside, grid, "1/mm"), geometry, spectrum, metal={"titanium": rod}, subrays=1)
    model = Polychromatic(spectrum, ["water", "titanium"])
    expected = model.of_materials(torch.tensor([[24.0, 0.0], [20.0, 4.0 * DENSITY["titanium"]]]))
    assert np.allclose(p[0, 0, [0, 1, 2, 9, 10, 11]], float(expected[0]), rtol=1e-4)
    assert np.allclose(p[0, 0, [5, 6]], float(expected[1]), rtol=1e-4)


def test_one_energy_is_the_monochromatic_projection_of_the_volume():
    grid = _grid(24)
    volume = Volume(np.random.default_rng(1).random(grid.shape) * 0.06, grid, "1/mm")
    geometry = GEOMETRIES["cone"]
    poly = polychromatic(volume, geometry, Spectrum((65.0,), (1.0,)), reference_kev=65.0)
    assert np.allclose(poly, project(volume, geometry, intensities=True), rtol=1e-5, atol=1e-6)
    assert polychromatic(volume, geometry, Spectrum.tube(), reference_kev=65.0).mean() != poly.mean()


def test_a_subject_that_moves_is_a_geometry_that_moves_the_other_way():
    geometry, rng = GEOMETRIES["cone"], np.random.default_rng(4)
    poses = np.concatenate([rng.normal(0, 0.1, (5, 3)), rng.normal(0, 2, (5, 3))], 1)
    grid = _grid(56)
    volume = Volume(_smooth(grid.points(), 6.0)[..., 0], grid, "1/mm")
    seen = moving(volume, geometry, poses, about=[1.0, 2.0, 3.0], interpolation="cubic")
    still = project(volume, geometry, interpolation="cubic")
    assert np.abs(seen - still).max() > 0.1 * still.max()
    for view, pose in enumerate(poses):
        rotation = torch.matrix_exp(torch.tensor([[0, -pose[2], pose[1]], [pose[2], 0, -pose[0]], [-pose[1], pose[0], 0]])).numpy()
        back = (grid.points().double().numpy() - [1.0, 2.0, 3.0] - pose[3:]) @ rotation + [1.0, 2.0, 3.0]
        placed = Volume(_smooth(torch.tensor(back, dtype=torch.float32), 6.0)[..., 0], grid, "1/mm")
        expected = project(placed, geometry.subset([view]), interpolation="cubic")
        assert np.abs(expected[0] - seen[view]).max() < 2e-3 * still.max()
    assert np.allclose(followed(geometry, np.zeros((5, 6)), [0, 0, 0]).source, geometry.source)
    with pytest.raises(InputError, match="poses"):
        moving(volume, geometry, poses[:3])


def test_noise_is_seeded_and_as_strong_as_stated():
    p = np.full((20, 1, 500), 1.2, dtype=np.float32)
    a, b, c = (add_noise(p, 1e4, seed) for seed in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and a.dtype == np.float32
    assert abs((a - p).std() / np.sqrt(np.exp(1.2) / 1e4) - 1) < 0.03
    assert abs((add_noise(p, None, decibel=40) - p).std() / 0.012 - 1) < 0.03
    assert abs(add_noise(p, 1e5, scatter=1e4).mean() - -np.log(np.exp(-1.2) + 0.1)) < 1e-3


@pytest.mark.parametrize("slice_", [True, False])
def test_a_lesion_has_its_size_and_contrast(slice_):
    grid = _grid(40, slice_)
    volume = Volume(np.full(grid.shape, 0.02), grid, "1/mm")
    painted = lesion(volume, [3.0, -4.0, 30.0 if slice_ else 2.0], 6.0, 0.004)
    added = painted.data[0].double().numpy() - 0.02
    soft = (np.pi * 0.5 / 6.0) ** 2  # a soft edge adds to the content of a ball or disc
    content = np.pi * 36 * (1 + soft / 3) if slice_ else 4 / 3 * np.pi * 216 * (1 + soft)
    assert abs(added.max() / 0.004 - 1) < 1e-3 and abs(added.sum() / 0.004 / content - 1) < 1e-3
    middle = (grid.points().double().numpy() * added[..., None]).sum((0, 1, 2)) / added.sum()
    assert np.abs(middle[:2] - [3, -4]).max() < 1e-3


@pytest.mark.parametrize("slice_", [True, False])
def test_a_warp_moves_as_far_as_stated_and_does_not_fold(slice_):
    grid = _grid(36, slice_, spacing=2.0)
    ramps = grid.points()[..., :2].movedim(-1, 0)
    warped = warp(Volume(ramps, grid), 3.0, seed=1)
    inner = (slice(None), slice(4, -4), slice(4, -4))
    d = (warped.data - ramps)[inner].norm(dim=0)
    assert 1.2 < float(d.max()) < 3.01 and float(d.diff(dim=0).abs().max()) < 1.0
    assert torch.equal(warp(Volume(ramps, grid), 3.0, seed=1).data, warped.data)
    assert not torch.equal(warp(Volume(ramps, grid), 3.0, seed=2).data, warped.data)
    assert torch.allclose(warp(Volume(ramps, grid), 0.0).data, ramps, atol=1e-3)
    with pytest.raises(InputError, match="fold"):
        warp(Volume(ramps, grid), 60.0)
