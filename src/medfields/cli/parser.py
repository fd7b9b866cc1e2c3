"""tyro, the parser of the command line, with its errors in the form of all others: one line and a hint."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, TypeVar

import tyro

from ..errors import InputError

T = TypeVar("T")


def bind(function: Callable[..., T], words: Sequence[str], prog: str) -> Callable[[], T]:
    """The function with its arguments taken from the words, not yet called: what it says on stderr is not the parser's."""

    @functools.wraps(function)
    def later(*values: Any, **flags: Any) -> Callable[[], T]:
        return functools.partial(function, *values, **flags)

    with brief_errors(prog):
        return tyro.cli(later, args=words, prog=prog)


@contextmanager
def brief_errors(prog: str) -> Iterator[None]:
    """Inside, an error of the parser, which prints a box and exits, becomes an InputError; --help stays as it is."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(*_message_and_hint(said.getvalue(), prog)) from None


def _message_and_hint(box: str, prog: str) -> tuple[str, str]:
    """What a box says. Below its title, rules part the message from the nearest option, the text of --help, and where to find more.

    tyro has no public way to learn of an error but this text; were its form to change, the message would be longer, not wrong.
    """
    _, *lines = (re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" │╭╮╰╯") for line in box.strip().splitlines() or [""])
    message, hint = [], f"{prog} --help"
    for part in re.split(r"^[─-]{4,}$", "\n".join(lines), flags=re.MULTILINE):
        near = re.match(r"\s*(?:Perhaps you meant|Arguments similar to .*):\n.*?(--[\w.-]+)", part)
        if near:
            hint = f"did you mean '{near[1]}'?"
        elif part.strip() and not part.strip().startswith(("Argument helptext", "For full helptext")):
            message.append(part.strip().partition("\n\n")[0].removeprefix("Error parsing ").rstrip("."))
    text = "; ".join(message) or "the command cannot be understood"
    return text[0].lower() + text[1:], hint
