"""HDF5 files as plain dictionaries, trusted in nothing: sizes are compared with the file, and links stay inside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import FileError
from .source import could_hold, unreadable

_DEEPEST = 3


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The open file; what h5py says of a damaged one becomes one line.

    Raises:
        FileError: truncated, damaged, or with a filter that is not installed.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError, MemoryError, NotImplementedError) as error:
        raise unreadable(path, error) from error


def tree(group: h5py.Group, path: Path, depth: int = 0) -> dict[str, Any]:
    """Attributes and datasets by name, groups as dictionaries; the attribute `a` of the dataset `d` is called `d_a`.

    Raises:
        FileError: for data that are kept in another file or promise more than this one can hold, and for endless nesting.
    """
    if depth > _DEEPEST:
        raise FileError(f"{path} nests its groups deeper than {_DEEPEST}", "is it really a file of projections?")
    made = _attributes(group, path)
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            raise FileError(f"{path} keeps '{name}' in another file", "write it again with the data inside")
        item = group[name]
        if isinstance(item, h5py.Group):
            made[name] = tree(item, path, depth + 1)
        elif isinstance(item, h5py.Dataset):
            made[name] = _content(item, path)
            made.update({f"{name}_{key}": value for key, value in _attributes(item, path).items()})
    return made


def _attributes(item: h5py.Group | h5py.Dataset, path: Path) -> dict[str, Any]:
    for name in item.attrs:
        stated = item.attrs.get_id(name)
        if stated.shape is not None and not math.prod(stated.shape) * max(1, stated.dtype.itemsize) <= path.stat().st_size:
            raise FileError(f"{path} promises {stated.shape} values of the attribute {name[:40]!r}, more than it can hold",
                            "copy or download it again")
    return {name: _plain(value) for name, value in item.attrs.items()}


def _content(data: h5py.Dataset, path: Path) -> Any:
    if data.is_virtual or data.external:
        raise FileError(f"{path} keeps '{data.name}' in another file", "write it again with the data inside")
    if data.shape is not None and not could_hold(path, data.size * data.dtype.itemsize):
        raise FileError(f"{path} promises {data.size} values of '{data.name}', more than it can hold", "copy or download it again")
    return _plain(data[()])


def _plain(value: Any) -> Any:
    """Text as str, whatever its storage."""
    if isinstance(value, bytes | np.bytes_):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "SUO":
        return _plain(value.ravel()[0])
    return value
