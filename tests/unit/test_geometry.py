"""A point written in world millimetres is found again within 1e-3 mm, through every format and through a field on a grid."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from io_samples import grids, ramp, same_values_in_the_world
from medfields.fields import BSpline, Field
from medfields.io import read_field, read_volume, write_field, write_volume
from medfields.space import Grid, Volume

EXACT = 1e-3  # mm
few = settings(max_examples=25, deadline=None)


def through(volume: Volume, name: str) -> Volume:
    if name.endswith((".mha", ".nrrd")):
        pytest.importorskip("SimpleITK")
    with tempfile.TemporaryDirectory() as folder:
        write_volume(volume, Path(folder) / name)
        return read_volume(Path(folder) / name)


@few
@given(grid=grids(shear=True), name=st.sampled_from(["a.nii", "a.nii.gz", "a.mha", "a.nrrd"]))
def test_files_keep_index_and_world(grid: Grid, name: str) -> None:
    volume = ramp(grid)
    found = through(volume, name)
    assert found.grid.same_as(grid, EXACT)
    np.testing.assert_array_equal(found.data.numpy(), volume.data.numpy())


@few
@given(grid=grids())
def test_dicom_keeps_the_world(grid: Grid) -> None:
    """The order of slices may turn round; what lies where may not."""
    same_values_in_the_world(through(ramp(grid), "series"), ramp(grid), EXACT)


@few
@given(grid=grids(), first=st.sampled_from(["a.nii.gz", "a.mha", "a.nrrd", "a"]), then=st.sampled_from(["b.nii", "b.mha", "b.nrrd", "b"]))
def test_a_chain_of_formats(grid: Grid, first: str, then: str) -> None:
    same_values_in_the_world(through(through(ramp(grid), first), then), ramp(grid), EXACT)


@few
@given(grid=grids(shear=True), data=st.data())
def test_a_marker_is_found_where_it_was_put(grid: Grid, data: st.DataObject) -> None:
    """One bright voxel: its world point, computed by hand from the affine of the file, is that of the index it was put at."""
    index = tuple(data.draw(st.integers(0, n - 1)) for n in grid.shape)
    values = np.zeros(grid.shape, np.float32)
    values[index] = 1
    found = through(Volume(values, grid), "a.nii.gz")
    at = np.argwhere(found.data[0].numpy() == 1)[0]
    by_hand = sum(grid.affine[:3, d] * index[d] for d in range(3)) + grid.affine[:3, 3]
    assert np.abs(found.grid.affine @ [*at, 1] - [*by_hand, 1]).max() <= EXACT
    seen = found(torch.tensor(by_hand[None], dtype=torch.float64).float())
    assert float(seen) == pytest.approx(1, abs=2e-3)


@few
@given(grid=grids(shear=True))
def test_a_field_on_a_grid(grid: Grid) -> None:
    """A degree-1 lattice field that is the identity x -> x gives back the voxel centres, also after its file."""
    basis = BSpline.on(grid, degree=1)
    field = Field(basis, grid.box(), channels=3)
    with torch.no_grad():
        field.net.coefficients.copy_(grid.points().movedim(-1, 0) - torch.tensor(grid.centre, dtype=torch.float32)[:, None, None, None])
    field.grid = grid
    with tempfile.TemporaryDirectory() as folder:
        write_field(field, Path(folder) / "a.field")
        found = read_field(Path(folder) / "a.field")
    assert found.grid is not None and found.grid.same_as(grid, 1e-9)
    points = np.asarray(found.on(found.grid)) + grid.centre[:, None, None, None]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    assert np.abs(np.moveaxis(points, 0, -1) - grid.world(index)).max() <= EXACT


@few
@given(grid=grids(shear=True))
def test_half_voxel_rule(grid: Grid) -> None:
    """Index 0 is the centre of the first voxel: the field of view reaches half a voxel beyond it, and doubling the voxels keeps it."""
    np.testing.assert_allclose(grid.world(np.zeros(3)), grid.affine[:3, 3])
    outer = grid.world(np.full(3, -0.5))
    np.testing.assert_allclose(grid.corners()[0], outer)
    fine = grid.with_spacing((grid.spacing / 2).tolist())
    assert fine.shape == tuple(2 * n for n in grid.shape)
    np.testing.assert_allclose(fine.world(np.full(3, -0.5)), outer, atol=1e-9)
    found = through(ramp(fine), "a.nii.gz").grid
    np.testing.assert_allclose(found.world(np.full(3, -0.5)), outer, atol=EXACT)
    np.testing.assert_allclose(found.world(np.full(3, 0.5)), grid.world(np.zeros(3)), atol=EXACT)
