"""Damaged and hostile files: a valid object comes out, or one of our errors; never anything else, and never much memory.

MEDFIELDS_FUZZ=3000 runs that many examples of each.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from io_samples import oblique, ramp, save_slices
from medfields.errors import MedfieldsError
from medfields.fields import MLP, Field, Fourier
from medfields.io import read_field, read_projections, read_volume, write_field, write_volume
from medfields.space import Volume

fuzz = settings(max_examples=int(os.environ.get("MEDFIELDS_FUZZ", "60")), deadline=None, suppress_health_check=list(HealthCheck))
resource = pytest.importorskip("resource")

NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1])


def sample(write: Callable[[Path], Any], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def only_ours(content: bytes, name: str, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of the bytes: an object, or None where it raised one of our errors. Warnings count as failures."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder) / name
        path.write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            made = read(path)
        except MedfieldsError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
            made = None
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB (on Linux)
        return made


def mutations(content: bytes, header: int) -> st.SearchStrategy[bytes]:
    """The bytes with a few numbers of the first `header` bytes replaced, some flipped, and perhaps an end cut off."""

    def apply(numbers: list[tuple[int, int, str]], flips: list[tuple[int, int]], end: int) -> bytes:
        made = bytearray(content)
        for at, value, kind in numbers:
            packed = struct.pack(kind, value & (256 ** struct.calcsize(kind) - 1))
            made[at:at + len(packed)] = packed
        for at, value in flips:
            made[at] = value
        return bytes(made[:len(made) - end])

    at = st.integers(0, header - 9)
    return st.builds(apply, st.lists(st.tuples(at, NUMBERS, st.sampled_from(["<B", "<H", "<I", "<Q", ">H"])), max_size=4),
                     st.lists(st.tuples(at, st.integers(0, 255)), max_size=6),
                     st.sampled_from([0, 0, 0, 1, 100, len(content) // 2, len(content) - 1]))


NIFTI = sample(lambda p: write_volume(ramp(oblique()), p), "a.nii")
FLOATS = st.one_of(st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf"), 1e-30, 1e30]), st.floats(width=32))


@st.composite
def nifti_headers(draw: st.DrawFn) -> bytes:
    """A file whose sizes, steps, codes, types and affines are drawn, one or several at a time."""
    made = bytearray(NIFTI)
    short = st.one_of(st.integers(-32768, 32767), st.integers(0, 7))
    fields: dict[str, tuple[int, str, st.SearchStrategy[Any]]] = {
        "dim": (40, "<8h", st.tuples(*[short] * 8)),
        "type": (70, "<2h", st.tuples(st.sampled_from([2, 4, 8, 16, 32, 64, 128, 256, 768, 1536, 1792, 9]), short)),
        "pixdim": (76, "<8f", st.tuples(*[FLOATS] * 8)), "offset": (108, "<f", st.tuples(FLOATS)),
        "scale": (112, "<2f", st.tuples(FLOATS, FLOATS)),
        "units": (123, "<B", st.tuples(st.integers(0, 255))), "codes": (252, "<2h", st.tuples(short, short)),
        "quaternion": (256, "<6f", st.tuples(*[FLOATS] * 6)), "srow": (280, "<12f", st.tuples(*[FLOATS] * 12)),
    }
    for name in draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=4, unique=True)):
        at, kind, values = fields[name]
        struct.pack_into(kind, made, at, *draw(values))
    return bytes(made)


@fuzz
@given(content=st.one_of(mutations(NIFTI, 352), nifti_headers()), packed=st.booleans(), channels=st.booleans(), upright=st.booleans())
def test_nifti(content: bytes, packed: bool, channels: bool, upright: bool) -> None:
    made = only_ours(gzip.compress(content, 1) if packed else content, "a.nii.gz",
                     lambda p: read_volume(p, channels=channels, assume_upright=upright))
    assert made is None or (isinstance(made, Volume) and np.isfinite(made.grid.affine).all())


PACKED = gzip.compress(NIFTI)


@fuzz
@given(content=mutations(PACKED, len(PACKED)))
def test_gzip(content: bytes) -> None:
    only_ours(content, "a.nii.gz", read_volume)


@fuzz
@given(content=st.binary(max_size=600), name=st.sampled_from(["a.nii", "a.nii.gz", "a.dcm", "a.mha", "a.nrrd", "a.field", "a"]))
def test_any_bytes(content: bytes, name: str) -> None:
    assert only_ours(content, name, read_volume) is None
    assert only_ours(content, name, read_field) is None


DICOM = sample(lambda p: os.replace(save_slices(p.parent / "s", ramp(oblique((5, 4, 1))))[0], p), "a.dcm")


@fuzz
@given(content=mutations(DICOM, len(DICOM)))
def test_dicom(content: bytes) -> None:
    made = only_ours(content, "a.dcm", read_volume)
    assert made is None or isinstance(made, Volume)


FIELD = sample(lambda p: write_field(Field(MLP(Fourier(size=4), width=4, depth=1), oblique().box(), 2, seed=0), p), "a.field")
LENGTH = struct.unpack("<Q", FIELD[:8])[0]
WORDS = st.one_of(st.text(max_size=8), st.sampled_from(["MLP", "Siren", "BSpline", "F32", "medfields/1"]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)), max_leaves=6)


@fuzz
@given(content=st.one_of(mutations(FIELD, 8 + LENGTH), mutations(FIELD, len(FIELD))))
def test_field_bytes(content: bytes) -> None:
    made = only_ours(content, "a.field", read_field)
    assert made is None or isinstance(made, Field)


def somewhere(data: st.DataObject, at: Any) -> None:
    """Replace, add or remove one thing somewhere inside nested JSON."""
    while isinstance(at, dict | list) and at:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "remove":
            del at[key]
        elif action == "add" and isinstance(at, dict):
            at[data.draw(st.text(max_size=6))] = data.draw(JSON)
        else:
            at[key] = data.draw(st.one_of(JSON, st.integers(0, 2**40), st.floats(allow_nan=True)))
        return


@fuzz
@given(data=st.data())
def test_field_headers(data: st.DataObject) -> None:
    """Both JSON headers stay JSON, with one to three parts replaced, added or removed."""
    outer = json.loads(FIELD[8:8 + LENGTH])
    header = json.loads(outer["__metadata__"]["medfields"])
    for _ in range(data.draw(st.integers(1, 3))):
        somewhere(data, data.draw(st.sampled_from([outer, header, header.get("spec"), header.get("box")])))
    if isinstance(outer.get("__metadata__"), dict) and "medfields" in outer["__metadata__"]:
        outer["__metadata__"]["medfields"] = json.dumps(header)
    text = json.dumps(outer).encode()
    made = only_ours(struct.pack("<Q", len(text)) + text + FIELD[8 + LENGTH:], "a.field", read_field)
    if made is not None:
        assert made.box.ndim == 3
        with torch.no_grad():
            made(torch.zeros(2, 3))


@pytest.mark.parametrize("packed", [False, True])
def test_matlab(packed: bool) -> None:
    about = {"distanceSourceOrigin": 400.0, "distanceSourceDetector": 500.0, "pixelSize": 0.2, "angles": np.arange(9.0), "scanner": "made up"}
    scan = {"CtData": {"sinogram": np.ones((9, 8)), "parameters": about}, "A": scipy.sparse.eye(4, format="csc")}
    content = sample(lambda p: scipy.io.savemat(p, scan, do_compression=packed), "a.mat")

    @fuzz
    @given(content=mutations(content, len(content)))
    def run(content: bytes) -> None:
        only_ours(content, "a.mat", read_projections)

    run()


@pytest.mark.parametrize("kind", ["mha", "nrrd"])
def test_itk(kind: str) -> None:
    pytest.importorskip("SimpleITK")
    content = sample(lambda p: write_volume(ramp(oblique()), p), f"a.{kind}")
    start = content.index(b"LOCAL" if kind == "mha" else b"\n\n") + 8

    @fuzz
    @given(content=mutations(content, start))
    def run(content: bytes) -> None:
        made = only_ours(content, f"a.{kind}", read_volume)
        assert made is None or isinstance(made, Volume)

    run()
