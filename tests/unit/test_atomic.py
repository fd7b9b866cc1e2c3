"""Results appear whole or not at all, and a refusal by the system is one line with a hint."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from io_samples import oblique, ramp
from medfields import io
from medfields.errors import InputError, OutputError
from medfields.fields import Field, Siren
from medfields.solve import checkpoint

resource = pytest.importorskip("resource")


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folders" / "a.txt"
    for text in ("first", "second"):
        with io.atomic(target) as temporary:
            assert temporary.name == target.name and temporary.parent != target.parent
            temporary.write_text(text)
        assert target.read_text() == text
    assert os.listdir(target.parent) == ["a.txt"]


def test_not_visible_before_the_end(tmp_path: Path) -> None:
    with io.atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("error", [InputError("no"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), io.atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (happened.append("sync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("rename"), replace(a, b)))
    with io.atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert happened == ["sync", "rename", "sync"]  # the file, its name, the folder that holds the name


def test_writing_nothing_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="wrote nothing"), io.atomic(tmp_path / "a.txt") as temporary:
        temporary.with_name("b.txt").write_text("x")
    assert os.listdir(tmp_path) == []


def test_second_file_and_folder_move_along(tmp_path: Path) -> None:
    with io.atomic(tmp_path / "a.mhd") as temporary:
        temporary.write_text("header")
        temporary.with_suffix(".raw").write_text("data")
    with io.atomic(tmp_path / "series") as temporary:
        temporary.mkdir()
        (temporary / "1.dcm").write_text("slice")
    assert (tmp_path / "a.raw").read_text() == "data" and (tmp_path / "series/1.dcm").read_text() == "slice"
    assert sorted(os.listdir(tmp_path)) == ["a.mhd", "a.raw", "series"]


def test_a_folder_with_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="already holds files"):
        io.write_volume(ramp(oblique()), tmp_path / "series")
    assert (tmp_path / "series" / "mine.txt").read_text() == "keep" and os.listdir(tmp_path) == ["series"]


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, target = os.replace, tmp_path / "series"

    def write(text: str) -> None:
        with io.atomic(target, replace=True) as temporary:
            temporary.mkdir()
            (temporary / f"{text}.dcm").write_text(text)

    def refuse(source: Path, to: Path) -> None:
        if Path(to) == target and Path(source).name == target.name:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        real(source, to)

    write("first")
    write("second")
    assert os.listdir(target) == ["second.dcm"]
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="may not write"):
        write("third")
    assert os.listdir(target) == ["second.dcm"] and os.listdir(tmp_path) == ["series"]


@pytest.mark.parametrize("name", ["file.txt/a.nii.gz", "folder", ".", "n" * 300])
def test_impossible_places(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError) as caught, io.atomic(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert caught.value.hint and "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "folder"]


@pytest.mark.parametrize(("code", "hint"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "may not write"), (errno.EROFS, "read-only")])
def test_refusals_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, hint: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=hint), io.atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_locked_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="may not write"):
        io.check_writable(tmp_path / "a.nii.gz")


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    io.check_writable(tmp_path / "a.nii.gz")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        io.check_writable(tmp_path / "file" / "a.nii.gz")
    (tmp_path / "series").mkdir()
    io.check_writable(tmp_path / "series")  # an empty folder can take a DICOM series
    (tmp_path / "series" / "0001.dcm").write_text("")
    with pytest.raises(OutputError, match="holds other files"):
        io.check_writable(tmp_path / "series")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.mhd", "a.nrrd", "series", "a.field", "a.ckpt"])
def test_no_writer_leaves_half_a_file_when_space_runs_out(tmp_path: Path, name: str) -> None:
    """The system cuts every file at 200 bytes, as a full disk would."""
    if name[1:] in (".mha", ".mhd", ".nrrd"):
        pytest.importorskip("SimpleITK")
    volume = ramp(oblique((16, 16, 8)))
    field = Field(Siren(16, 2), volume.grid.box())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(OutputError) as caught:
            if name.endswith(".field"):
                io.write_field(field, tmp_path / name)
            elif name.endswith(".ckpt"):
                checkpoint.write(tmp_path / name, {"x": torch.zeros(1000)}, {})
            else:
                io.write_volume(volume, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.hint and os.listdir(tmp_path) == []
