"""What every reader does first: is it there, is it a file, what is in it, and where did it come from."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import FileError, GeometryError, InputError
from ..space import Grid, Volume

GZIP = b"\x1f\x8b"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM and ITK count from right to left and from front to back, we and NIfTI the other way."""


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path, if a non-empty readable file is there.

    Raises:
        FileError: if not.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise FileError(f"{path} is a folder where a file is meant", "give the file inside it")
        if not path.exists():
            raise FileError(f"there is no file {path}", "check the spelling and the current folder")
        if path.stat().st_size == 0:
            raise FileError(f"{path} is empty", "copy or download it again")
        path.open("rb").close()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise unreadable(path, error) from error
    return path


def unreadable(path: Path, error: Exception) -> FileError:
    """The FileError for whatever went wrong below a reader, in one line."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return FileError(f"cannot read {path}: {reason.strip().splitlines()[-1][:200]}", "the file may be damaged: copy or download it again")


def open_plain_or_gzip(path: Path) -> BufferedIOBase:
    """The bytes of a file, unpacked if its content (whatever its name) is gzip."""
    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP
    return gzip.GzipFile(path, "rb") if packed else path.open("rb")


def first_bytes(path: Path, n: int = 1024) -> bytes:
    """Up to `n` leading bytes, after gzip; what cannot be unpacked counts as missing."""
    try:
        with open_plain_or_gzip(path) as f:
            return f.read(n)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""
    except OSError as error:
        raise unreadable(path, error) from error


def could_hold(path: Path, size: int) -> bool:
    """Whether a file, plain or deflated, can unpack to `size` bytes; deflate never shrinks more than 1032 times."""
    return size <= 1032 * path.stat().st_size + 1032


def read_exactly(path: Path, start: int, size: int) -> bytearray:
    """`size` bytes from `start` on, after gzip. Memory grows with what is really there, not with what a header promises.

    Raises:
        FileError: if the file ends earlier or cannot be unpacked.
    """
    short = FileError(f"{path} is cut off: its header promises {size} bytes of data", "copy or download it again")
    if not could_hold(path, start + size):
        raise short
    content = bytearray()
    try:
        with open_plain_or_gzip(path) as f:
            f.seek(start)
            while len(content) < size and (block := f.read(min(1 << 24, size - len(content)))):
                content += block
            while isinstance(f, gzip.GzipFile) and f.read(1 << 24):
                pass  # the checksum is compared at the end
    except EOFError as error:
        raise short from error
    except (OSError, zlib.error) as error:
        raise unreadable(path, error) from error
    if len(content) < size:
        raise short
    return content


def place(path: Path, shape: Sequence[int], affine: np.ndarray, frame: str = "") -> Grid:
    """The grid of a file; a geometry that makes no sense is reported with the file's name."""
    try:
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine, frame)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error.message}", error.hint) from error


def provenance(kind: str, *paths: Path, **facts: Any) -> dict[str, Any]:
    """`Volume.about` of what was read: source path, format, SHA-256 of the content, and what else the header states."""
    digests = []
    for path in paths:
        with path.open("rb") as f:
            digests.append(hashlib.file_digest(f, "sha256").hexdigest())
    total = digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    source = paths[0] if len(paths) == 1 else paths[0].parent
    return {"source": str(source), "kind": kind, "sha256": total, **facts}


def check_finite(volume: Volume, name: str = "the image") -> None:
    """Raise unless every value is finite.

    Raises:
        InputError: naming how many voxels are not.
    """
    bad = int((~torch.isfinite(volume.data)).sum())
    if bad:
        raise InputError(f"{name} holds {bad} voxels that are not numbers (NaN or infinite)", "mask them or replace them by 0 first")


def check_not_constant(volume: Volume, name: str = "the image") -> None:
    """Raise if all voxels have one value: there is nothing to reconstruct.

    Raises:
        InputError: naming the value.
    """
    if volume.data.min() == volume.data.max():
        raise InputError(f"{name} is constant: every voxel is {float(volume.data.min()):g}", "is it the right file?")
