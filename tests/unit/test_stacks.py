"""The case of superres: what is asked, and what is refused."""

import nibabel
import numpy as np
import pytest
import torch

from medfields.cases import Stack, Stacks
from medfields.cases.stacks import percentiles, slice_axis
from medfields.errors import GeometryError, InputError
from medfields.io import write_volume
from medfields.space import Grid, Volume


def _stack(origin=(0, 0, 0), spacing=(1, 1, 4), data=None, **more):
    grid = Grid.from_spacing((10, 10, 5), spacing, origin)
    return Stack(Volume(torch.rand(grid.shape) if data is None else data, grid), 4.0, **more)


def test_slices_are_across_the_longest_step():
    assert _stack().axis == 2 and _stack(spacing=(4, 1, 1)).axis == 0 and np.allclose(_stack().normal, [0, 0, 1])


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((10, 10, 10), (1, 1, 1), 2),
        ((10, 10, 10), (1.0000001, 1, 1), 2),  # a header's rounding
        ((10, 10, 10), (3, 3, 1), 1),
        ((10, 10, 10), (1.01, 1, 1), 0),
        ((10, 10, 1), (2, 2, 1), 2),  # a single slice, thinner than its pixels are wide
        ((1, 10, 10), (1, 1, 4), 0),
        ((10, 1, 1), (4, 1, 1), 2),
    ],
)
def test_slices_of_equal_steps_and_single_slices(shape, spacing, axis):
    assert slice_axis(Grid.from_spacing(shape, spacing)) == axis == Stack(Volume(torch.rand(shape), Grid.from_spacing(shape, spacing)), 1.0).axis


def test_a_single_file_slice_is_as_thick_as_its_header_says(tmp_path):
    write_volume(Volume(torch.rand(10, 10, 1), Grid.from_spacing((10, 10, 1), (2, 2, 1.5))), tmp_path / "one.nii")
    (stack,) = Stacks.read([tmp_path / "one.nii"]).stacks
    assert (stack.axis, stack.thickness) == (2, 1.5)


def test_slices_are_across_the_axis_that_the_header_names(tmp_path):
    """Overlapping slices lie closer than their pixels; a header that the voxel sizes contradict by far is older than they are."""
    for name, spacing, axis in (("overlapping", (2, 2, 1.5), 2), ("turned", (5, 1, 1), 0)):
        image = nibabel.Nifti1Image(np.random.default_rng(0).random((8, 8, 8), np.float32), np.diag([*spacing, 1]))
        image.header.set_dim_info(slice=2)
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
        assert Stacks.read([tmp_path / f"{name}.nii.gz"]).stacks[0].axis == axis


def test_slices_of_a_dicom_series_are_across_its_files(tmp_path):
    write_volume(Volume(torch.rand(6, 6, 4), Grid.from_spacing((6, 6, 4), (2, 2, 1.5)), about={"thickness_mm": 3.0}), tmp_path / "overlapping")
    (stack,) = Stacks.read([tmp_path / "overlapping"]).stacks
    assert (stack.axis, stack.thickness) == (2, 3.0)


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
    for contrasts in (["t1"], ["t1", "t2", "flair"]):
        with pytest.raises(InputError, match=f"{len(contrasts)} contrasts for 2 stacks"):
            Stacks.read(paths, contrasts=contrasts)
    assert Stacks.read(paths, contrasts=["t1", "t2"]).contrasts == ("t1", "t2")
    with pytest.raises(InputError, match="one of the two"):
        Stacks.read(paths, spacing=0.5, like=paths[0])


def test_fingerprint_sees_every_change():
    a, b = Stacks.toy(0), Stacks.toy(1)
    assert a.fingerprint() == Stacks.toy(0).fingerprint() != b.fingerprint()
    assert Stacks(a.stacks, a.grid, "box").fingerprint() != a.fingerprint()


def test_percentiles_of_a_large_stack_see_every_slice():
    data = torch.zeros(1024, 1024, 4)  # the first slice is air
    data[..., 1:] = torch.linspace(1, 2, 3)
    assert percentiles(data.flatten()).tolist() == [0, 2]


def test_percentiles_of_a_stack_that_is_nearly_empty_are_its_extremes():
    data = torch.zeros(60, 60, 20)
    data[30:34, 30:34, 8:12] = torch.linspace(10, 1000, 64).reshape(4, 4, 4)
    assert percentiles(data.flatten()).tolist() == [0, 1000]


def test_stacks_of_different_frames_of_reference_are_refused(tmp_path):
    def stack(frame, name):
        grid = Grid((10, 10, 5), np.diag([1.0, 1, 4, 1]), frame)
        return Stack(Volume(torch.rand(10, 10, 5), grid), 4.0, name=name)

    grid = stack("", "").volume.grid
    assert Stacks((stack("1.2", "a"), stack("1.2", "b"), stack("", "nifti")), grid)
    with pytest.raises(GeometryError, match="'a' and stack 'b' state different DICOM frames"):
        Stacks((stack("1.2", "a"), stack("1.3", "b")), grid)
    with pytest.raises(GeometryError, match="the output grid and stack 'a'"):
        Stacks((stack("1.2", "a"),), stack("1.3", "like").volume.grid)


def test_units_are_kept_and_not_mixed():
    volume = _stack().volume
    hu, bare = (Stack(Volume(volume.data, volume.grid, unit), 4.0, name=unit or "bare") for unit in ("HU", ""))
    assert Stacks((hu, hu), volume.grid).unit == "HU"
    with pytest.raises(InputError, match="different units: none, HU"):
        Stacks((hu, bare), volume.grid)
    other = Stack(bare.volume, 4.0, contrast="mr")
    assert Stacks((hu, other), volume.grid).unit == ""
