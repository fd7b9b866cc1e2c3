"""superres --motion --bids: which stacks belong together, one process for each subject, resumable, one table, a BIDS derivative."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from medfields.cli.bids import mask_of, visits
from medfields.cli.motion_cohort import found_in, jobs_of, said
from medfields.cli.motion import parse
from medfields.io import write_volume

from .test_motion import acquired

FAST = ("--method", "moved-slices", "--alternations", "1", "--steps", "2", "--spacing", "4")


def touched(root: Path, *names: str) -> Path:
    """A folder of empty files: names are all that is looked at."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def stacks_of(root: Path, **options: object) -> dict[str, list[str]]:
    return {v.name: [p.name for p in v.stacks] for v in visits(root)[0]}


def test_subjects_sessions_and_stacks_are_found_by_their_names(tmp_path: Path) -> None:
    a, b = "sub-01/anat/sub-01", "sub-02/ses-2/anat/sub-02_ses-2"
    root = touched(
        tmp_path, f"{a}_run-10_T2w.nii.gz", f"{a}_run-2_T2w.nii.gz", f"{a}_acq-haste_run-1_T2w.nii", f"{a}_run-2_T1w.nii.gz",
        f"{a}_run-2_T2w_desc-brain_mask.nii.gz", f"{a}_run-2_desc-brain_mask.nii.gz", f"{a}_rec-medfields_T2w.nii.gz",
        f"{a}_space-T1w_T2w.nii.gz", f"{a}_run-2_T2w.json", f"derivatives/x/{a}_run-3_T2w.nii.gz", f"{b}_run-1_T2w.nii.gz", f"{b}_run-2_T2w.nii.gz",
        "sub-02/ses-3/anat/sub-02_ses-3_T2w.nii.gz", "sub-02/ses-2/anat/sub-01_run-4_T2w.nii.gz", "sub-01_run-2_T2w.nii.gz", "participants.tsv")
    found, notes = visits(root)
    assert {v.name: [p.name.partition("sub-0")[2][2:] for p in v.stacks] for v in found} == {
        "sub-01": ["acq-haste_run-1_T2w.nii", "run-2_T2w.nii.gz", "run-10_T2w.nii.gz"], "sub-02_ses-2": ["ses-2_run-1_T2w.nii.gz", "ses-2_run-2_T2w.nii.gz"]}
    assert [str(v.folder) for v in found] == ["sub-01/anat", "sub-02/ses-2/anat"]
    assert len(notes) == 3 and "sub-02_ses-3 has one stack only" in notes[2]
    assert any("sub-01_run-4_T2w.nii.gz is called sub-01 but lies with another" in n for n in notes) and any("has the name of" in n for n in notes)


def test_masks_lie_beside_the_stack_or_in_derivatives(tmp_path: Path) -> None:
    for stack in ("sub-01/anat/sub-01_run-1_T2w.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_run-1_T2w.nii.gz"):
        path = touched(tmp_path, stack) / stack
        touched(tmp_path, f"derivatives/masks/{Path(stack).parent}/{path.name.replace('run-1', 'run-2').replace('T2w', 'desc-brain_mask')}")
        assert mask_of(path) is None  # that of another run
        derived = f"derivatives/masks/{Path(stack).parent}/{path.name.replace('T2w', 'desc-brain_mask')}"
        assert mask_of(touched(tmp_path, derived) / stack) == tmp_path / derived
        beside = stack.replace("T2w.nii.gz", "desc-brain_mask.nii.gz")
        assert mask_of(touched(tmp_path, beside) / stack) == tmp_path / beside


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
