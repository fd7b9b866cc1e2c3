"""superres --motion --bids: which stacks belong together, one process for each subject, resumable, one table, a BIDS derivative."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from medfields.cli import cohort as module
from medfields.cli.bids import mask_beside, visits
from medfields.cli.motion_cohort import found_in, said
from medfields.io import read_volume, write_volume

from .test_motion import acquired

FAST = ("--alternations", "1", "--steps", "2", "--threads", "1")


def touched(root: Path, *names: str) -> Path:
    """A folder of empty files: names are all that is looked at."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_subjects_sessions_and_stacks_are_found_by_their_names(tmp_path: Path) -> None:
    a, b = "sub-01/anat/sub-01", "sub-02/ses-2/anat/sub-02_ses-2"
    root = touched(
        tmp_path, f"{a}_run-10_T2w.nii.gz", f"{a}_run-2_T2w.nii.gz", f"{a}_acq-haste_run-1_T2w.nii", f"{a}_run-2_T1w.nii.gz",
        f"{a}_run-2_T2w_desc-brain_mask.nii.gz", f"{a}_run-2_desc-brain_mask.nii.gz", f"{a}_rec-medfields_T2w.nii.gz",
        f"{a}_space-T1w_T2w.nii.gz", f"{a}_run-2_T2w.json", f"derivatives/x/{a}_run-3_T2w.nii.gz", f"{b}_run-1_T2w.nii.gz", f"{b}_run-2_T2w.nii.gz",
        "sub-02/ses-3/anat/sub-02_ses-3_T2w.nii.gz", "sub-02/ses-2/anat/sub-01_run-4_T2w.nii.gz", "sub-01_run-2_T2w.nii.gz", "participants.tsv")
    found, notes = visits(root)
    assert {v.name: [p.name.partition("sub-0")[2][2:] for p in v.stacks] for v in found} == {
        "sub-01": ["acq-haste_run-1_T2w.nii", "run-2_T2w.nii.gz", "run-10_T2w.nii.gz"],
        "sub-02_ses-2": ["ses-2_run-1_T2w.nii.gz", "ses-2_run-2_T2w.nii.gz"]}
    assert [str(v.folder) for v in found] == ["sub-01/anat", "sub-02/ses-2/anat"]
    assert len(notes) == 3 and "sub-02_ses-3 has one stack only" in notes[2]
    assert any("sub-01_run-4_T2w.nii.gz is called sub-01 but lies with another" in n for n in notes) and any("has the name of" in n for n in notes)


