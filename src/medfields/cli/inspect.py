"""list, show, cite: what the method files say of themselves, read without running them."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from .. import plugins
from ..errors import FileError, InputError, UnknownName


def list_methods(task: str = "") -> None:
    """The methods, one line each; a star marks the default of its task.

    Args:
        task: only the methods of this task, for instance superres.
    """
    known = plugins.entries()
    tasks = sorted({e.task for e in known.values()})
    if task and task not in tasks:
        raise UnknownName("task", task, tasks)
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    width = max((len(name) for name in known), default=0)
    for heading in [task] if task else tasks:
        print(heading)
        for entry in sorted((e for e in known.values() if e.task == heading), key=lambda e: (e.fidelity == "classical", e.name)):
            star = "*" if plugins.DEFAULT.get(heading) == entry.name else " "
            line = f" {star} {entry.name:<{width}}  {entry.fidelity:<11}  {entry.title}"
            print(line if len(line) <= room else f"{line[: room - 1]}…")


def show(name: Positional[str], source: bool = False) -> None:
    """The card of a method.

    Args:
        name: of the method, or the path of a method file.
        source: print the whole file.
    """
    entry = plugins.find(name)
    if source:
        print(entry.path.read_text(encoding="utf-8"), end="")
        return
    print(f"{entry.name}  ({entry.task}, {entry.fidelity})\n")
    print(entry.doc.strip())
    print(f"\nPaper: {entry.paper}\nFile: {entry.path}")
    if entry.task:
        print(f"Hyper-parameters: medfields {entry.task} --method {name} --help")


def cite(what: Annotated[str, tyro.conf.Positional]) -> None:
    """What to cite for a method, a run folder, or a .field file.

    Args:
        what: name of a method, a run folder, or a .field file.
    """
    entry = plugins.find(method_of(what))
    print(bibtex(entry))


def method_of(what: str) -> str:
    """The method name behind a run folder or a .field file, or the name itself."""
    if what.endswith(".field"):
        from ..io import read_field_header  # loads torch, which a name does not need

        about = read_field_header(what).get("about")
        name = about.get("method") if isinstance(about, dict) else None
        if not isinstance(name, str):
            raise FileError(f"{what} does not say which method made it", "give the name of the method")
        return name
    folder = Path(what)
    if not folder.is_dir():
        return what
    try:
        return str(tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))["method"])
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        message = f"{folder} is not a run folder: config.toml is missing or damaged"
        raise FileError(message, "give the .run folder beside the result") from error


def bibtex(entry: plugins.Entry) -> str:
    """The paper of a card as a BibTeX entry: `paper` reads "Authors: Title. The rest", as far as it does."""
    if not entry.paper:
        raise InputError(f"the method '{entry.name}' names no paper")
    doi = re.search(r"10\.\d{4,9}/[^\s,;)]+", entry.paper)
    url = re.search(r"https?://[^\s,;)]+", entry.paper)
    arxiv = re.search(r"arXiv[: ]?(\d{4}\.\d{4,5})", entry.paper, re.IGNORECASE)
    year = re.search(r"\b(19|20)\d\d\b(?!\.\d)", re.sub(r"\S*/\S*", "", entry.paper))  # not the digits of a DOI, an address or an arXiv number
    named = re.fullmatch(r"(?P<author>[^:]+): (?P<title>.+?[.?]) (?P<rest>.*)", entry.paper, re.DOTALL)
    fields = {
        "author": named["author"] if named else "",
        "title": named["title"].rstrip(".") if named else "",
        "note": f"medfields method {entry.name}. {named['rest'] if named else entry.paper}",
        "year": year.group() if year else "",
        "doi": doi.group().rstrip(".") if doi else "",
        "eprint": arxiv.group(1) if arxiv else "",
        "url": url.group().rstrip(".") if url else f"https://doi.org/{doi.group().rstrip('.')}" if doi else "",
    }
    body = "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items() if value)
    return f"@misc{{{entry.name},\n{body}}}"
