"""The table of tasks and methods in README.md, written from the method files: `python tools/readme_table.py [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

from medfields import plugins
from medfields.cli.main import TASKS

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- methods: written by tools/readme_table.py -->", "<!-- end of methods -->"


def table() -> str:
    """Markdown, one row for each method, classical ones last."""
    lines = []
    for task, (_, _, text) in TASKS.items():
        lines += [f"**`medfields {task}`**: {text}", "", "| `--method` | what it is | kind |", "| --- | --- | --- |"]
        own = [e for e in plugins.entries().values() if e.task == task]
        for e in sorted(own, key=lambda e: (e.name != plugins.DEFAULT.get(task), e.fidelity == "classical", e.name)):
            star = " (the default)" if e.name == plugins.DEFAULT.get(task) else ""
            lines.append(f"| `{e.name}`{star} | {e.title.rstrip('.').replace('|', chr(92) + '|')} | {e.fidelity} |")
        lines.append("")
    return "\n".join(lines)


def main(check: bool) -> int:
    """Write the table, or say whether it is up to date."""
    old = README.read_text(encoding="utf-8")
    head, _, rest = old.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        print(f"README.md has no lines '{BEGIN}' and '{END}'", file=sys.stderr)
        return 1
    new = f"{head}{BEGIN}\n{table()}{END}{tail}"
    if check and new != old:
        print("the methods in README.md are not those of the code; run: .venv/bin/python tools/readme_table.py", file=sys.stderr)
        return 1
    if not check:
        README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
