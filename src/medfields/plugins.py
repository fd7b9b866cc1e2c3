"""Which methods exist: found by folder, by entry point or by path, and described without importing them.

A method is one Python file that holds exactly one subclass of `Method`. Its command-line name is its file name with "_" written as "-",
its card is its docstring. Names, cards, tasks and papers are read with `ast`, so that listing methods never loads torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FileError, InputError, UnknownName

if TYPE_CHECKING:
    from .solve import Method

FOLDERS = ("methods", "classical")
GROUP = "medfields.methods"
# The method that a task runs when nobody names one.
DEFAULT = {"superres": "own-slices", "motion": "moved-slices", "ct": "pnp", "register": "fluid", "ultrasound": "compounding"}


@dataclass(frozen=True)
class Entry:
    """What is known of a method before its code runs."""

    name: str
    path: Path
    module: str  # dotted name to import, "" for a file that is given by its path
    class_name: str
    doc: str
    facts: dict[str, Any]  # the class variables that are written as literals: paper, task, fidelity, tiny

    @property
    def title(self) -> str:
        """The first line of the card."""
        return self.doc.strip().partition("\n")[0]

    @property
    def task(self) -> str:
        return str(self.facts.get("task", ""))

    @property
    def paper(self) -> str:
        return str(self.facts.get("paper", ""))

    @property
    def fidelity(self) -> str:
        return str(self.facts.get("fidelity", "published"))


def public_name(path: Path) -> str:
    """The command-line name of a method file: "srr_cg.py" is "srr-cg"."""
    return path.stem.replace("_", "-")


def read_entry(path: Path, module: str = "", name: str = "") -> Entry:
    """Describe the method in a file.

    Raises:
        FileError: if the file cannot be read or is not Python.
        InputError: if it does not hold exactly one `Method` subclass.
    """
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise _broken(path, error) from error
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read the method file {path}: {error}") from error
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and any(_last_name(b) == "Method" for b in node.bases)]
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} subclasses of Method", "a method file holds exactly one: class MyMethod(Method)")
    return Entry(name or public_name(path), path, module, found[0].name, ast.get_docstring(tree) or "", dict(_literals(found[0])))


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _literals(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """Names and values of the class variables (not the hyper-parameters) that are plain literals."""
    for item in node.body:
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            target, value = item.targets[0].id, item.value
        elif (
            isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value and "ClassVar" in ast.dump(item.annotation)
        ):
            target, value = item.target.id, item.value
        else:
            continue
        try:
            yield target, ast.literal_eval(value)
        except ValueError:  # an expression, for instance tiny = {"net": Siren(8, 1)}
            continue


@cache
def entries() -> dict[str, Entry]:
    """All installed methods by name: our own folders first, then the entry points of other packages."""
    found: dict[str, Entry] = {}
    here = Path(__file__).parent
    for folder in FOLDERS:
        for path in sorted((here / folder).glob("[!_]*.py")):
            found[public_name(path)] = read_entry(path, f"{__package__}.{folder}.{path.stem}")
    for point in metadata.entry_points(group=GROUP):
        try:
            entry = read_entry(_module_file(point.module), point.module, point.name)
        except InputError as error:
            warnings.warn(f"the plug-in '{point.name}' ({point.value}) is left out: {error}", stacklevel=2)
            continue
        found.setdefault(entry.name, entry)
    return found


def _module_file(module: str) -> Path:
    """Where a module lies, without importing its parents."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise FileError(f"there is no module '{top}'")
    base = Path(spec.origin)
    return base if not rest else base.parent.joinpath(*rest).with_suffix(".py")


def find(name: str) -> Entry:
    """The method of that name, or in the file at that path ("./mine.py").

    Raises:
        UnknownName: if there is none; the hint is the nearest name.
    """
    if name.endswith(".py") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise FileError(f"there is no method file {path}")
        return read_entry(path.resolve())
    known = entries()
    if name not in known:
        raise UnknownName("method", name, known)
    return known[name]


def default(task: str) -> str:
    """The name of the method that a task runs when nobody names one."""
    if task not in DEFAULT:
        raise UnknownName("task", task, DEFAULT)
    return DEFAULT[task]


def load(name: str) -> type[Method]:
    """Import a method by name or path, and return its class.

    Raises:
        UnknownName: if there is none; the hint is the nearest name.
        FileError: if a file given by its path cannot be imported as Python.
    """
    entry = find(name)
    module = importlib.import_module(entry.module) if entry.module else _import_path(entry.path)
    return getattr(module, entry.class_name)


def _import_path(path: Path) -> Any:
    """Import a file under a name of its own. It must be in sys.modules: type hints, deepcopy and workers look there."""
    name = f"medfields_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the path ends in .py and exists
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception | SystemExit):  # a script that exits would end the command as if all were well
            raise _broken(path, error) from error
        raise
    return module


def told(path: Path, error: BaseException) -> str:
    """What went wrong in a method file, and in which of its lines."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, what = error.lineno, error.msg
    else:
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
        line, what = lines[-1] if lines else None, str(error)
    where = f"{path}, line {line}" if line else str(path)
    return f"{where}: {type(error).__name__}{what and ': '}{what}"


def _broken(path: Path, error: BaseException) -> FileError:
    return FileError(told(path, error), "--debug shows the traceback")
