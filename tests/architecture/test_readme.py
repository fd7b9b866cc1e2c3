"""What the README promises: links that lead somewhere, commands that exist, Python that runs, a table that is up to date."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import medfields
from medfields import plugins
from medfields.cli.main import COMMANDS, TASKS

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ARCHITECTURE.md"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), f"{page} links to {target}"


def test_commands_and_methods_exist() -> None:
    lines = [part for block in blocks("sh") for line in block.splitlines() for part in line.split("#")[0].split(";")]
    words = [shlex.split(line) for line in lines if line.strip()]
    ours = [w[1:] for w in words if w[0] == "medfields"]
    assert len(ours) > 8
    for command, *rest in ours:
        assert command in {**TASKS, **COMMANDS}
        if "--method" in rest and not rest[rest.index("--method") + 1].endswith(".py"):
            plugins.find(rest[rest.index("--method") + 1])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert all(w[1] in targets for w in words if w[0] == "make")


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = medfields.Stacks.toy()
    for stack, name in zip(toy.stacks, ("axial", "sagittal"), strict=True):
        medfields.write_volume(stack.volume, tmp_path / f"{name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert medfields.read_volume("iso.nii.gz").grid.spacing == pytest.approx([1, 1, 1])


def test_the_table_of_methods_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools/readme_table.py"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
