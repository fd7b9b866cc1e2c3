"""DICOM series out: one derived MR or CT image per slice, 16 bit with rescale, fresh UIDs, nobody's name unless given."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from ..errors import GeometryError, InputError
from ..space import Grid, Volume
from .atomic import atomic
from .source import LPS_TO_RAS, check_finite


def write_dicom(volume: Volume, folder: Path, *, modality: str = "", description: str = "medfields", patient_id: str = "",
                patient_name: str = "") -> None:
    """Write `folder`/0001.dcm ... with the volume's geometry; the folder must be new or empty, or else `is_own_series`, which is replaced.

    Values are stored as int16, value = slope * stored + intercept: whole numbers that fit are kept exactly, others to
    1/65000 of their range.

    Args:
        modality: "MR" or "CT"; by default what the volume was read from, else CT for HU and MR for everything else.
        patient_id, patient_name: empty unless given.

    Raises:
        GeometryError: a sheared grid; plain slices cannot hold it.
        InputError: several channels, values that are not finite, another modality.
        OutputError: if the folder cannot be written.
    """
    modality = modality or str(volume.about.get("modality", "")) or ("CT" if volume.unit == "HU" else "MR")
    if modality not in ("MR", "CT"):
        raise InputError(f"a DICOM series is written as MR or CT, not as '{modality}'")
    if volume.channels != 1:
        raise InputError(f"a DICOM series holds one channel, the volume has {volume.channels}")
    check_finite(volume, "the volume to write")
    axes = volume.grid.directions
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4:
        raise GeometryError("a sheared grid cannot be written as a DICOM series", "write NIfTI, or resample to an upright grid first")
    stored, slope, intercept = _as_int16(volume.data[0].cpu().numpy())
    common = _common(volume, modality)
    common.SeriesDescription, common.PatientID, common.PatientName = description, patient_id, patient_name
    common.RescaleSlope, common.RescaleIntercept = _ds(slope), _ds(intercept)
    with atomic(folder, replace=is_own_series(folder)) as temporary:
        temporary.mkdir()
        for k in range(volume.grid.shape[2]):
            _slice(common, stored[:, :, k], volume.grid, k).save_as(temporary / f"{k + 1:04d}.dcm", enforce_file_format=True)


def is_own_series(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds slices that `write_dicom` wrote and nothing else: a result that the next one may replace, as with a file."""
    folder = Path(folder)
    try:
        files = list(folder.iterdir()) if folder.is_dir() else []
        return bool(files) and all(re.fullmatch(r"\d{4,}\.dcm", file.name) and _is_own(file) for file in files)
    except OSError:  # what cannot be read is not ours to replace
        return False


def _is_own(file: Path) -> bool:
    """Whether a file states us as its Manufacturer, byte for byte as `_common` writes it; nothing is parsed that could be damaged."""
    with file.open("rb") as content:
        return b"\x08\0\x70\0LO\x0a\0medfields " in content.read(2048)


def _as_int16(data: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Stored values, slope and intercept, where slope and intercept are what their 16 decimal characters say."""
    low, high = float(data.min()), float(data.max())
    if low >= -32768 and high <= 32767 and np.array_equal(data, np.rint(data)):
        return data.astype(np.int16), 1.0, 0.0
    intercept = float(_ds((low + high) / 2))
    slope = float(_ds(max((high - low) / 65000, abs(intercept) * 1e-9, 1e-30)))
    return np.clip(np.rint((data.astype(np.float64) - intercept) / slope), -32768, 32767).astype(np.int16), slope, intercept


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return format_number_as_ds(float(value))


def _common(volume: Volume, modality: str) -> FileDataset:
    """All that the slices share."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    now = datetime.datetime.now()
    ds.SOPClassUID, ds.Modality, ds.ImageType = meta.MediaStorageSOPClassUID, modality, ["DERIVED", "SECONDARY", "OTHER"]
    ds.DerivationDescription, ds.Manufacturer = "resampled from a continuous field", "medfields"
    ds.ContentDate = ds.SeriesDate = now.strftime("%Y%m%d")
    ds.ContentTime = ds.SeriesTime = now.strftime("%H%M%S")
    for empty in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
                  "PatientPosition", "PositionReferenceIndicator", "Laterality"):
        setattr(ds, empty, "")
    if modality == "MR":
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "RM", "NONE", "", "3D"
        ds.EchoTime = ds.EchoTrainLength = ds.RepetitionTime = None
    else:
        ds.KVP, ds.AcquisitionNumber = None, None
        ds.RescaleType = "HU" if volume.unit == "HU" else "US"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber = generate_uid(), generate_uid(), 1
    ds.FrameOfReferenceUID = volume.grid.frame or generate_uid()
    ds.Columns, ds.Rows = volume.grid.shape[0], volume.grid.shape[1]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    spacing, axes = volume.grid.spacing, (LPS_TO_RAS[:3, :3] @ volume.grid.directions)
    ds.PixelSpacing = [_ds(spacing[1]), _ds(spacing[0])]  # between rows first
    ds.ImageOrientationPatient = [_ds(v) for v in (*axes[:, 0], *axes[:, 1])]
    ds.SliceThickness, ds.SpacingBetweenSlices = _ds(float(volume.about.get("thickness_mm", spacing[2]))), _ds(spacing[2])
    return ds


def _slice(common: FileDataset, stored: np.ndarray, grid: Grid, k: int) -> FileDataset:
    """`common`, with what belongs to slice k alone."""
    common.SOPInstanceUID = common.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    common.InstanceNumber = k + 1
    common.ImagePositionPatient = [_ds(v) for v in LPS_TO_RAS[:3, :3] @ grid.world(np.array([0, 0, k]))]
    common.PixelData = np.ascontiguousarray(stored.T).astype("<i2").tobytes()
    return common
