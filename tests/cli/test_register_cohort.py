"""register --pairs: one process for each pair, resumable, one table; failures do not stop the others."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from medfields.cli.cohort import Job, filled, here, slurm
from medfields.cli.register_cohort import TABLE, found_in, said
from medfields.io import write_volume
from medfields.io.landmarks import write_landmarks

from .test_register import GRID, PUSH, blobs

FAST = ("--method", "./push.py", "--start", "header", "--mm", 4)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two pairs, one of which has no moving image."""
    (tmp_path / "push.py").write_text(PUSH)
    folder = tmp_path / "data"
    folder.mkdir()
    write_volume(blobs(GRID), folder / "f.nii.gz")
    write_volume(blobs(GRID, (0, 4, 0)), folder / "m.nii.gz")
    write_landmarks(np.zeros((2, 3)), folder / "fl.csv")
    write_landmarks(np.array([[0.0, 4, 0], [0, 7, 0]]), folder / "ml.csv")
    path = folder / "pairs.csv"
    path.write_text("name,fixed,moving,fixed_landmarks,moving_landmarks\ngood,f.nii.gz,m.nii.gz,fl.csv,ml.csv\n,f.nii.gz,gone.nii.gz,,\n")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pairs_are_registered_summed_up_and_not_done_twice(medfields, table: Path, tmp_path: Path) -> None:
    words = ("register", "--pairs", table, "-o", "out/", *FAST)
    said = medfields(*words)
    assert said.code == 1 and said.out == "out/summary.csv  2 pairs, 1 of them failed\n", said.err
    good, bad = rows(tmp_path / "out/summary.csv")
    assert (good["name"], bad["name"]) == ("good", "002") and good["error"] == "" and "there is no file" in bad["error"]
    assert float(good["ncc"]) > 0.9999 > float(good["ncc_before"]) and float(good["folds_percent"]) == 0
    assert [float(good[f"tre_{k}_mm"]) for k in ("before", "mean", "max")] == pytest.approx([5.5, 1.5, 3.0], abs=1e-4)
    assert (tmp_path / "out/good/warped.field").exists() and (tmp_path / "out/good/warped.run/report.html").exists()
    written = (tmp_path / "out/good/warped.nii.gz").stat().st_mtime_ns
    said = medfields(*words)
    assert said.code == 1 and "1 of 2 pairs done already" in said.err and "[2/2] 002: there is no file" in said.err
    assert (tmp_path / "out/good/warped.nii.gz").stat().st_mtime_ns == written
    assert rows(tmp_path / "out/summary.csv")[0] == good


def test_slurm_jobs_survive_one_another(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    fails = ("sh", "-c", "echo 'medfields: error: no such thing' >&2; exit 4")
    jobs = [Job(name, tmp_path / name, words, "", tmp_path / "x", dict) for name, words in (("wrong", fails), ("lost", ("/no/such/program",)))]
    found = {row["name"]: row for row in slurm("any", tmp_path / "logs", "local")(jobs)}
    assert found["wrong"]["error"] == "no such thing"
    assert found["lost"]["error"].startswith("the job ") and "/no/such/program" in found["lost"]["error"]
    assert list(slurm("any", tmp_path / "logs", "local")([])) == []


def test_a_job_is_done_only_by_its_own_command(tmp_path: Path) -> None:
    (tmp_path / "warped.run").mkdir()
    found = {"folds": 0.25, "ncc": 0.9, "ncc_before": 0.5, "ncc_started": 0.6, "sd_log_jacobian": 0.1, "least": -1.0}
    (tmp_path / "warped.run/summary.json").write_text(json.dumps({"metrics": found}))
    output, read = tmp_path / "warped.nii.gz", partial(found_in, tmp_path / "warped.run")
    output.touch()
    job = Job("a", tmp_path, ("true",), "one", output, read)
    assert job.row() is None
    row = next(iter(here(1)([job])))
    assert row["folds_percent"] == 25 and "25 % folded" in said(row) and "error" not in row
    assert job.row() == row and Job("a", tmp_path, ("true",), "two", output, read).row() is None
    table = filled([row, {"name": "b", "error": "no, with a comma"}], TABLE)
    assert table[0]["ncc"] == "0.9" and table[0]["tre_mean_mm"] == "" and table[1]["error"] == "no, with a comma"
    output.unlink()
    assert job.row() is None  # the result is gone: it is made again
    assert "SIGKILL" in Job("b", tmp_path, ("sh", "-c", "kill -9 $$"), "", output, read).run()["error"]


BAD = [
    ("fixed,moving\n", 2, "holds no pairs"),
    ("fixed,movin\na,b\n", 9, "did you mean 'moving'"),
    ("fixed,moving\na,\n", 2, "lacks its fixed or its moving image"),
    ("fixed,moving,fixed_landmarks\na,b,c\n", 2, "landmarks of one image only"),
    ("fixed,moving,name\na,b,x\na,c,x\n", 2, "cannot be called 'x'"),
    ("fixed,moving,name\na,b,../x\n", 2, "cannot be called '../x'"),
]


@pytest.mark.parametrize(("text", "code", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_tables(medfields, table: Path, text: str, code: int, message: str) -> None:
    table.write_text(text)
    said = medfields("register", "--pairs", table, "-o", "out/", *FAST)
    assert said.code == code and message in said.err


def test_what_belongs_to_one_pair_is_refused(medfields, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert medfields("register", "--pairs", table, "-o", "out/", "--mask", "m.nii.gz", *FAST).code == 2
    assert medfields("register", "--pairs", table, *FAST).code == 2
    assert medfields("register", "--pairs", "none.csv", "-o", "out/", *FAST).code == 4
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    said = medfields("register", "--pairs", table, "-o", "out/", "--slurm", "gpu", *FAST)
    assert said.code == 8 and "medfields[slurm]" in said.err
