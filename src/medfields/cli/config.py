"""Configuration files: the options of a task and, under [hyper], the hyper-parameters of its method. The resolved one is `config.toml`."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import FileError, InputError, UnknownName
from ..fields.spec import Spec, from_json, to_json, typed

T = TypeVar("T")


def read_config(path: str) -> dict[str, Any]:
    """A TOML file as a dict.

    Raises:
        FileError: if it is missing or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read the configuration {path}: {error.strerror}", "check the spelling") from error
    except ValueError as error:
        raise FileError(f"{path} is not TOML: {error}", "a line reads: steps = 2000") from error


def peek(words: list[str], flag: str) -> str:
    """The value of `--flag` among the words, before they are parsed as a whole; "" if it is not there."""
    value = ""
    for n, word in enumerate(words):
        if word == flag and n + 1 < len(words):
            value = words[n + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def from_table(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of a dataclass with the values of a table in place of its defaults. A table for a spec changes single
    numbers of the default one, unless its "kind" names another.

    Raises:
        UnknownName: for a key that is not a field; the hint is the nearest one.
        InputError: for a value of the wrong type.
    """
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in table.items():
        if name not in known:
            raise UnknownName(f"option in {where}", name, known)
        default = known[name].default
        try:
            values[name] = from_json(_merged(to_json(default), value)) if isinstance(default, Spec) else typed(value, hints[name], name, 0)
        except FileError as error:
            raise InputError(f"{where}: {error.message}", f"see medfields show and --help for what {name} takes") from error
    return cls(**values)


def _merged(default: Any, given: Any) -> Any:
    """`given` over `default`, key by key, where both describe the same kind of spec."""
    if not (isinstance(default, dict) and isinstance(given, dict)) or given.get("kind", default["kind"]) != default["kind"]:
        return given
    return {**default, **{k: _merged(default.get(k), v) for k, v in given.items()}}
