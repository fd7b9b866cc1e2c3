"""The card of a method: its docstring, taken apart. Standard library only, so that listing methods never loads torch."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from dataclasses import dataclass

LABELS = ("Needs", "Gives", "Deviations", "Fidelity", "Licence", "Use when")
_LABEL = re.compile(rf"(?:^|(?<=[.;]\s))({'|'.join(LABELS)}):\s*", re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """What a method says about itself.

    A docstring opens with one line, goes on with free text, and then names its labelled parts, each at the start of a
    line or after a full stop: "Needs:", "Gives:", "Deviations:", "Fidelity:", "Licence:", "Use when:". A part runs up to
    the next label; what follows an empty line after a part without a label belongs to that part.
    """

    line: str
    body: str = ""
    needs: str = ""
    gives: str = ""
    deviations: str = ""
    fidelity: str = ""
    licence: str = ""
    use_when: str = ""

    @classmethod
    def parse(cls, docstring: str) -> Card:
        """Take a docstring apart; missing parts are ""."""
        line, _, rest = docstring.strip().partition("\n")
        pieces = _LABEL.split("\n".join(row.strip() for row in rest.split("\n")))
        parts: dict[str, str] = {}
        for label, text in zip(pieces[1::2], pieces[2::2], strict=True):
            parts[label.lower().replace(" ", "_")] = _reflow(text)
        return cls(line.strip(), _reflow(pieces[0]), **parts)

    @classmethod
    def of(cls, method: type | str) -> Card:
        """The card of a method class, or of the source text of a method file, which is parsed and never run.

        The docstring of the file is the card; a class whose file has none with labels, for instance in a notebook,
        may carry the card itself.
        """
        return cls.parse(docstring(method))

    @property
    def is_complete(self) -> bool:
        """Whether the least is said: what the method does, needs and gives."""
        return bool(self.line and self.needs and self.gives)


def docstring(method: type | str) -> str:
    """The docstring that holds the card, or "" if there is none."""
    if isinstance(method, str):
        tree = ast.parse(method)
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        found = [ast.get_docstring(tree), *(ast.get_docstring(node) for node in classes)]
    else:
        module = sys.modules.get(method.__module__)
        found = [getattr(module, "__doc__", None), method.__dict__.get("__doc__")]
    texts = [inspect.cleandoc(text) for text in found if text]
    return next((text for text in texts if _LABEL.search(text)), texts[0] if texts else "")


def _reflow(text: str) -> str:
    """Lines joined within paragraphs, paragraphs kept."""
    return "\n\n".join(" ".join(block.split()) for block in re.split(r"\n\s*\n", text.strip()) if block.strip())