def test_masks_lie_beside_the_stack_or_in_derivatives(tmp_path: Path) -> None:
    for stack in ("sub-01/anat/sub-01_run-1_T2w.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_run-1_T2w.nii.gz"):
        path = touched(tmp_path, stack) / stack
        touched(tmp_path, f"derivatives/masks/{Path(stack).parent}/{path.name.replace('run-1', 'run-2').replace('T2w', 'desc-brain_mask')}")
        assert mask_beside(path) is None  # that of another run
        derived = f"derivatives/masks/{Path(stack).parent}/{path.name.replace('T2w', 'desc-brain_mask')}"
        assert mask_beside(touched(tmp_path, derived) / stack) == tmp_path / derived
        beside = stack.replace("T2w.nii.gz", "desc-brain_mask.nii.gz")
        assert mask_beside(touched(tmp_path, beside) / stack) == tmp_path / beside


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """A subject of two stacks, whose masks are a derivative, and one whose second stack was not fetched."""
    root, still = tmp_path / "data", np.tile(np.eye(4), (4, 1, 1))
    masks = root / "derivatives/masks/sub-1/anat"
    for folder in (root / "sub-1/anat", root / "sub-2/anat", masks):
        folder.mkdir(parents=True)
    for run, axis in ((1, 2), (2, 0)):
        stack = acquired(axis, still, count=4)
        write_volume(stack, root / f"sub-1/anat/sub-1_run-{run}_T2w.nii.gz")
        stack.data[:] = stack.grid.points().norm(dim=-1)[None] < 15
        write_volume(stack, masks / f"sub-1_run-{run}_desc-brain_mask.nii.gz")
    write_volume(stack, root / "sub-2/anat/sub-2_run-1_T2w.nii.gz")
    (root / "sub-2/anat/sub-2_run-2_T2w.nii.gz").symlink_to("nothing")
    return root


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The outputs of the commands that a cohort would start from now on; none is started, all fail."""
    asked: list[str] = []

    def run(command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(Path(command[command.index("-o") + 1]).name.partition("_")[0])
        return subprocess.CompletedProcess(command, 4, "", "medfields: error: not today\nhint: none\n")

    def begin() -> list[str]:
        monkeypatch.setattr(module.subprocess, "run", run)
        return asked

    return begin


def test_a_broken_subject_stops_no_other_and_what_is_done_is_not_done_again(medfields, asked, bids: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "my.toml").write_text('task = "motion"\nspacing = 4.0\n')
    words = ("superres", "--motion", "--bids", bids, "-o", "out", "--config", "my.toml", "--jobs", "2", *FAST)
    answer = medfields(*words)
    assert answer.code == 1 and answer.out == "out/cohort.csv  2 subjects, 1 of them failed\n", answer.err
    good, bad = rows(tmp_path / "out/cohort.csv")
    assert [good[k] for k in ("name", "stacks", "masks", "slices", "left_out", "error")] == ["sub-1", "2", "2", "8", "0", ""]
    assert float(good["median_correlation"]) > 0.9 and float(good["seconds"]) > 0 and "sub-1: 2 stacks, 8 slices, moved by" in answer.err
    assert (bad["name"], bad["stacks"], bad["masks"], bad["slices"]) == ("sub-2", "2", "0", "") and "there is no file" in bad["error"]
    made = tmp_path / "out/sub-1/anat/sub-1_rec-medfields_T2w.nii.gz"
    assert np.allclose(read_volume(made).grid.spacing, 4)  # the configuration reached the job, and so did the flags:
    config = made.with_name("sub-1_rec-medfields_T2w.run").joinpath("config.toml").read_text()
    assert "alternations = 1\n" in config and "steps = 2\n" in config
    about = json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative" and about["GeneratedBy"][0]["Name"] == "medfields" and about["BIDSVersion"]
    started = asked()

    def starts(*names: str, words: tuple[object, ...] = words) -> None:
        started.clear()
        answer = medfields(*words)
        assert answer.code == 1 and sorted(started) == list(names), (started, answer.err)

    starts("sub-2")
    again = rows(tmp_path / "out/cohort.csv")
    assert again[0] == good and again[1]["error"] == "not today"
    mask = bids / "derivatives/masks/sub-1/anat/sub-1_run-1_desc-brain_mask.nii.gz"
    drawn = mask.stat().st_mtime_ns
    os.utime(mask, ns=(drawn + 10**9, drawn + 10**9))
    starts("sub-1", "sub-2")  # a mask was drawn again
    os.utime(mask, ns=(drawn, drawn))
    starts("sub-2")
    starts("sub-1", "sub-2", words=(*words, "--steps", "3"))
    made.unlink()
    starts("sub-1", "sub-2")


def test_one_stack_only_is_told_and_sessions_have_rows_of_their_own(medfields, asked, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    touched(tmp_path / "in", *(f"sub-{s}_ses-b_run-{n}_T2w.nii.gz" for s in "12" for n in range(int(s))),
            "sub-2_ses-a_T2w.nii", "sub-2_ses-a_run-1_T2w.nii")
    started = asked()
    answer = medfields("motion", "--bids", "in", "-o", "out/", *FAST)
    assert answer.code == 1 and "2 sessions, 2 of them failed" in answer.out and started == ["sub-2", "sub-2"]
    assert "note: sub-1_ses-b has one stack only" in answer.err
    assert [r["name"] for r in rows(tmp_path / "out/cohort.csv")] == ["sub-2_ses-a", "sub-2_ses-b"]


def test_the_row_says_how_far_slices_moved(tmp_path: Path) -> None:
    found = {"poses": [[0, 0, 0.1, 3, 4, 0], [0.2, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 2]], "likeness": [0.9, 0.2, 0.8], "worth": [1, 0, 0.5]}
    (tmp_path / "summary.json").write_text(json.dumps({"notes": {"motion": found}}))
    row = found_in(tmp_path)
    assert row == {"slices": 3, "median_turn_deg": pytest.approx(np.degrees(0.1)), "median_shift_mm": 2.0, "median_correlation": 0.8, "left_out": 1}
    text = said({**row, "stacks": 2, "seconds": 7.0})
    assert text == "2 stacks, 3 slices, moved by 5.7 degrees and 2.0 mm (median), correlation 0.800, 1 left out, 7 s"


def test_what_cannot_be_meant(medfields, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    touched(tmp_path / "in", "sub-1_run-1_T2w.nii.gz", "sub-1_run-2_T2w.nii.gz", "alone/sub-1_T2w.nii.gz")
    own = tmp_path / "in/dataset_description.json"
    own.write_text("{}")

    def says(code: int, told: str, *words: str) -> None:
        answer = medfields("superres", "--motion", *words, *FAST)
        assert answer.code == code and told in answer.err, answer.err

    says(2, "masks is not for all subjects", "--bids", "in", "-o", "out", "--masks", "m.nii.gz")
    says(2, "stacks is not for all subjects", "a.nii.gz", "--bids", "in", "-o", "out")
    says(2, "no place for the results", "--bids", "in")
    says(2, "--jobs must be at least 1", "--bids", "in", "-o", "out", "--jobs", "0")
    says(4, "there is no folder none", "--bids", "none", "-o", "out")
    says(2, "no subject in in/alone has two T2w stacks; 1 have one", "--bids", "in/alone", "-o", "out")
    says(5, "is the folder that is read", "--bids", "in", "-o", "in/")
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    says(8, "medfields[slurm]", "--bids", "in", "-o", "out", "--slurm", "gpu")
    assert own.read_text() == "{}" and not (tmp_path / "out").exists()
