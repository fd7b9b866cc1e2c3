"""The files in which ITK and ANTs keep transforms, as lists of parts: text (.txt, .tfm), MATLAB 4 (.mat) and HDF5 (.h5).

All three say the same of each part: its type, its parameters and its fixed parameters. What these mean is said in `transforms`; here is only how
they are stored. No file is believed: every length is compared with what is there. Facts of the formats: ITK 5 (TransformFileWriter,
HDF5TransformIO), and MathWorks, MAT-File Format, "Level 4 MAT-File Format".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import FileError, InputError, OutputError
from .atomic import atomic
from .hdf5 import open_hdf5, tree
from .source import existing_file, first_bytes, unreadable

ENDINGS = (".h5", ".hdf5", ".txt", ".tfm", ".mat")
_TITLE = "#Insight Transform File V1.0"
_MATLAB = {0: "f8", 1: "f4", 2: "i4", 3: "i2", 4: "u2", 5: "u1"}  # Level 4: the P of MOPT


@dataclass(frozen=True)
class Part:
    """One transform: its type without precision and dimensions, its parameters (float64) and those that are not optimised."""

    kind: str
    parameters: np.ndarray = field(default_factory=lambda: np.zeros(0))
    fixed: np.ndarray = field(default_factory=lambda: np.zeros(0))


def read_parts(path: Path) -> list[Part]:
    """The transforms of a file, in its order; a composite stands for itself first, without parameters, and is followed by its parts.

    Raises:
        FileError: missing, damaged, or no file of transforms.
        InputError: a transform of other than three dimensions.
    """
    head = first_bytes(existing_file(path), 128)
    if head.startswith(b"\x89HDF\r\n"):
        found = list(_from_hdf5(path))
    elif head.lstrip().startswith(b"#Insight Transform File"):
        found = list(_from_text(path))
    elif re.match(rb"(?s).{20}[A-Za-z]\w*_(double|float)_\d_\d\0", head):
        found = list(_from_matlab(path))
    else:
        raise FileError(f"{path} holds no transform", "known: .field, ITK or ANTs transforms (.h5, .mat, .txt, .tfm), displacement images")
    if not found:
        raise FileError(f"{path} names no transform", "the file may be damaged: copy or write it again")
    return [_part(path, *entry) for entry in found]


def write_parts(parts: Sequence[Part], path: Path) -> None:
    """Write transforms in the format that the name asks for; several, or one displacement, as HDF5 or text only.

    Raises:
        OutputError: an unknown ending, what a .mat cannot hold, or a file that cannot be written.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise OutputError(f"no known file of transforms ends in '{path.suffix}'", f"use one of {', '.join(ENDINGS)}")
    if ending == ".mat" and (len(parts) > 1 or parts[0].kind != "AffineTransform"):
        raise OutputError(f"{path.name}: a .mat holds an affine map, this warp bends", "write it as .h5")
    with atomic(path) as temporary:
        if ending in (".h5", ".hdf5"):
            _to_hdf5(parts, temporary)
        elif ending == ".mat":
            temporary.write_bytes(_variable(f"{parts[0].kind}_double_3_3", parts[0].parameters) + _variable("fixed", parts[0].fixed))
        else:
            temporary.write_text("\n".join([_TITLE, *_lines(parts)]) + "\n", encoding="ascii")


def _part(path: Path, kind: str, parameters: Any, fixed: Any) -> Part:
    stated = re.fullmatch(r"(\w+?)_(?:double|float)_(\d)_(\d)", kind)
    if not stated:
        raise FileError(f"{path} holds a transform of the unknown type {kind[:60]!a}", "write it as a displacement field with the tool it is of")
    if stated[2] != "3" or stated[3] != "3":
        raise InputError(f"{path} holds a transform of {stated[2]} dimensions, ours have three", "register slices as images with one voxel across")
    try:
        numbers = [np.asarray(given, dtype=np.float64).ravel() for given in (parameters, fixed)]
    except (ValueError, TypeError) as error:
        raise unreadable(path, error) from error
    if not all(np.isfinite(n).all() for n in numbers):
        raise InputError(f"{path} holds NaN or infinite values in its {stated[1]}", "repair it first")
    return Part(stated[1], *numbers)


