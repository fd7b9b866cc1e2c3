"""superres --motion --bids: every subject and session of a BIDS folder, each by a job of its own (see `cohort`), into a BIDS derivative.

A subject's run folder holds `done.json`; `cohort.csv` sums all up.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import InputError, OutputError
from .bids import MADE, Visit, mask_beside, visits
from .cohort import Job, Row, engine_of, finish, key_of, share, threads_of
from .motion import TASK, resolved
from .task import absolute

if TYPE_CHECKING:
    from ..solve import Method
    from .motion import Options

ALONE = ("stacks", "masks", "slices", "run")  # options of one subject
TABLE = ("name", "stacks", "masks", "slices", "median_turn_deg", "median_shift_mm", "median_correlation", "left_out", "seconds", "error")
CONFIG = "motion.toml"
DESCRIPTION = {"Name": "medfields superres --motion", "BIDSVersion": "1.9.0", "DatasetType": "derivative",
               "GeneratedBy": [{"Name": "medfields", "Version": __version__}]}
UNKNOWN = ("*.field", "*.run/", "*_slices/", "slurm/", CONFIG, "cohort.csv")  # to BIDS, which has no word for them


def cohort(options: Options, method: Method) -> int:
    """Reconstruct every subject of a BIDS folder; the answer is 1 if any failed, else 0.

    Raises:
        FileError: for a folder that does not exist.
        InputError: for options that belong to one subject, or a folder without subjects.
        OutputError: for an output folder that is the input folder, or cannot be written.
        MissingExtra: --slurm without submitit.
    """
    alone = [name for name in ALONE if getattr(options, name)]
    if alone:
        hint = "masks are found by their names" if alone[0] == "masks" else "leave it out, also of the file that --config names"
        raise InputError(f"with --bids, {alone[0]} is not for all subjects", hint)
    if not options.output:
        raise InputError("there is no place for the results", "give a folder: -o derivatives/medfields/")
    root, folder = Path(options.bids), Path(options.output)
    engine = engine_of(options.jobs, options.slurm, folder)
    found, notes = visits(root)
    if root.resolve() == folder.resolve():
        raise OutputError(f"{folder} is the folder that is read", f"results are a derivative: -o {folder / 'derivatives/medfields'}")
    for text in notes:
        print(f"medfields: note: {text}", file=sys.stderr)
    jobs = jobs_of(options, method, found)
    _describe(folder)
    return finish(jobs, engine, of="session" if any(v.session for v in found) else "subject", said=said,
                  table=folder / "cohort.csv", columns=TABLE)


def jobs_of(options: Options, method: Method, found: list[Visit]) -> list[Job]:
    """One job for each; the options that all share go into `motion.toml` of the output folder."""
    folder = Path(options.output)
    common: dict[str, Any] = {k: v for k, v in resolved(options, method).items() if k not in ALONE}
    text = share(common, folder / CONFIG)
    made = []
    for visit in found:
        stem = folder / visit.folder / f"{visit.name}_{MADE}_T2w"
        output, run = stem.with_name(f"{stem.name}.nii.gz"), stem.with_name(f"{stem.name}.run")
        masks = [mask for path in visit.stacks if (mask := mask_beside(path))]
        words = [*(absolute(str(path)) for path in visit.stacks), "-o", str(output), "--config", str(folder / CONFIG)]
        words += ["--device", options.device] if options.device != "auto" else []
        words += ["--preview"] * options.preview + ["--no-uncertainty"] * (not options.uncertainty)
        command = (sys.executable, "-m", "medfields", TASK, *words, *threads_of(options.threads, options.jobs, bool(options.slurm)))
        key = key_of(text, *words, *map(_stamp, (*visit.stacks, *masks)))
        made.append(Job(visit.name, run, command, key, output, partial(found_in, run), {"stacks": len(visit.stacks), "masks": len(masks)}))
    return made


def found_in(run: Path) -> Row:
    """How far the slices of a finished run moved, how alike they are, how many were left out."""
    found = json.loads((run / "summary.json").read_text(encoding="utf-8"))["notes"][TASK]
    poses = np.array(found["poses"])
    return {"slices": len(poses), "median_turn_deg": float(np.median(np.degrees(np.linalg.norm(poses[:, :3], axis=1)))),
            "median_shift_mm": float(np.median(np.linalg.norm(poses[:, 3:], axis=1))),
            "median_correlation": float(np.median(found["likeness"])), "left_out": int((np.array(found["worth"]) == 0).sum())}


def said(row: Row) -> str:
    """A finished subject in words."""
    return (f"{row['stacks']} stacks, {row['slices']} slices, moved by {row['median_turn_deg']:.1f} degrees and {row['median_shift_mm']:.1f} mm "
            f"(median), correlation {row['median_correlation']:.3f}, {row['left_out']} left out, {row['seconds']:.0f} s")


def _stamp(path: Path) -> str:
    """Changes when a stack is sent again, or a mask drawn again: its subject is then done again."""
    try:
        facts = path.stat()
    except OSError:  # a link to nothing; the job will say so
        return f"{path} is not there"
    return f"{path} {facts.st_size} {facts.st_mtime_ns}"


def _describe(folder: Path) -> None:
    """What makes the folder a data set of BIDS; a description that is there stays."""
    from ..solve.record import write_json, write_text

    if not (folder / "dataset_description.json").exists():
        write_json(folder / "dataset_description.json", DESCRIPTION)
        write_text(folder / ".bidsignore", "".join(f"{name}\n" for name in UNKNOWN))
