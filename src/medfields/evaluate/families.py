"""Families of tasks: what the bench can run, two modules each.

`tasks.NAME` has TASKS by name, `scan_name(task)` and `acquire(task, cache)` for the measurements, `plan(task, methods, ablations)` for who takes
part, `configured(method, variant)`, and `measured(task, scan, seed, method, variant)` for one run: its scores and times.
`asked_NAME` has what RESULTS.md says of it: HEAD, `requirements(rows)` and `columns(task)`. A task that is not scored as an image has `scores`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import FileError, UnknownName

FAMILIES = ("superres", "motion", "sweep", "ct", "register", "ultrasound")
PLAIN = ""  # the variant that is no ablation


@dataclass(frozen=True)
class Score:
    """A number of each row that tables show with its spread over seeds.

    Args:
        key: in the row.
        title, unit, digits: in tables.
        larger: is better.
    """

    key: str
    title: str
    unit: str = ""
    digits: int = 2
    larger: bool = True


@dataclass(frozen=True)
class Ablation:
    """The same method without one idea, so that a row shows what the idea is worth, or with other settings.

    Args:
        name: in rows and tables.
        tasks: where it is run.
        methods: whose; () is every method that is not classical.
        overrides: hyper-parameters.
    """

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)


IMAGE_SCORES = (Score("psnr", "PSNR", "dB"), Score("ssim", "SSIM", digits=4))


def scores(task: Any) -> tuple[Score, ...]:
    """What a task is scored by; the first ranks its methods."""
    found: tuple[Score, ...] = getattr(task, "scores", IMAGE_SCORES)
    return found


def tasks(name: str) -> ModuleType:
    """The module that runs a family.

    Raises:
        UnknownName: if there is none of that name.
    """
    if name not in FAMILIES:
        raise UnknownName("family of tasks", name, FAMILIES)
    return import_module(f".tasks.{name}", __package__)


def asked(name: str) -> ModuleType:
    """The module that says what was asked of a family."""
    return import_module(f".asked_{name}", __package__)


def data_folder() -> Path:
    """Where the shared images are: the environment variable MEDFIELDS_DATA, else shared/data beside the checkout.

    Raises:
        FileError: if there is no such folder.
    """
    checkout = Path(__file__).resolve().parents[3]
    places = [Path(p) for p in [os.environ.get("MEDFIELDS_DATA", "")] if p] or [checkout / "shared/data", checkout.parent / "shared/data"]
    for place in places:
        if place.is_dir():
            return place
    raise FileError(f"the images of the bench are not at {places[-1]}", "set MEDFIELDS_DATA to the folder that holds a_mri/")
