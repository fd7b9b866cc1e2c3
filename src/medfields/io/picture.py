"""Pictures (PNG, JPEG, TIFF, BMP) as slices: they state no millimetres, so a pixel is taken as 1 mm.

A picture shows an axial slice as radiologists look at it: the patient's right is at its left, the front is above. It becomes a grid of K = 1
whose i and j run along columns and rows, towards -x and -y.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import FileError, InputError
from ..space import Grid, Volume
from .read import read_volume
from .source import existing_file, first_bytes, provenance, unreadable

_SIGNS = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
_AXIAL = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_image(path: str | os.PathLike[str], channels: bool = False) -> Volume:
    """Any image: a picture, or whatever `read_volume` reads, with several channels if allowed.

    Raises:
        As `read_picture` and `read_volume`.
    """
    path = Path(path)
    if not path.is_dir() and first_bytes(existing_file(path), 4).startswith(_SIGNS):
        return read_picture(path)
    return read_volume(path, channels=channels)


def read_picture(path: str | os.PathLike[str]) -> Volume:
    """A grey picture as a slice of 1 mm pixels; its `about["geometry"]` says so.

    Raises:
        FileError: missing, damaged, cut off, or no picture.
        InputError: colours.
    """
    path = existing_file(path)
    try:
        with Image.open(path) as picture:
            pixels, mode = np.asarray(picture), picture.mode
            if mode in ("P", "PA"):
                pixels = np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError as error:
        raise FileError(f"{path} is no picture", "PNG, JPEG, TIFF and BMP are read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(path, error) from error
    values = pixels.astype(np.float32)
    if values.ndim == 3 and values.shape[2] in (2, 4):  # the last is transparency
        values = values[..., :-1] if mode != "CMYK" else values
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise InputError(f"{path} is in colours", "registration compares one number a pixel: save it in grey")
        values = values[..., 0]
    facts = {"geometry": "no millimetres stated, pixels taken as 1 mm"}
    return Volume(values.T[..., None], Grid((values.shape[1], values.shape[0], 1), _AXIAL), about=provenance("picture", path, **facts))
