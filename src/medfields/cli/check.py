"""check: the contract tests of a method, run on a file that is not part of the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from .. import plugins

if TYPE_CHECKING:
    from ..solve import Method


def check(name: Positional[str]) -> int:
    """Run the contract tests on a method file, on generated data; seconds, not minutes.

    Args:
        name: path of the method file ("./my_method.py"), or name of an installed method.
    """
    from ..testing import METHOD_CHECKS

    entry = plugins.find(name)
    method = plugins.load(name)
    failed = 0
    for one in METHOD_CHECKS:
        title = " ".join(one.__name__.removeprefix("check_").split("_"))
        try:
            _tried(one, method, entry.path)
        except AssertionError as error:
            failed += 1
            print(f"FAILED  {title}: {error}")
        else:
            print(f"ok      {title}")
    print(f"{entry.name}: " + ("all checks passed" if not failed else f"{failed} of {len(METHOD_CHECKS)} checks failed"))
    return 1 if failed else 0


def _tried(check: Callable[[type[Method]], None], method: type[Method], path: Path) -> None:
    """Run a check; whatever else the author's code may raise fails it too, and the other checks still tell something."""
    try:
        check(method)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(plugins.told(path, error)) from error
