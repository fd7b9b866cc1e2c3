"""Spec: what a field is made of, as plain data that can be compared, printed, and written to a file."""

from __future__ import annotations

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar, dataclass_transform

import torch
from torch import nn

from ..errors import FileError, InputError, UnknownName
from ..space import Box

SPECS: dict[str, type[Spec]] = {}
"""Every registered spec by class name. A `.field` file can name these and nothing else."""

MAX_NESTING = 16

S = TypeVar("S")
T = TypeVar("T", bound="Spec")


class Spec(ABC):
    """A recipe for a function of unit coordinates u = (x - centre) / radius, [*batch, D] -> [*batch, C].

    Subclasses are frozen dataclasses (use `@spec`) whose fields are numbers, text, tuples and other specs, and whose `__post_init__`
    raises InputError for sizes nobody can mean: a file's header is not trusted.

    The built module also offers `jet(u, order)`: value, Jacobian [*, C, D] and, for order 2, Hessian [*, C, D, D] with respect to u.
    It may state a `jet_order` below 2; it then raises InputError above that.

    Class variables:
        channels: how many its function has, where that is not free: displacements have three.
    """

    channels: ClassVar[int | None] = None

    @abstractmethod
    def build(self, box: Box, channels: int) -> nn.Module:
        """A module with fresh weights from torch's global generator."""

    @classmethod
    def example(cls, box: Box) -> Spec | None:
        """A small instance for the tests; None where the spec does not fit the box."""
        return cls()


@dataclass_transform(frozen_default=True)
def spec(cls: type[S]) -> type[S]:
    """Class decorator: makes a frozen dataclass of a Spec and registers it by its class name."""
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    if SPECS.get(cls.__name__, made).__module__ != cls.__module__:
        raise InputError(f"two specs are called '{cls.__name__}'", "a file could not tell them apart; rename one")
    if any(f.name == "kind" for f in dataclasses.fields(made)):
        raise InputError(f"{cls.__name__}: no field may be called 'kind'", "in a file, 'kind' is the name of the spec")
    SPECS[cls.__name__] = made
    return made


def bounded(owner: Spec, **limits: tuple[float, float]) -> None:
    """Raise InputError unless every named field lies within its (lowest, highest)."""
    for name, (low, high) in limits.items():
        value = getattr(owner, name)
        if not low <= value <= high:
            raise InputError(f"{type(owner).__name__}: {name} must be between {low:g} and {high:g}, got {value}")


def to_json(given: Spec) -> dict[str, Any]:
    """{"kind": class name, field: value, ...}, nested specs too; tuples become lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Spec):
            return to_json(value)
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    fields = dataclasses.fields(given)  # type: ignore[arg-type]
    return {"kind": type(given).__name__, **{f.name: plain(getattr(given, f.name)) for f in fields}}


def from_json(data: Any, _depth: int = 0) -> Spec:
    """The spec that `to_json` wrote.

    Raises:
        UnknownName: for a kind that is not registered.
        FileError: for fields that are missing, unknown, of the wrong type or out of bounds.
    """
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise FileError("a spec must be an object that names its 'kind'", "the file is damaged")
    if _depth > MAX_NESTING:
        raise FileError(f"specs are nested more than {MAX_NESTING} deep", "the file is damaged")
    kind = data["kind"]
    if kind not in SPECS:
        raise UnknownName("spec", ascii(kind[:80])[1:-1], SPECS)
    cls = SPECS[kind]
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    given = set(data) - {"kind"}
    if given - set(fields) or required - given:
        wrong = sorted(map(ascii, given - set(fields)))[:5] or sorted(required - given)
        raise FileError(f"spec {kind} {'has unknown' if given - set(fields) else 'lacks the'} fields: {', '.join(wrong)}"[:200],
                        "the file is damaged or comes from a newer medfields")
    hints = typing.get_type_hints(cls)
    values = {name: typed(data[name], hints[name], f"{kind}.{name}", _depth) for name in given}
    try:
        return cls(**values)
    except InputError as error:
        raise FileError(f"spec in the file: {error.message}", error.hint) from error


def typed(value: Any, hint: Any, where: str, depth: int) -> Any:
    """JSON value as the annotated type, or FileError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return typed(value, option, where, depth)
            except UnknownName:
                raise
            except FileError as error:
                last = error
        raise last
    if origin is typing.Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        inner = [arguments[0]] * len(value) if len(arguments) == 2 and arguments[1] is Ellipsis else arguments
        if len(inner) == len(value):
            return tuple(typed(v, h, where, depth) for v, h in zip(value, inner, strict=True))
    if isinstance(hint, type) and issubclass(hint, Spec):
        made = from_json(value, depth + 1)
        if isinstance(made, hint):
            return made
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number and abs(value) < 1e300:  # no NaN, no infinity, no integer beyond a float
        return float(value)
    if hint in (int, str, bool, type(None)) and type(value) is hint:
        return value
    shown = f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)[:60]
    raise FileError(f"{where} cannot be {shown}", "the file is damaged or comes from a newer medfields")


def parameter_count(given: Spec, box: Box, channels: int = 1) -> int:
    """Trainable numbers of the built module; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in given.build(box, channels).parameters())


def width_for(given: T, parameters: int, box: Box, channels: int = 1) -> T:
    """The spec with the largest `width` that spends at most `parameters` numbers: networks are compared at equal size.

    Raises:
        InputError: if not even the narrowest fits.
    """
    low, high = 0, 8193
    while high - low > 1:
        middle = (low + high) // 2
        fits = parameter_count(dataclasses.replace(given, width=middle), box, channels) <= parameters  # type: ignore[type-var]
        low, high = (middle, high) if fits else (low, middle)
    if low == 0:
        raise InputError(f"{type(given).__name__} does not fit into {parameters} parameters", "lower the depth or the encoding's size")
    return dataclasses.replace(given, width=low)  # type: ignore[type-var]