def _from_hdf5(path: Path) -> Iterator[tuple[str, Any, Any]]:
    with open_hdf5(path) as file:
        group = tree(file, path).get("TransformGroup")
    if not isinstance(group, dict) or not all(name.isdecimal() and isinstance(part, dict) for name, part in group.items()):
        raise FileError(f"{path} is an HDF5 file without transforms of ITK")
    for _, part in sorted(group.items(), key=lambda entry: int(entry[0])):
        # ITK before 5.1 wrote "Tranform"
        values = [part.get(f"Transform{name}", part.get(f"Tranform{name}", ())) for name in ("Parameters", "FixedParameters")]
        yield str(part.get("TransformType", "")), *values


def _to_hdf5(parts: Sequence[Part], path: Path) -> None:
    text = h5py.string_dtype("ascii")
    with h5py.File(path, "w") as file:
        file.create_dataset("ITKVersion", data=["5.4.0"], dtype=text)
        for n, part in enumerate(parts):
            group = file.create_group(f"TransformGroup/{n}")
            group.create_dataset("TransformType", data=[f"{part.kind}_double_3_3"], dtype=text)
            if part.kind != "CompositeTransform":
                packed = {"compression": "gzip", "compression_opts": 4} if part.parameters.size > 1000 else {}
                group.create_dataset("TransformParameters", data=part.parameters, **packed)
                group.create_dataset("TransformFixedParameters", data=part.fixed)


def _from_text(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """`Transform: type`, then `Parameters:` and `FixedParameters:` of it, each on one line."""
    kind, values = "", {"Parameters": "", "FixedParameters": ""}
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    for line in [*lines, "Transform:"]:
        name, _, value = line.partition(":")
        if name.strip() == "Transform":
            if kind:
                yield kind, values["Parameters"].split(), values["FixedParameters"].split()
            kind, values = value.strip(), dict.fromkeys(values, "")
        elif name.strip() in values:
            values[name.strip()] = value


def _lines(parts: Sequence[Part]) -> Iterator[str]:
    for n, part in enumerate(parts):
        yield f"#Transform {n}\nTransform: {part.kind}_double_3_3"
        if part.kind != "CompositeTransform":
            yield from (f"{name}: {' '.join(map(repr, values.tolist()))}" for name, values in
                        (("Parameters", part.parameters), ("FixedParameters", part.fixed)))


def _from_matlab(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Level 4: variables one after the other; that of a type is followed by one called "fixed"."""
    content, at, waiting = path.read_bytes(), 0, None
    while at < len(content):
        name, values, at = _matlab_variable(path, content, at)
        if name == "fixed" and waiting is not None:
            yield *waiting, values
            waiting = None
        else:
            if waiting is not None:
                yield *waiting, ()
            waiting = (name, values)
    if waiting is not None:
        raise FileError(f"{path} is cut off: the fixed parameters of {waiting[0][:40]!a} are missing", "copy or write it again")


def _matlab_variable(path: Path, content: bytes, at: int) -> tuple[str, np.ndarray, int]:
    """Name and values of the variable at a byte, and where the next one starts."""
    cut = FileError(f"{path} is cut off or damaged at byte {at}", "copy or write it again")
    if len(content) - at < 20:
        raise cut
    order = next((o for o in "<>" if int(np.frombuffer(content, f"{o}u4", 1, at)[0]) < 5000), "<")
    mopt, rows, columns, imaginary, length = np.frombuffer(content, f"{order}u4", 5, at).tolist()
    dtype = _MATLAB.get(mopt // 10 % 10)
    if dtype is None or mopt % 10 or imaginary or not 1 <= length <= 256:
        raise cut
    start = at + 20 + length
    end = start + rows * columns * np.dtype(dtype).itemsize
    if end > len(content):
        raise cut
    name = content[at + 20:start].split(b"\0")[0].decode("latin-1")
    return name, np.frombuffer(content, order + dtype, rows * columns, start), end


def _variable(name: str, values: np.ndarray) -> bytes:
    """A column of doubles, little-endian."""
    header = np.array([0, len(values), 1, 0, len(name) + 1], "<u4").tobytes()
    return header + name.encode("ascii") + b"\0" + values.astype("<f8").tobytes()
