"""Method: one paper, or one classical algorithm, as a frozen dataclass of its hyper-parameters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import nn

from ..card import Card
from ..errors import InputError
from ..fields import Field
from ..fields.spec import Spec, to_json
from ..space import Volume
from .run import Run

FIDELITY = ("published", "interpreted", "ours", "classical")


@dataclass(frozen=True)
class Method(ABC):
    """What is known before a subject (`learn`), and what is solved for a subject (`solve`).

    A subclass is a frozen dataclass; its fields are the hyper-parameters, with the published values as defaults. The
    docstring of its file is its card (see `medfields.card`).

    Class variables:
        paper: DOI, arXiv number or address.
        task: which kind of case it solves, for instance "superres".
        tiny: overrides of the fields that make it run in about a second, for tests.
        fidelity: "published" (built from the paper or its stated parameters), "interpreted" (details unread), "ours"
            or "classical".
        uses: what it reads of a case that others leave alone, by the case's own name for it, for instance "prior".
    """

    paper: ClassVar[str]
    task: ClassVar[str]
    tiny: ClassVar[dict[str, Any]]
    fidelity: ClassVar[str] = "published"
    uses: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, kind in (("paper", str), ("task", str), ("tiny", dict)):
            if not isinstance(getattr(cls, name, None), kind):
                raise InputError(f"the method {cls.__name__} does not say its '{name}'", f"add a class variable of type {kind.__name__}")
        if cls.fidelity not in FIDELITY:
            raise InputError(f"the fidelity of {cls.__name__} is '{cls.fidelity}'", "one of " + ", ".join(FIDELITY))
        if not Card.of(cls).is_complete:
            raise InputError(f"the method {cls.__name__} has no card", "its file begins with a docstring that says 'Needs:' and 'Gives:'")

    def __new__(cls, *args: Any, **kwargs: Any) -> Method:
        # The decorator runs after the class is made, so this is the first moment to see that it was forgotten.
        if "__dataclass_params__" not in cls.__dict__:
            raise InputError(f"the method {cls.__name__} is not a dataclass", "write @dataclass(frozen=True) above it")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Refuse numbers that nobody can mean; a method for which zero counts or negative numbers mean something says so itself.

        Raises:
            InputError: for a count below 1, or a number that is negative or not finite.
        """
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not math.isfinite(value) or value < (1 if isinstance(value, int) else 0):
                asked = "a count of at least 1" if isinstance(value, int) else "a number of at least 0"
                raise InputError(f"{f.name.replace('_', '-')} must be {asked}, got {value:g}", "see the method's --help")

    def learn(self, cohort: Any, run: Run) -> nn.Module:
        """Learn from other subjects what `solve` takes as its prior."""
        raise InputError(f"the method {type(self).__name__} learns nothing from other subjects", "it only needs the subject itself")

    @abstractmethod
    def solve(self, case: Any, run: Run, prior: nn.Module | None = None) -> Field | Volume:
        """Solve one subject. The result is new: it owns no module of the prior."""

    @classmethod
    def for_tests(cls) -> Method:
        """The method with its `tiny` overrides."""
        return cls(**cls.tiny)

    def config(self) -> dict[str, Any]:
        """The resolved hyper-parameters as plain numbers, texts, lists and dicts; specs carry their "kind"."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return to_json(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value
