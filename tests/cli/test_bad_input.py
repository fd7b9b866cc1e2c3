"""What bad input gets: one line, a hint, its own exit code, no traceback, and nothing left behind."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from medfields.cases import Stacks
from medfields.cli import inspect
from medfields.fields import Field, Siren
from medfields.io import write_dicom, write_field, write_volume
from medfields.space import Box, Grid, Volume

A, B = Stacks.toy(0).stacks
FAST = ("--method", "srr-cg", "--steps", "3")


def nifti(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), affine), path)


def good(here: Path) -> None:
    write_volume(A.volume, here / "a.nii.gz")


def apart(here: Path) -> None:
    affine = B.volume.grid.affine.copy()
    affine[:3, 3] += 500
    write_volume(Volume(B.volume.data, Grid(B.volume.grid.shape, affine)), here / "b.nii.gz")


def four_axes(here: Path) -> None:
    nifti(here / "b.nii.gz", np.random.default_rng(0).normal(size=(8, 8, 4, 3)), np.diag([1, 1, 4, 1]))


def constant(here: Path) -> None:
    nifti(here / "b.nii.gz", np.full((8, 8, 4), 7), np.diag([1, 1, 4, 1]))


def with_nan(here: Path) -> None:
    data = np.random.default_rng(0).normal(size=(8, 8, 4))
    data[2, 3, 1] = np.nan
    nifti(here / "b.nii.gz", data, np.diag([1, 1, 4, 1]))


def singular(here: Path) -> None:
    """A NIfTI whose sform has two equal columns, patched into the bytes because nibabel refuses to write it."""
    nifti(here / "ok.nii", np.random.default_rng(0).normal(size=(8, 8, 4)), np.diag([1.0, 1, 4, 1]))
    content = bytearray((here / "ok.nii").read_bytes())
    for n, row in enumerate(([1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 4, 0])):
        struct.pack_into("<4f", content, 280 + 16 * n, *row)
    struct.pack_into("<h", content, 252, 0)  # no qform
    (here / "ok.nii").unlink()
    with gzip.open(here / "b.nii.gz", "wb") as f:
        f.write(content)


def zero_spacing(here: Path) -> None:
    singular(here)
    content = bytearray(gzip.decompress((here / "b.nii.gz").read_bytes()))
    for n, row in enumerate(([1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0])):
        struct.pack_into("<4f", content, 280 + 16 * n, *row)
    (here / "b.nii.gz").write_bytes(gzip.compress(content))


def text(here: Path) -> None:
    (here / "b.nii.gz").write_text("this is not an image\n")


def truncated(here: Path) -> None:
    write_volume(B.volume, here / "b.nii.gz")
    content = (here / "b.nii.gz").read_bytes()
    (here / "b.nii.gz").write_bytes(content[: len(content) // 2])


def empty(here: Path) -> None:
    (here / "b.nii.gz").write_bytes(b"")


def two_series(here: Path) -> None:
    write_dicom(B.volume, here / "one")
    write_dicom(B.volume, here / "two")
    (here / "b.nii.gz").mkdir()
    for series in ("one", "two"):
        uid = generate_uid()
        for n, file in enumerate(sorted((here / series).iterdir())):
            header = pydicom.dcmread(file)
            header.SeriesInstanceUID = uid
            header.save_as(here / "b.nii.gz" / f"{series}{n}.dcm")
        shutil.rmtree(here / series)


def missing_slices(here: Path) -> None:
    write_dicom(A.volume, here / "b.nii.gz")
    sorted((here / "b.nii.gz").iterdir())[2].unlink()


def nothing(here: Path) -> None:
    """b.nii.gz does not exist."""


STACKS = [
    (apart, 3, "do not overlap"),
    (four_axes, 2, ""),
    (constant, 2, "constant"),
    (with_nan, 2, "NaN"),
    (singular, 3, "singular"),
    (zero_spacing, 3, "singular"),
    (text, 4, "text"),
    (truncated, 4, "cut off"),
    (empty, 4, "empty"),
    (two_series, 2, "2 series"),
    (missing_slices, 3, "missing"),
    (nothing, 4, "no file"),
]


def check(said, code: int, says: str) -> None:
    assert said.code == code, (said.code, said.err)
    first, *rest = said.err.splitlines()
    assert first.startswith("medfields: error: ") and says in said.err
    assert len(rest) <= 1 and all(line.startswith("hint: ") for line in rest)
    assert "Traceback" not in said.err + said.out


@pytest.mark.parametrize(("make", "code", "says"), STACKS, ids=[make.__name__ for make, _, _ in STACKS])
def test_stacks(medfields, tmp_path: Path, make: Callable[[Path], None], code: int, says: str) -> None:
    good(tmp_path)
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check(medfields("superres", "a.nii.gz", "b.nii.gz", "-o", "out/iso.nii.gz", "--spacing", 1, *FAST), code, says)
    assert sorted(tmp_path.rglob("*")) == before


WORDS = [
    (("-o", "iso.nii.gz", "--spacing", "0"), 3, "positive"),
    (("-o", "iso.nii.gz", "--spacing", "-1"), 3, "positive"),
    (("-o", "iso.nii.gz", "--spacing", "nan"), 3, "positive"),
    (("-o", "iso.nii.gz", "--spacing", "0.0001"), 7, "--spacing"),
    (("-o", "iso.nii.gz", "--spacing", "1e-6"), 7, "--spacing"),  # more voxels than 64 bits count
    (("-o", "iso.nii.gz", "--thickness", "0"), 3, "thickness"),
    (("-o", "iso.nii.gz", "--thickness", "1", "2", "3"), 2, "thicknesses"),
    (("-o", "iso.nii.gz", "--like", "nowhere.nii.gz"), 4, "nowhere"),
    (("-o", "iso.nii.gz", "--spacing", "1", "--like", "a.nii.gz"), 2, "give one of the two"),
    (("-o", "iso.nii.gz", "--spacin", "1"), 2, "did you mean '--spacing'?"),
    (("-o", "iso.nii.gz", "--spacing"), 2, "missing value for argument '--spacing'"),
    (("-o", "iso.nii.gz", "--seed", "many"), 2, "--seed: invalid literal for int() with base 10: 'many'"),
    (("-o", "iso.nii.gz", "--profile", "round"), 2, "('gauss', 'box', 'none')"),
    (("-o", "iso.nii.gz", "--seconds", "-3"), 2, "seconds"),
    (("-o", "iso.nii.gz", "--device", "tpu9"), 2, "device"),
    (("-o", "iso.nii.gz", "--threads", "0"), 2, "threads"),
    (("-o", "iso.nii.gz", "--method", "srrcg"), 9, "did you mean 'srr-cg'"),
    (("-o", "iso.nii.gz", "--method", "./missing.py"), 4, "missing.py"),
    (("-o", "iso.nii.gz", "--config", "missing.toml"), 4, "missing.toml"),
    (("-o", "iso.nii.gz", "--contrast", "t1=a.nii.gz"), 2, "contrast"),
    (("-o", "iso.png"), 2, "format"),
    (("-o", "series.v2/"), 5, "no known image format"),
    (("-o", "./a.nii.gz"), 5, "overwritten"),
    ((), 2, "-o"),
    (("-o", "a.nii.gz/iso.nii.gz"), 5, "not a folder"),
]


@pytest.mark.parametrize(("words", "code", "says"), WORDS, ids=[" ".join(w) or "no output" for w, _, _ in WORDS])
def test_options(medfields, tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    good(tmp_path)
    method = () if "--method" in words else FAST
    check(medfields("superres", "a.nii.gz", *words, *method), code, says)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


PARSER = [
    (("query", "x.field"), "missing from medfields query: -o FILE"),
    (("query", "x.field", "--ouput", "y.nii.gz"), "Unrecognized options: --ouput y.nii.gz"),
    (("query", "x.field", "-o", "y.nii.gz", "--spacing", "wide"), "--spacing: no type matching"),
    (("list", "--tsk", "superres"), "did you mean '--task'?"),
    (("list", "superres"), "hint: medfields list --help"),
]


@pytest.mark.parametrize(("words", "says"), PARSER, ids=[" ".join(w) for w, _ in PARSER])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_words_that_cannot_be_parsed(medfields, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str, encoding: str) -> None:
    monkeypatch.setattr(type(sys.stdout), "encoding", encoding, raising=False)
    said = medfields(*words)
    check(said, 2, says)
    assert not set("│╭─") & set(said.err) and "--- " not in said.err


def test_what_a_command_says_itself_is_not_held_back(medfields, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(task: str = "") -> int:
        print(f"working on {task}", file=sys.stderr)
        raise SystemExit(3)

    monkeypatch.setattr(inspect, "list_methods", talk)
    said = medfields("list", "--task", "superres")
    assert (said.code, said.err) == (3, "working on superres\n")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_memory_that_runs_out_anywhere_is_one_line(medfields, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def greedy() -> int:
        raise error

    monkeypatch.setattr(inspect, "list_methods", greedy)
    check(medfields("list"), 7, "more memory than there is")
    monkeypatch.setattr(inspect, "list_methods", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        medfields("list")


def test_nothing_to_work_on(medfields, tmp_path: Path) -> None:
    check(medfields("superres", "-o", "iso.nii.gz", *FAST), 2, "nothing to work on")
    check(medfields("superres", "-o", "iso.nii.gz", "--contrast", "../t1=a.nii.gz", *FAST), 2, "not a contrast")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(medfields, tmp_path: Path) -> None:
    good(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o500)
    check(medfields("superres", "a.nii.gz", "-o", "locked/iso.nii.gz", *FAST), 5, "may not write")


@pytest.mark.parametrize("ending", ["iso.nii.gz", "iso.field", "report.html"])
def test_full_disk(medfields, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """The disk fills up while a result is written: what is being written vanishes, and so do all temporary files."""
    good(tmp_path)
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if str(target).endswith(ending):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    check(medfields("superres", "a.nii.gz", "-o", "iso.nii.gz", "--spacing", 1, *FAST), 5, "the disk is full")
    left = {p.name for p in tmp_path.rglob("*")}
    assert ending not in left and not [name for name in left if name.startswith(".")]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert medfields("superres", "a.nii.gz", "-o", "iso.nii.gz", "--spacing", 1, *FAST).code == 0


@pytest.fixture
def field(tmp_path: Path) -> Path:
    write_field(Field(Siren(width=8, depth=2), Box((0, 0, 0), (10, 10, 10)), seed=0), tmp_path / "x.field")
    return tmp_path / "x.field"


def rewrite(path: Path, change: Callable[[dict, dict], object]) -> None:
    """Change a field file's header: `change(outer, inner)`, in place or by what it returns for the inner one."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    outer = json.loads(content[8 : 8 + size])
    inner = json.loads(outer["__metadata__"]["medfields"])
    inner = change(outer, inner) or inner
    outer["__metadata__"]["medfields"] = json.dumps(inner)
    header = json.dumps(outer).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])


