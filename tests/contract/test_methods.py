"""Every installed method keeps the promises of `medfields.testing`; nothing to edit when one is added."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest

from medfields import plugins
from medfields.cli.main import TASKS
from medfields.errors import MissingExtra
from medfields.testing import METHOD_CHECKS


@pytest.mark.parametrize("name", sorted(plugins.entries()))
@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda c: c.__name__)
def test_method(name: str, check: Callable) -> None:
    try:
        check(plugins.load(name))
    except MissingExtra as error:  # other people's programs, which come with an extra or live in an environment of their own
        pytest.skip(str(error))


@pytest.mark.parametrize("name", sorted(plugins.entries()))
def test_card_read_without_running_matches_the_class_and_the_flags_parse(name: str) -> None:
    entry, method = plugins.entries()[name], plugins.load(name)
    assert (entry.task, entry.paper, entry.fidelity) == (method.task, method.paper, method.fidelity)
    command = import_module(f"medfields.cli.{TASKS[entry.task][0]}")
    _, default = command.parse(["input", "-o", "x.nii.gz", "--method", name])
    assert default == method()


def test_every_task_has_its_default() -> None:
    for task in TASKS:
        assert plugins.entries()[plugins.DEFAULT[task]].task == task
