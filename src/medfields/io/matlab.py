"""MATLAB files of version 5 as plain dictionaries, trusted in nothing: every length is compared with what is there before it is used.

scipy.io.loadmat believes the lengths it finds, so a damaged file may cost all memory, or the process. This reader is Python, numpy and
zlib only, and no object is executed. Layout: MathWorks, MAT-File Format, "Level 5 MAT-File Format". Its other formats are HDF5 (7.3), which
`hdf5` reads, and version 4, which has no structs and cannot hold a scan.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileError
from .source import unreadable

_HEADER = 128
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # miINT8 ... miUINT64
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _DEFLATED = 14, 15
_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE, _FUNCTION, _OPAQUE = 1, 2, 3, 4, 5, 16, 17
_KINDS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # mxDOUBLE ... mxUINT64
_DEEPEST = 16


class _Damaged(Exception):
    """What is wrong, in one line."""


def read_mat5(path: Path) -> dict[str, Any]:
    """Variables by name: numbers as arrays without axes of length one, text as str, a struct as a dict, an array of structs and a cell as a list.

    What else MATLAB has (sparse matrices, functions, objects of classes) is None.

    Raises:
        FileError: cut off, damaged, or of another version.
    """
    try:
        content = memoryview(path.read_bytes())
        order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:_HEADER]))
        if order is None or content[125 if order == "<" else 124] != 1:
            raise FileError(f"{path} is no MATLAB file of version 5 or 7", "save it with -v7 or -v7.3")
        variables = {}
        for kind, part in _elements(content[_HEADER:], order):
            if kind == _DEFLATED:
                kind, part = next(_elements(_inflated(part, order), order))
            if kind == _MATRIX:
                name, value = _matrix(part, order, 0)
                if name:  # what has none belongs to functions and objects
                    variables[name] = value
        return variables
    except (_Damaged, OSError, ValueError, IndexError, StopIteration, OverflowError, MemoryError, zlib.error) as error:
        raise unreadable(path, error) from error


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and bytes of one element after the other; all but deflated ones are padded to 8 bytes."""
    at = 0
    while at < len(content):
        if at + 8 > len(content):
            raise _Damaged(f"{len(content) - at} bytes where a tag is meant")
        kind, size = np.frombuffer(content, f"{order}u4", 2, at).tolist()
        start, padded = at + 8, size if kind == _DEFLATED else -(-size // 8) * 8
        if kind >> 16:  # a small element: type, size and up to 4 bytes in the place of a tag
            kind, size, start, padded = kind & 0xFFFF, kind >> 16, at + 4, 4
        if size > len(content) - start or size > padded:
            raise _Damaged(f"an element promises {size} bytes where {len(content) - start} are left")
        yield kind, content[start:start + size]
        at = start + padded


def _inflated(part: memoryview, order: str) -> memoryview:
    """The tag and the bytes of the one element in a deflated one. Memory grows with what is there, not with what the tag promises.

    The checksum counts: a change that deflate does not notice would be read as numbers.
    """
    engine, made = zlib.decompressobj(), bytearray()
    for at in range(0, len(part), 1 << 16):
        made += engine.decompress(part[at:at + (1 << 16)])
        if len(made) >= 8 and len(made) > 16 + int.from_bytes(made[4:8], "little" if order == "<" else "big"):
            raise _Damaged("a deflated element holds more than its tag says")
    if not engine.eof:
        raise _Damaged("a deflated element is cut off")
    return memoryview(made)


def _matrix(content: memoryview, order: str, depth: int) -> tuple[str, Any]:
    """Name and value of an array, which may hold others; without bytes it is an empty one."""
    if not len(content):
        return "", np.zeros(0)
    if depth > _DEEPEST:
        raise _Damaged(f"arrays are nested deeper than {_DEEPEST}")
    parts = _elements(content, order)
    flags = int(_numbers(next(parts), order)[0])
    kind = flags & 0xFF
    if kind == _OPAQUE:  # an object of a class, which has no shape
        return _text(next(parts), order), None
    if kind not in _KINDS and kind not in (_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE, _FUNCTION):
        raise _Damaged(f"an array of the unknown class {kind}")
    shape = tuple(map(int, _numbers(next(parts), order).tolist()))
    name = _text(next(parts), order)
    if len(shape) < 2 or min(shape) < 0:
        raise _Damaged(f"{name[:40]!r} has the shape {shape[:8]}")
    count = math.prod(shape)
    if kind in (_SPARSE, _FUNCTION):
        return name, None
    if kind in (_CELL, _STRUCT, _OBJECT):
        return name, _nested(kind, count, parts, order, depth)
    data = next(parts)
    if kind == _CHAR:
        return name, _text(data, order)
    values = _numbers(data, order)
    with np.errstate(all="ignore"):  # a damaged number may fit no integer and no float32
        values = values + 1j * _numbers(next(parts), order) if flags & 0x800 else values.astype(_KINDS[kind])
    if values.size != count:
        raise _Damaged(f"{name[:40]!r} has {values.size} values for the shape {shape[:8]}")
    return name, values.reshape(shape, order="F").squeeze()


def _nested(kind: int, count: int, parts: Iterator[tuple[int, memoryview]], order: str, depth: int) -> Any:
    """A cell as a list; a struct as a dict, or a list of those."""
    fields = [""]
    if kind != _CELL:
        if kind == _OBJECT:
            next(parts)  # the name of its class
        width, names = int(_numbers(next(parts), order)[0]), bytes(next(parts)[1])
        if width < 1 or len(names) % width:
            raise _Damaged(f"{len(names)} bytes of names of fields, {width} each")
        fields = [names[i:i + width].split(b"\0")[0].decode("utf-8", "replace") for i in range(0, len(names), width)]
        if not fields:
            return {}
    made = []
    for _ in range(count):
        row = {}
        for field in fields:
            inner, part = next(parts)
            row[field] = _matrix(part, order, depth + 1)[1] if inner == _MATRIX else None
        made.append(row)
    if kind == _CELL:
        return [row[""] for row in made]
    return made[0] if len(made) == 1 else made


def _numbers(element: tuple[int, memoryview], order: str) -> np.ndarray:
    kind, content = element
    if kind not in _NUMBERS:
        raise _Damaged(f"numbers of the unknown type {kind}")
    return np.frombuffer(content, order + _NUMBERS[kind])


def _text(element: tuple[int, memoryview], order: str) -> str:
    """Characters; of a table of them, column by column."""
    kind, content = element
    if kind not in _TEXT:
        raise _Damaged(f"text of the unknown type {kind}")
    end = {"<": "-le", ">": "-be"}[order] if kind in (4, 17, 18) else ""
    return bytes(content).decode(_TEXT[kind] + end, "replace").rstrip()
