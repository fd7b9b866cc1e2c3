"""The `.field` file: one safetensors container whose JSON header says what the tensors are. Nothing is unpickled, nothing is executed.

Layout: 8 bytes little-endian length, that many bytes of JSON, then the raw tensors. The JSON entry `__metadata__.medfields` holds our own
header, itself JSON text:

    {"format": "medfields/1", "kind": "field", "spec": {"kind": "Siren", ...}, "box": {"lo", "hi", "axes"}, "space": "RAS+ mm",
     "channels": [names], "unit": "", "scale": [C], "offset": [C], "grid": {"shape", "affine", "frame"} or null, "about": {...}}

The tensors are the weights of the network alone. A header is believed in nothing: it is checked against the size of the file and against
what its spec builds, before any memory is set aside for it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from ..errors import FileError, InputError
from ..fields import Field
from ..fields.spec import from_json, to_json
from ..space import Box, Grid
from .atomic import atomic
from .source import existing_file, place, unreadable

VERSION = 1
_LONGEST_HEADER = 1 << 24
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
          torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
_DAMAGED = "the file is damaged: copy or write it again"


def write_field(field: Field, path: str | os.PathLike[str], about: dict[str, Any] | None = None) -> None:
    """Write a field with its box, units, grid and provenance. `about` adds to, and wins over, `field.about`.

    Raises:
        InputError: if `about` holds what JSON cannot.
        OutputError: if the file cannot be written; an earlier file of that name then stays.
    """
    grid = field.grid
    axes = ["x mm", "y mm", "z mm", *(f"axis {d}" for d in range(4, 9))][:field.box.ndim]
    header = {
        "format": f"medfields/{VERSION}", "kind": "field", "spec": to_json(field.spec),
        "box": {"lo": field.box.lo, "hi": field.box.hi, "axes": axes}, "space": "RAS+ mm",
        "channels": list(field.names) or [""] * field.channels, "unit": field.unit,
        "scale": field.scale.tolist(), "offset": field.offset.tolist(),
        "grid": None if grid is None else {"shape": grid.shape, "affine": grid.affine.tolist(), "frame": grid.frame},
        "about": {**field.about, **(about or {})},
    }
    text = json.dumps(_plain(header), allow_nan=False)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in field.net.state_dict().items()}
    content = safetensors.torch.save(tensors, metadata={"medfields": text})
    if int.from_bytes(content[:8], "little") > _LONGEST_HEADER:
        raise InputError("the provenance of this field is too long for a .field file (16 MB)", "leave arrays out of `about`")
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def read_field(path: str | os.PathLike[str]) -> Field:
    """The field as it was written: same values at every point, with its `grid` and `about`.

    Raises:
        FileError: not a `.field` file, damaged, written by a newer medfields, or tensors that do not fit the spec.
        GeometryError: an impossible box or grid.
        UnknownName: a spec that this version, or a missing plug-in, does not know.
    """
    path = existing_file(path)
    header, stored = _headers(path)
    if header["kind"] != "field":
        kind = ascii(header["kind"][:40])[1:-1]
        raise FileError(f"{path} is a {kind}, not a field", "give it to a method with --prior, or fit a field with it")
    try:
        field = _build(header, path, stored)
        field.net.load_state_dict(safetensors.torch.load_file(path), strict=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise unreadable(path, error) from error
    return field


def read_field_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked JSON header of a `.field` file, without its tensors.

    Raises:
        FileError: as `read_field`.
    """
    return _headers(existing_file(path))[0]


def _plain(value: Any) -> Any:
    """Numbers, text, lists and dicts only. What is not finite becomes null, which is all JSON can say of it."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise InputError(f"a value of type {type(value).__name__} cannot be stored in a .field file", "store it as text or numbers")


def _headers(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, list[int]]]]:
    """Our header, and dtype and shape of every tensor, of a file whose layout is sound."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise FileError(f"{path} is not a .field file, or is cut off", "fields are written by medfields; is it an image?")
            outer = _json(f.read(length), path)
    except OSError as error:
        raise unreadable(path, error) from error
    metadata = outer.pop("__metadata__", None)
    text = metadata.get("medfields") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise FileError(f"{path} holds tensors but no medfields header", "it was written by another program")
    header = _json(text.encode("utf-8", "surrogatepass"), path)
    _require_version(header, path)
    return header, _layout(outer, size - 8 - length, path)


