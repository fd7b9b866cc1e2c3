"""The shape of the code: sizes that keep a file readable in one sitting, docstrings, and what must never be there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src/medfields"
FILES = sorted(SOURCE.rglob("*.py"))
METHODS = [p for p in FILES if p.parent.name in ("methods", "classical") and not p.name.startswith("_")]
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def functions(tree: ast.AST) -> Iterator[FUNCTION]:
    return (node for node in ast.walk(tree) if isinstance(node, FUNCTION))


def test_the_package_was_found() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_fits_in_a_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", METHODS, ids=name)
def test_a_method_fits_on_a_page(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 125


@pytest.mark.parametrize("path", FILES, ids=name)
def test_functions_are_short_and_public_ones_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name(path)} has no docstring"
    for node in functions(tree):
        body = node.body[1:] if ast.get_docstring(node) else node.body  # a docstring is no code
        lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        assert lines <= 60, f"{name(path)}: {node.name} has {lines} lines"
    silent = [node.name for node in tree.body if isinstance(node, FUNCTION | ast.ClassDef)
              and not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not silent, f"{name(path)}: no docstring in {silent}"


FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml", "torchvision"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not FORBIDDEN_IMPORTS & {a.name.split(".")[0] for a in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] not in FORBIDDEN_IMPORTS
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "os.system"), f"{called} in {name(path)}"
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                assert keyword.arg not in ("allow_pickle", "shell") or off, f"{keyword.arg} in {name(path)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = "everything" if node.type is None else ast.unparse(node.type)
            broad = caught in ("everything", "Exception", "BaseException")
            assert not broad or any(isinstance(n, ast.Raise) for n in ast.walk(node)), f"{name(path)}:{node.lineno} catches {caught}"


TAKEN = {"half", "type", "float", "double", "bfloat16", "train", "eval", "to", "apply", "children", "modules", "parameters", "buffers"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_attribute_hides_one_of_torch_modules(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            assert node.attr not in TAKEN, f"{name(path)}:{node.lineno} sets self.{node.attr}"
