"""One page of documentation for each method, from its card and its hyper-parameters: `python tools/method_pages.py FOLDER`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from medfields import plugins
from medfields.card import Card


def method_page(entry: plugins.Entry) -> str:
    """Markdown: the card, the hyper-parameters, the source."""
    card = Card.parse(entry.doc)
    lines = [f"# {entry.name}", "", card.line, "", card.body, ""]
    facts = {"Task": f"`medfields {entry.task} --method {entry.name}`", "Paper": entry.paper, "Needs": card.needs, "Gives": card.gives,
             "Fidelity": card.fidelity or entry.fidelity, "Deviations": card.deviations, "Licence": card.licence, "Use when": card.use_when}
    for name, text in facts.items():
        lines += [f"**{name}.** {text}", ""] if text else []
    values = dataclasses.fields(plugins.load(entry.name))
    if values:
        lines += ["## Hyper-parameters", "", "| name | default |", "| --- | --- |"]
        lines += [f"| `{f.name}` | `{f.default}` |" for f in values]
    lines += ["", "## Source", "", "```python", entry.path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def main(folder: Path) -> None:
    """Write the pages and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    known = plugins.entries()
    for name, entry in known.items():
        (folder / f"{name}.md").write_text(method_page(entry), encoding="utf-8")
    rows = [f"| [{e.name}]({e.name}.md) | {e.task} | {e.fidelity} | {e.title} |" for e in known.values()]
    index = ["# Methods", "", "| name | task | kind | what it is |", "| --- | --- | --- | --- |", *rows, ""]
    index += ["```{toctree}", ":hidden:", "", *known, "```", ""]
    (folder / "index.md").write_text("\n".join(index), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