def reshape(outer: dict, inner: dict) -> None:
    name = next(n for n in outer if n != "__metadata__" and len(outer[n]["shape"]) == 2)
    outer[name]["shape"] = outer[name]["shape"][::-1]


FIELDS = [
    ("newer version", lambda outer, inner: inner.update(format="medfields/99"), 4, "newer"),
    ("no version", lambda outer, inner: inner.pop("format") and None, 4, "format"),
    ("wrong tensor shape", reshape, 4, "tensor"),
    ("other spec", lambda outer, inner: inner["spec"].update(width=9), 4, "tensor"),
    ("huge spec", lambda outer, inner: inner["spec"].update(width=10**9), 4, ""),
    ("unknown kind", lambda outer, inner: inner["spec"].update(kind="os.system"), 9, "os.system"),
    ("path as kind", lambda outer, inner: inner["spec"].update(kind="../../etc/passwd"), 9, ""),
    (
        "nested too deep",
        lambda outer, inner: inner.update(spec=json.loads('{"kind":"Siren","encoding":' * 40 + "1" + "}" * 40)),
        4,
        "nested",
    ),
    (
        "tensor beyond the end",
        lambda outer, inner: [outer[n].update(data_offsets=[0, 10**12]) for n in outer if n != "__metadata__"] and None,
        4,
        "",
    ),
    ("box inside out", lambda outer, inner: inner.update(box={"lo": [1, 1, 1], "hi": [0, 0, 0]}), 3, ""),
    ("text where a box is meant", lambda outer, inner: inner.update(box="big"), 4, ""),
]


@pytest.mark.parametrize(("change", "code", "says"), [f[1:] for f in FIELDS], ids=[f[0] for f in FIELDS])
def test_fields(medfields, tmp_path: Path, field: Path, change: Callable, code: int, says: str) -> None:
    rewrite(field, change)
    before = sorted(tmp_path.rglob("*"))
    check(medfields("query", field, "-o", "x.nii.gz", "--spacing", 1), code, says)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 7, b"text, not tensors", (10**15).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"{}"],
    ids=["empty", "short", "text", "endless header", "no metadata"],
)
def test_files_that_are_no_fields(medfields, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.field").write_bytes(content)
    check(medfields("query", "x.field", "-o", "x.nii.gz", "--spacing", 1), 4, "x.field")
    assert [p.name for p in tmp_path.iterdir()] == ["x.field"]
