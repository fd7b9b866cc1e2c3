"""Finding methods and reading their cards without running them."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from medfields import plugins
from medfields.errors import FileError, InputError, UnknownName

CARD = '"""Mine: an idea.\n\nNeeds: stacks. Gives: a volume. Use when: testing.\n"""\n'
BODY = """from dataclasses import dataclass
from typing import ClassVar

from medfields.solve import Method


@dataclass(frozen=True)
class Mine(Method):
    paper = ("doi:10.1000/" "xyz")
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict] = {"steps": 1}
    steps: int = 3

    def solve(self, case, run, prior=None):
        return case
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "my_own_idea.py"
    path.write_text(CARD + BODY)
    return path


def test_entry_is_read_without_running_the_file(mine: Path) -> None:
    mine.write_text(mine.read_text() + "\nraise RuntimeError('the file was run')\n")
    entry = plugins.find(str(mine))
    assert (entry.name, entry.class_name, entry.title) == ("my-own-idea", "Mine", "Mine: an idea.")
    assert (entry.paper, entry.task, entry.fidelity) == ("doi:10.1000/xyz", "superres", "published")
    assert "steps" not in entry.facts


def test_path_is_loaded_into_sys_modules(mine: Path) -> None:
    method = plugins.load(str(mine))
    assert method.__name__ == "Mine" and sys.modules[method.__module__].Mine is method
    assert method(steps=5).config() == {"steps": 5}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise ZeroDivisionError", "ZeroDivisionError"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("import json; json.loads('{')", "JSONDecodeError: Expecting property name"),  # raised elsewhere, called here
        ("return 3", "SyntaxError: 'return' outside function"),  # found by the compiler, not by the parser
        ("def (", "SyntaxError: "),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_file_that_fails_to_import_is_named_with_line_and_error_and_leaves_no_module(mine: Path, code: str, says: str) -> None:
    mine.write_text(f"{mine.read_text()}\n{code}\n")
    line, before = mine.read_text().splitlines().index(code) + 1, set(sys.modules)
    with pytest.raises(FileError) as caught:
        plugins.load(str(mine))
    assert caught.value.message.startswith(f"{mine}, line {line}: {says}") and caught.value.__cause__ is not None
    assert not [name for name in set(sys.modules) - before if "my_own_idea" in name]


@pytest.mark.parametrize(
    ("text", "error"), [("x = 1\n", InputError), (CARD + BODY + BODY.replace("Mine", "Yours"), InputError), ("def (", FileError)]
)
def test_files_without_exactly_one_method(tmp_path: Path, text: str, error: type[Exception]) -> None:
    path = tmp_path / "x.py"
    path.write_text(text)
    with pytest.raises(error, match=r"x\.py"):
        plugins.find(str(path))


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="did you mean 'srr-cg'"):
        plugins.find("srrcg")
    with pytest.raises(FileError, match="no method file"):
        plugins.find("./nowhere.py")
    with pytest.raises(UnknownName, match="superres"):
        plugins.default("superes")


def test_every_file_of_the_folders_is_found() -> None:
    here = Path(plugins.__file__).parent
    files = [p for folder in plugins.FOLDERS for p in (here / folder).glob("[!_]*.py")]
    assert {plugins.public_name(p) for p in files} <= set(plugins.entries())


def test_entry_points_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported too early')")
    (package / "idea.py").write_text(CARD + BODY)
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        metadata.EntryPoint("their-idea", "their_package.idea:Mine", plugins.GROUP),
        metadata.EntryPoint("broken", "not_there.idea:Mine", plugins.GROUP),
    ]
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: points)
    plugins.entries.cache_clear()
    try:
        with pytest.warns(UserWarning, match="'broken'"):
            known = plugins.entries()
        assert known["their-idea"].title == "Mine: an idea." and "broken" not in known
        (package / "__init__.py").write_text("")
        assert plugins.load("their-idea").__module__ == "their_package.idea"
    finally:
        plugins.entries.cache_clear()
