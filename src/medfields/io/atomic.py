"""Results appear whole or not at all: written beside their place, synced to the disk, then renamed into it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError

_HINTS = {
    errno.ENOSPC: "the disk is full: make room, or write elsewhere",
    errno.EDQUOT: "your disk quota is used up: make room, or write elsewhere",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EACCES: "you may not write there: choose another folder",
    errno.EPERM: "you may not write there: choose another folder",
    errno.EROFS: "that disk is read-only: choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.EISDIR: "that is a folder: give a file name",
    errno.ENOTEMPTY: "that folder already holds files: give a new one",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def atomic(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """A temporary path to write to; on success what lies there takes the place of `path`, on failure it vanishes.

    Missing parent folders are created. The temporary path has the final file name, in a hidden folder beside the
    target, so that writers which look at the name, or which write a second file next to the first (.mhd with its .raw),
    work as usual. It may also become a folder; an existing target folder must be empty, unless `replace` lets it go.

    Raises:
        OutputError: for whatever the operating system refuses: no permission, no space, a read-only disk, a file
            where a folder is needed. Nothing half-written is left and an earlier file at `path` stays as it was.
    """
    path = Path(path)
    try:
        staging = _stage(path)
        try:
            yield staging / path.name
            _publish(staging, path, replace)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise _refused(path, error) from error


def check_writable(path: str | os.PathLike[str], *, replace: bool = False) -> None:
    """Find out now, before hours of computing, whether a result can be written to `path`.

    Raises:
        OutputError: as `atomic` would.
    """
    path = Path(path)
    try:
        if path.is_dir() and any(path.iterdir()) and not replace:
            raise FileExistsError(errno.ENOTEMPTY, "the folder holds other files", str(path))
        _stage(path).rmdir()
    except OSError as error:
        raise _refused(path, error) from error


def _stage(path: Path) -> Path:
    """A new hidden folder beside `path`, on the same disk, so that the final rename is atomic."""
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, "no file name", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".medfields-", dir=path.parent))


def _publish(staging: Path, path: Path, replace: bool) -> None:
    """Move everything written under `staging` beside `path`, `path` itself last, because it refers to the rest."""
    target = staging / path.name
    if not target.exists():
        raise FileNotFoundError(errno.ENOENT, "its writer wrote nothing", str(path))
    for written in staging.rglob("*"):
        _sync(written)
    ready, former = sorted(staging.iterdir(), key=lambda p: p == target), staging / ".former"
    if replace and path.is_dir():
        os.replace(path, former)  # no system renames a folder onto one that holds files
    try:
        for written in ready:
            os.replace(written, path.parent / written.name)
    finally:
        if former.exists() and not path.exists():  # refused or interrupted: better the former result than none
            os.replace(former, path)
    with suppress(OSError):  # some network disks cannot sync a folder; the files themselves are safe
        _sync(path.parent)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refused(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"cannot write {path}: {reason}", _HINTS.get(error.errno or 0, "choose another place with -o"))
