"""medfields: medical measurements as continuous functions of world millimetres.

Importing this package is cheap: the public names below are looked up when they are first used, and only then does torch load.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# OpenMP threads that wait by spinning starve each other on a busy machine: a training step that takes 43 ms with one thread took
# 6048 ms with two on shared cores, and 57 ms with two that sleep (measured: 8 to 140 times). It must be set before torch loads libgomp.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOME = {
    "Box": "space",
    "Grid": "space",
    "Samples": "space",
    "Volume": "space",
    "Field": "fields",
    "Stack": "cases",
    "Stacks": "cases",
    "Method": "solve",
    "Problem": "solve",
    "Run": "solve",
    "read_field": "io",
    "read_volume": "io",
    "write_field": "io",
    "write_volume": "io",
    "MedfieldsError": "errors",
}

__all__ = [
    "Box",
    "Field",
    "Grid",
    "MedfieldsError",
    "Method",
    "Problem",
    "Run",
    "Samples",
    "Stack",
    "Stacks",
    "Volume",
    "__version__",
    "method",
    "read_field",
    "read_volume",
    "write_field",
    "write_volume",
]

if TYPE_CHECKING:
    from .cases import Stack, Stacks
    from .errors import MedfieldsError
    from .fields import Field
    from .io import read_field, read_volume, write_field, write_volume
    from .solve import Method, Problem, Run
    from .space import Box, Grid, Samples, Volume


def method(name: str) -> type[Method]:
    """The class of a method by its command-line name, for instance "srr-cg", or by the path of a file that holds one.

    Raises:
        UnknownName: if there is none; the hint is the nearest name.
    """
    from .plugins import load

    return load(name)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'medfields' has no attribute '{name}'")
    return getattr(import_module(f"medfields.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
