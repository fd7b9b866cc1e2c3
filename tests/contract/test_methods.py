"""Every installed method keeps the promises of `medfields.testing`; nothing to edit when one is added."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medfields import plugins
from medfields.cli.superres import parse
from medfields.testing import METHOD_CHECKS


@pytest.mark.parametrize("name", sorted(plugins.entries()))
@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda c: c.__name__)
def test_method(name: str, check: Callable) -> None:
    check(plugins.load(name))


@pytest.mark.parametrize("name", sorted(n for n, e in plugins.entries().items() if e.task == "superres"))
def test_card_read_without_running_matches_the_class_and_the_flags_parse(name: str) -> None:
    entry, method = plugins.entries()[name], plugins.load(name)
    assert (entry.task, entry.paper, entry.fidelity) == (method.task, method.paper, method.fidelity)
    _, default = parse(["a.nii.gz", "-o", "x.nii.gz", "--method", name])
    assert default == method()


def test_every_task_has_its_default() -> None:
    for task, name in plugins.DEFAULT.items():
        assert plugins.entries()[name].task == task
