"""A call of the command line, in this process, and small stacks to call it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from medfields.cases import Stacks
from medfields.cli.main import main
from medfields.io import write_volume


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def medfields(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Answer]:
    """Run the command in an empty folder; SystemExit (tyro's way out) counts as its code."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Answer:
        try:
            code = main([str(w) for w in words])
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two orthogonal stacks of one generated head, 4 mm slices."""
    folder = tmp_path_factory.mktemp("stacks")
    paths = []
    for stack, name in zip(Stacks.toy(0).stacks, ("axial", "sagittal"), strict=True):
        paths.append(folder / f"{name}.nii.gz")
        write_volume(stack.volume, paths[-1])
    return paths[0], paths[1]
