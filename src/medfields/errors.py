"""Every error a user can cause or meet: what happened, what to do about it, and the exit code of the command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedfieldsError(Exception):
    """Base of all expected errors. The command line prints `message`, then `hint`, and leaves with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(MedfieldsError):
    """A value, shape, dtype or option that cannot be meant."""

    exit_code = 2


class GeometryError(InputError):
    """Positions that make no sense: singular affine, zero spacing, no overlap."""

    exit_code = 3


class FileError(InputError):
    """A file that is missing, truncated, of another format, or newer than this version."""

    exit_code = 4


class OutputError(MedfieldsError):
    """A result that cannot be written: no permission, no space, no such folder."""

    exit_code = 5


class Diverged(MedfieldsError):
    """A fit whose loss stopped being finite; the message names stage, step and term."""

    exit_code = 6


def says_memory(error: BaseException) -> bool:
    """Whether an error of Python or of torch means that memory ran out; on the CPU torch has no class of its own for it."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


class OutOfMemory(MedfieldsError):
    """Memory ran out; the hint names the option to lower."""

    exit_code = 7


class MissingExtra(MedfieldsError):
    """An optional dependency is not installed; the hint is the pip command."""

    exit_code = 8

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs the package '{package}'", f"pip install 'medfields[{extra}]'")


class UnknownName(InputError):
    """A method, spec or option that does not exist; the hint is the nearest one that does."""

    exit_code = 9

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(known)
        super().__init__(f"there is no {kind} called '{name}'", hint)
