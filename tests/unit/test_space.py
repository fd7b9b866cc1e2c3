"""Grids, boxes, volumes and poses: where things are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfields.errors import GeometryError, InputError
from medfields.space import Box, Grid, Volume, matrix_from_pose, move
from medfields.space.rigid import rotation


def affines():
    angle = st.floats(-3, 3)
    return st.builds(_affine, st.tuples(angle, angle, angle), st.tuples(*[st.floats(0.3, 6)] * 3), st.permutations(range(3)),
                     st.tuples(*[st.sampled_from([-1, 1])] * 3), st.tuples(*[st.floats(-200, 200)] * 3))


def _affine(vector, spacing, order, signs, origin):
    a = np.eye(4)
    r = rotation(torch.tensor(vector, dtype=torch.float64)).numpy()
    a[:3, :3] = r[:, list(order)] * np.array(spacing) * np.array(signs)
    a[:3, 3] = origin
    return a


@settings(max_examples=50, deadline=None)
@given(affines())
def test_world_and_index_are_inverse(affine):
    grid = Grid((5, 7, 3), affine)
    index = np.random.default_rng(0).uniform(-3, 9, (20, 3))
    assert np.abs(grid.index(grid.world(index)) - index).max() < 1e-9


@settings(max_examples=30, deadline=None)
@given(affines(), st.floats(0.4, 3))
def test_with_spacing_keeps_the_field_of_view_and_its_centre(affine, mm):
    grid = Grid((6, 9, 4), affine)
    new = grid.with_spacing(mm)
    assert np.allclose(new.spacing, mm) and np.allclose(new.centre, grid.centre, atol=1e-6)
    old_extent, new_extent = grid.spacing * grid.shape, new.spacing * new.shape
    assert (new_extent >= old_extent - 1e-5 * mm).all() and (new_extent < old_extent + mm).all()
    assert np.allclose(new.directions, grid.directions)


def test_half_voxel_rule_when_the_spacing_doubles():
    """Two 1 mm voxels become one of 2 mm whose centre lies between theirs."""
    coarse = Grid.from_spacing((4, 4, 4), 1.0).with_spacing(2.0)
    assert coarse.shape == (2, 2, 2) and np.allclose(coarse.world(np.zeros(3)), 0.5)


def test_a_2d_image_keeps_its_single_slice():
    grid = Grid.from_spacing((24, 24, 1), (1, 1, 5)).with_spacing(0.25)
    assert grid.shape == (96, 96, 1) and grid.spacing[2] == 5


@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 0, 1]), np.ones((4, 4)), np.diag([1.0, np.nan, 1, 1]), np.diag([1.0, 1, 1, 2]),
                                    np.eye(3)])
def test_impossible_affines_are_refused(affine):
    with pytest.raises(GeometryError):
        Grid((2, 2, 2), affine)


def test_points_agree_with_world():
    grid = Grid((3, 4, 5), _affine((0.1, 0.2, 0.3), (1, 2, 3), (1, 0, 2), (1, -1, 1), (10, 20, 30)))
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    assert np.abs(grid.points().numpy() - grid.world(index)).max() < 1e-4
    assert torch.equal(grid.points()[1:3], grid.slab(1, 3))


def test_crop_keeps_world_positions():
    grid = Grid((8, 8, 8), _affine((0.1, 0, 0.3), (1, 2, 3), (2, 0, 1), (1, 1, -1), (5, 6, 7)))
    assert np.allclose(grid.crop((2, 1, -1), (3, 3, 3)).world(np.zeros(3)), grid.world(np.array([2, 1, -1])))


def test_box_unit_coordinates_are_isotropic():
    box = Box((0, 0, 0), (10, 20, 40)).extended(0.0, 1.0)
    assert box.radius.tolist() == [20, 20, 20, 0.5] and box.centre.tolist() == [5, 10, 20, 0.5]
    assert box.contains(box.random(100, torch.Generator().manual_seed(0))).all()


def test_box_refuses_nothing_inside():
    with pytest.raises(GeometryError):
        Box((0, 0, 0), (1, 0, 1))
    assert Box((0, 0, 0), (1, 1, 1)).overlap(Box((2, 0, 0), (3, 1, 1))) is None


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_volume_returns_its_voxels(interpolation):
    grid = Grid((6, 7, 5), _affine((0.3, -0.2, 0.5), (1, 1.5, 3), (2, 1, 0), (1, -1, 1), (3, -4, 5)))
    data = torch.randn(2, *grid.shape)
    volume = Volume(data, grid, interpolation=interpolation)
    assert torch.allclose(volume(grid.points()).movedim(-1, 0), data, atol=2e-4)


@pytest.mark.parametrize(("interpolation", "power"), [("linear", 1), ("cubic", 3)])
def test_volume_reproduces_polynomials_inside(interpolation, power):
    grid = Grid.from_spacing((16, 16, 16), 1.0)
    volume = Volume((grid.points()[..., 0] / 16) ** power, grid, interpolation=interpolation)
    x = 6 + 3 * torch.rand(50, 3)
    assert torch.allclose(volume(x)[:, 0], (x[:, 0] / 16) ** power, atol=2e-3 if power == 3 else 1e-5)


def test_volume_ends_at_the_faces_of_its_voxels():
    volume = Volume(torch.ones(3, 3, 3), Grid.from_spacing((3, 3, 3), 2.0), fill=-7.0)
    x = torch.tensor([[-0.99, 2, 2], [-1.01, 2, 2], [4.99, 2, 2], [5.01, 2, 2]])
    assert volume(x)[:, 0].tolist() == [1, -7, 1, -7]


def test_volume_gradient_reaches_points_and_values():
    volume = Volume(torch.randn(4, 4, 4), Grid.from_spacing((4, 4, 4), 1.0))
    x = (1 + torch.rand(5, 3)).requires_grad_()
    volume(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_volume_refuses_another_shape():
    with pytest.raises(InputError, match="does not fit"):
        Volume(torch.zeros(2, 3, 4), Grid.from_spacing((2, 3, 5), 1.0))


def test_a_quarter_turn():
    pose = torch.tensor([0, 0, np.pi / 2, 1, 2, 3]).double()
    about = torch.tensor([1.0, 0, 0]).double()
    assert torch.allclose(move(pose, torch.tensor([2.0, 0, 0]).double(), about), torch.tensor([2.0, 3, 3]).double(), atol=1e-6)
    assert torch.allclose(matrix_from_pose(pose)[:3, :3], torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).double(), atol=1e-6)


def test_rotation_is_differentiable_at_rest():
    vector = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation, vector)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_reading_a_whole_grid_equals_reading_its_points(interpolation):
    """The compiled way and the plain one, with voxels outside."""
    source = Grid((6, 7, 5), _affine((0.3, -0.2, 0.5), (1, 1.5, 3), (2, 1, 0), (1, -1, 1), (3, -4, 5)))
    volume = Volume(torch.randn(2, *source.shape), source, interpolation=interpolation, fill=-3.0)
    target = Grid((9, 8, 10), _affine((0.5, 0.1, -0.2), (1.1, 1.1, 1.1), (0, 1, 2), (1, 1, 1), source.centre - 5))
    want = volume(target.points()).movedim(-1, 0)
    assert (want == -3).any() and (want != -3).sum() > 100
    near_border = (volume.on(target).data == -3) != (want == -3)
    assert near_border.float().mean() < 0.01
    assert torch.allclose(volume.on(target).data[~near_border], want[~near_border], atol=1e-4)


def test_a_single_slice_can_be_read():
    image = Volume(torch.rand(5, 6, 1), Grid.from_spacing((5, 6, 1), (1, 1, 4)), interpolation="cubic")
    assert torch.allclose(image.on(image.grid).data, image.data, atol=1e-5)


def test_two_slices_are_interpolated_exactly():
    volume = Volume(torch.rand(5, 5, 2), Grid.from_spacing((5, 5, 2), (1, 1, 4)), interpolation="cubic")
    assert torch.allclose(volume.on(volume.grid).data, volume.data, atol=1e-5)