def _json(text: bytes, path: Path) -> dict[str, Any]:
    """One JSON object, with no name twice and no NaN."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a name occurs twice")
        return made

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} has a header that is no proper JSON: {str(error)[:100]}", _DAMAGED) from error
    if not isinstance(value, dict):
        raise FileError(f"{path} has a header that is no JSON object", _DAMAGED)
    return value


def _require_version(header: dict[str, Any], path: Path) -> None:
    stated = header.get("format")
    name, _, number = stated.partition("/") if isinstance(stated, str) else ("", "", "")
    if name != "medfields" or not (number.isascii() and number.isdigit() and len(number) < 10) or int(number) < 1:
        raise FileError(f"{path} is in no format of medfields", _DAMAGED)
    if int(number) > VERSION:
        raise FileError(f"{path} was written by a newer medfields (format {int(number)}, this version reads up to {VERSION})",
                        "upgrade: pip install -U medfields")
    if not isinstance(header.get("kind"), str):
        raise FileError(f"{path} does not say what it holds", _DAMAGED)


def _layout(entries: dict[str, Any], size: int, path: Path) -> dict[str, tuple[str, list[int]]]:
    """dtype and shape of every tensor, if together they fill the rest of the file exactly, without gaps or overlaps."""
    found: dict[str, tuple[str, list[int]]] = {}
    spans: list[list[int]] = []
    for name, entry in entries.items():
        parts: list[Any] = [entry.get(key) for key in ("dtype", "shape", "data_offsets")] if isinstance(entry, dict) else [None] * 3
        dtype, shape, span = parts
        sound = isinstance(dtype, str) and dtype in _BYTES and _counts(shape) and _counts(span, 2) and len(entry) == 3
        if not sound or span[1] - span[0] != math.prod(shape) * _BYTES[dtype]:
            raise FileError(f"{path} describes a tensor that cannot be ({name[:40]!a})", _DAMAGED)
        found[name] = dtype, shape
        spans.append(span)
    at = 0
    for first, last in sorted(spans):
        if first != at:
            raise FileError(f"{path} has tensors that overlap or leave gaps", _DAMAGED)
        at = last
    if at != size:
        raise FileError(f"{path} is cut off or too long: its tensors fill {at} bytes, it has {size}", _DAMAGED)
    return found


def _counts(value: Any, n: int | None = None) -> bool:
    """Whether it is a short list of non-negative integers, `n` of them."""
    return (isinstance(value, list) and len(value) <= 16 and n in (None, len(value))
            and all(type(v) is int and 0 <= v < 1 << 48 for v in value))


def _build(header: dict[str, Any], path: Path, stored: dict[str, tuple[str, list[int]]]) -> Field:
    """The field with fresh weights, once it is known that the stored ones fit."""
    spec = from_json(header.get("spec"))
    try:
        box = _box(header["box"])
        names = header["channels"]
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names) or not isinstance(header["unit"], str):
            raise ValueError("channels or unit")
        scale, offset = (torch.tensor(_numbers(header[key], len(names))) for key in ("scale", "offset"))
        grid, about = _grid(header["grid"], path), header["about"]
        if header["space"] != "RAS+ mm" or not isinstance(about, dict):
            raise ValueError("space or about")
    except (KeyError, ValueError, OverflowError) as error:
        raise FileError(f"{path} lacks a part of its header, or has it wrong: {error}", _DAMAGED) from error

    def made(device: str) -> Field:
        with torch.device(device):  # a seed, so that reading leaves the caller's random numbers alone
            return Field(spec, box, len(names), scale=scale.to(device), offset=offset.to(device), unit=header["unit"],
                         names=tuple(names) if any(names) else (), seed=0)

    try:
        expected = {name: (_NAMES.get(t.dtype), list(t.shape)) for name, t in made("meta").net.state_dict().items()}
    except (RuntimeError, ValueError, OverflowError, TypeError) as error:
        raise FileError(f"{path} describes a function that cannot be built: {str(error).splitlines()[0][:100]}", _DAMAGED) from error
    if expected != stored:
        wrong = sorted(n for n in set(expected) | set(stored) if expected.get(n) != stored.get(n))[0]
        said = [f"{t[0]} {t[1]}" if (t := tensors.get(wrong)) else "absent" for tensors in (stored, expected)]
        raise FileError(f"{path}: tensor {wrong[:60]!a} is {said[0]} but {said[1]} by its spec", _DAMAGED)
    field = made("cpu")
    field.grid, field.about = grid, about
    return field


def _numbers(value: Any, n: int | None) -> list[float]:
    """A list of `n` finite numbers."""
    if not isinstance(value, list) or (n is not None and len(value) != n):
        raise ValueError("a list of numbers has the wrong length")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e30 for v in value):
        raise ValueError("a list of numbers holds something else")
    return [float(v) for v in value]


def _box(value: Any) -> Box:
    if not isinstance(value, dict):
        raise ValueError("box")
    return Box(tuple(_numbers(value.get("lo"), None)), tuple(_numbers(value.get("hi"), None)))


def _grid(value: Any, path: Path) -> Grid | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not _counts(value.get("shape"), 3) or not isinstance(value.get("frame"), str):
        raise ValueError("grid")
    rows = value.get("affine")
    if not isinstance(rows, list) or len(rows) != 4 or math.prod(value["shape"]) > 1 << 40:
        raise ValueError("grid")
    return place(path, value["shape"], np.array([_numbers(row, 4) for row in rows]), value["frame"])
