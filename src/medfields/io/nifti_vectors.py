"""Displacements as NIfTI: a vector at every voxel, five axes I, J, K, 1, C, and an intent that says in which axes the vectors count."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from ..errors import FileError, InputError
from ..space import Volume
from .atomic import atomic
from .nifti import grid_of, quiet, read_data, read_header
from .source import provenance

Vectors = Literal["itk", "nifti"]
_INTENTS = {"nifti": 1006, "itk": 1007}  # NIFTI_INTENT_DISPVECT, NIFTI_INTENT_VECTOR


def read_vectors(path: Path) -> tuple[Volume, Vectors]:
    """The vectors as channels, as they stand in the file, and whose axes they count in.

    "nifti" is RAS mm, as the standard defines displacement vectors (intent 1006); "itk" is LPS mm, which ITK and ANTs write as intent 1007. ITK
    from 5.4 on reads both so. Images of shape I, J, K, C are accepted with either intent.

    Raises:
        FileError: not NIfTI, or damaged.
        GeometryError: no place in the world.
        InputError: no vectors, or an intent that does not say what they are.
    """
    with quiet(), np.errstate(all="ignore"):
        header, start = read_header(path)
        dim = [int(n) for n in header["dim"]]
        shape = dim[1:1 + dim[0]]
        if not 1 <= dim[0] <= 7 or min(shape) < 1:
            raise FileError(f"{path} states impossible sizes {dim}", "its header is damaged")
        if len(shape) == 5 and shape[3] == 1:
            del shape[3]
        if len(shape) != 4:
            raise InputError(f"{path} is an image of {'x'.join(map(str, shape))} values, not of displacements: those are I x J x K x 1 x 3",
                             "give a .field, a transform or a displacement image")
        axes = next((name for name, code in _INTENTS.items() if code == header["intent_code"]), None)
        if axes is None or header.get_intent()[2].startswith("NREG"):  # NiftyReg's are positions or displacements, by another code
            raise InputError(f"{path} does not say what its vectors are (NIfTI intent {int(header['intent_code'])})",
                             "nibabel: img.header.set_intent(1006) for displacements in RAS mm, 1007 for LPS mm as of ITK and ANTs")
        grid, facts = grid_of(header, tuple(shape[:3]), path, False)
        data = read_data(header, start, (shape[0], shape[1], shape[2], shape[3]), path)
    return Volume(np.moveaxis(data, -1, 0), grid, about=provenance("nifti", path, **facts)), "nifti" if axes == "nifti" else "itk"


def write_vectors(vectors: Volume, path: Path, axes: Vectors) -> None:
    """Channels as vectors, float32, with the intent of `axes`; the values are written as they are.

    Raises:
        OutputError: if the file cannot be written.
    """
    data = np.moveaxis(vectors.data.detach().cpu().numpy(), 0, -1)[:, :, :, None]
    affine = np.array(vectors.grid.affine)
    kind = nibabel.Nifti1Image if max(data.shape) < 2**15 else nibabel.Nifti2Image
    image = kind(data, affine)
    image.header.set_intent(_INTENTS[axes])
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if not np.allclose(image.get_qform(), affine, rtol=0, atol=1e-4 * float(vectors.grid.spacing.min())):
        image.header["qform_code"] = 0  # it cannot hold shear
    with atomic(path) as temporary:
        nibabel.save(image, temporary)
