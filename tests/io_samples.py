"""Small images for the file tests: grids of every kind, and a DICOM writer that shares nothing with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medfields.space import Grid, Volume

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    """[3, 3], turning about x, then y, then z."""
    made = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        made = turn @ made
    return made


def oblique(shape: tuple[int, int, int] = (5, 4, 3), spacing: tuple[float, float, float] = (0.7, 1.1, 4.0), frame: str = "") -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation((0.3, -0.2, 0.5)) * spacing
    affine[:3, 3] = -31.25, 12.5, 80.0
    return Grid(shape, affine, frame)


@st.composite
def grids(draw: st.DrawFn, shear: bool = False) -> Grid:
    """Random oblique, anisotropic, flipped and permuted grids, up to half a metre from the world's origin."""
    angle, step = st.floats(-np.pi, np.pi), st.floats(0.2, 8.0)
    axes = rotation(draw(st.tuples(angle, angle, angle)))
    axes = axes[:, draw(st.permutations([0, 1, 2]))] * draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    if shear:
        slant = st.floats(-0.4, 0.4)
        axes = axes @ np.array([[1, draw(slant), draw(slant)], [0, 1, draw(slant)], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = axes * draw(st.tuples(step, step, step))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return Grid(draw(st.tuples(*[st.integers(2, 6)] * 3)), affine)


def ramp(grid: Grid, **about: Any) -> Volume:
    """A different whole number in every voxel."""
    return Volume(np.arange(grid.size, dtype=np.float32).reshape(grid.shape), grid, about=about)


def same_values_in_the_world(found: Volume, true: Volume, tolerance: float) -> None:
    """Each voxel of `true` is found in `found` at the same world point within `tolerance` mm, with the same value."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in true.grid.shape], indexing="ij"), -1)
    world = true.grid.world(index)
    nearest = np.rint(found.grid.index(world)).astype(int)
    assert sorted(found.grid.shape) == sorted(true.grid.shape)
    assert nearest.min() >= 0 and (nearest < found.grid.shape).all()
    assert np.abs(found.grid.world(nearest) - world).max() <= tolerance
    np.testing.assert_allclose(found.data[0].numpy()[tuple(np.moveaxis(nearest, -1, 0))], true.data[0].numpy(), rtol=1e-6, atol=1e-4)


def save_slices(folder: Path, volume: Volume, order: list[int] | None = None, **changes: Any) -> list[Path]:
    """A DICOM series of `volume`, written from first principles: names and instance numbers follow `order`, not space.

    `changes` replace attributes in every slice; a callable gets k.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = FLIP @ volume.grid.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    order = list(range(volume.grid.shape[2])) if order is None else order
    series, paths = generate_uid(), []
    for n, k in enumerate(order):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MRImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber, ds.SeriesDescription = "MR", series, 3, "t2 axial"
        ds.InstanceNumber, ds.FrameOfReferenceUID, ds.SliceThickness = n + 1, "1.2.3.4", 2.5
        ds.Columns, ds.Rows = volume.grid.shape[:2]
        ds.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"]
        ds.ImageOrientationPatient = [f"{v:.12f}"[:16] for v in (*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1]))]
        ds.ImagePositionPatient = [f"{v:.9f}"[:16] for v in lps[:3] @ (0, 0, k, 1)]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 0
        ds.PixelData = volume.data[0, :, :, k].numpy().T.astype("<u2").tobytes()
        for name, value in changes.items():
            if value is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value(k) if callable(value) else value)
        paths.append(folder / f"im{n:03d}.dcm")
        pydicom.dcmwrite(paths[-1], ds, enforce_file_format=True)
    return paths

