"""The case of superres: what is asked, and what is refused."""

import numpy as np
import pytest
import torch

from medfields.cases import Stack, Stacks
from medfields.cases.stacks import percentiles
from medfields.errors import GeometryError, InputError
from medfields.io import write_volume
from medfields.space import Grid, Volume


def _stack(origin=(0, 0, 0), spacing=(1, 1, 4), data=None, **more):
    grid = Grid.from_spacing((10, 10, 5), spacing, origin)
    return Stack(Volume(torch.rand(grid.shape) if data is None else data, grid), 4.0, **more)


def test_slices_are_across_the_longest_step():
    assert _stack().axis == 2 and _stack(spacing=(4, 1, 1)).axis == 0 and np.allclose(_stack().normal, [0, 0, 1])


@pytest.mark.parametrize(("data", "message"), [(torch.full((10, 10, 5), 3.0), "constant"), (torch.full((10, 10, 5), float("nan")), "NaN")])
def test_useless_images_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        _stack(data=data)


def test_no_overlap_is_refused():
    a, b = _stack(name="a"), _stack(origin=(500, 0, 0), name="b")
    with pytest.raises(GeometryError, match="'a' and 'b' do not overlap"):
        Stacks((a, b), Grid.from_spacing((600, 10, 10), 1.0))
    with pytest.raises(GeometryError, match="does not overlap the output grid"):
        Stacks((a,), Grid.from_spacing((5, 5, 5), 1.0, origin=(100, 0, 0)))


@pytest.mark.parametrize("thickness", [0.0, -1.0, float("nan")])
def test_impossible_thickness_is_refused(thickness):
    with pytest.raises(GeometryError, match="thickness"):
        Stack(_stack().volume, thickness)


def test_samples_know_their_stack_contrast_and_place():
    case = Stacks.toy(0, contrasts=2)
    samples = case.samples()
    assert case.contrasts == ("c0", "c1")
    for n, stack in enumerate(case.stacks):
        mine = samples.at["stack"] == n
        values = Volume(stack.volume.data, stack.volume.grid)(samples.at["x"][mine])
        assert torch.allclose(values, samples.value[mine], atol=1e-3)
        assert (samples.at["channel"][mine] == case.channel(stack)).all()


def test_grid_is_isotropic_and_covers_what_all_stacks_see(tmp_path):
    paths = []
    for n, stack in enumerate((_stack(), _stack(origin=(2, 3, 1)))):
        paths.append(tmp_path / f"{n}.nii")
        write_volume(stack.volume, paths[-1])
    case = Stacks.read(paths, spacing=0.5)
    assert np.allclose(case.grid.spacing, 0.5)
    corners = case.grid.corners()
    assert np.allclose(corners.min(0), [1.5, 2.5, -1.0], atol=0.26) and np.allclose(corners.max(0), [9.5, 9.5, 18.0], atol=0.26)
    assert [s.thickness for s in case.stacks] == [4.0, 4.0]
    assert Stacks.read(paths, thickness=[3.0]).stacks[1].thickness == 3.0
    with pytest.raises(InputError, match="3 thicknesses for 2 stacks"):
        Stacks.read(paths, thickness=[1, 2, 3])


def test_fingerprint_sees_every_change():
    a, b = Stacks.toy(0), Stacks.toy(1)
    assert a.fingerprint() == Stacks.toy(0).fingerprint() != b.fingerprint()
    assert Stacks(a.stacks, a.grid, "box").fingerprint() != a.fingerprint()


def test_percentiles_of_a_large_stack_see_every_slice():
    data = torch.zeros(1024, 1024, 4)  # the first slice is air
    data[..., 1:] = torch.linspace(1, 2, 3)
    assert percentiles(data.flatten()).tolist() == [0, 2]
