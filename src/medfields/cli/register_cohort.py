"""register --pairs: a table of pairs, each registered by a job of its own (see `cohort`); one table sums them up.

A pair has a folder of its own: the warped image, the warp, the run, and `done.json`.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileError, InputError, UnknownName
from .cohort import Job, Row, engine_of, finish, key_of, share, threads_of
from .register import TASK, resolved

if TYPE_CHECKING:
    from ..solve import Method
    from .register import Options

COLUMNS = ("fixed", "moving", "mask", "moving_mask", "fixed_landmarks", "moving_landmarks", "name")
SUMMARY = {"ncc_before": "ncc_before", "ncc_started": "ncc_started", "ncc": "ncc", "sd_log_jacobian": "sd_log_jacobian",
           "tre_before_mm": "tre_before_mean", "tre_mean_mm": "tre_mean", "tre_median_mm": "tre_median", "tre_max_mm": "tre_max"}
TABLE = ("name", "folds_percent", *SUMMARY, "seconds", "error")


def cohort(options: Options, method: Method) -> int:
    """Register every pair of a table; the answer is 1 if any failed, else 0.

    Raises:
        FileError: for a table that cannot be read.
        InputError: for options that belong to one pair, or a table without pairs.
        UnknownName: for a column that does not exist.
        MissingExtra: --slurm without submitit.
    """
    alone = [name for name in ("fixed", "warp", "mask", "moving_mask", "landmarks", "labels", "first", "centreline", "run") if getattr(options, name)]
    if alone:
        raise InputError(f"with --pairs, {alone[0].replace('_', '-')} is not for all pairs", "give it as a column of the table")
    if not options.output:
        raise InputError("there is no place for the results", "give a folder: -o results/")
    folder = Path(options.output)
    engine = engine_of(options.jobs, options.slurm, folder)
    return finish(jobs_of(options, method), engine, of="pair", said=said, table=folder / "summary.csv", columns=TABLE)


def jobs_of(options: Options, method: Method) -> list[Job]:
    """One job for each row of the table; the options that all share go into `register.toml` of the output folder."""
    folder = Path(options.output)
    text = share(resolved(options, method), folder / "register.toml")
    made = []
    for name, row in _table(Path(options.pairs)):
        warped = folder / name / "warped.nii.gz"
        words = [row["fixed"], row["moving"], "-o", str(warped), "--config", str(folder / "register.toml")]
        for flag, columns in {"--mask": ["mask"], "--moving-mask": ["moving_mask"], "--landmarks": ["fixed_landmarks", "moving_landmarks"]}.items():
            if given := [row[c] for c in columns if row.get(c)]:
                words += [flag, *given]
        words += ["--no-folds"] * options.no_folds + (["--device", options.device] if options.device != "auto" else [])
        command = (sys.executable, "-m", "medfields", TASK, *words, *threads_of(options.threads, options.jobs, bool(options.slurm)))
        made.append(Job(name, folder / name, command, key_of(text, *words), warped, partial(found_in, folder / name / "warped.run")))
    return made


def found_in(run: Path) -> Row:
    """The numbers of a finished run."""
    found = json.loads((run / "summary.json").read_text(encoding="utf-8"))["metrics"]
    return {"folds_percent": 100 * found["folds"], **{column: found[name] for column, name in SUMMARY.items() if name in found}}


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Names and rows of a table of pairs; file names count from its folder."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [{(k or "").strip(): (v or "").strip() for k, v in row.items() if not isinstance(v, list)} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", "give a .csv file") from error
    if not rows:
        raise InputError(f"{path} holds no pairs", "the first line is fixed,moving; each below names two images")
    for column in rows[0]:
        if column not in COLUMNS:
            raise UnknownName(f"column in {path}", column, COLUMNS)
    names: set[str] = set()
    for n, row in enumerate(rows, start=1):
        if not (row.get("fixed") and row.get("moving")):
            raise InputError(f"pair {n} of {path} lacks its fixed or its moving image", "the first line is fixed,moving")
        if bool(row.get("fixed_landmarks")) != bool(row.get("moving_landmarks")):
            raise InputError(f"pair {n} of {path} has landmarks of one image only", "both or none")
        name = row.pop("name", "") or f"{n:03d}"
        if not re.fullmatch(r"\w[\w.+-]*", name) or name in names:
            raise InputError(f"pair {n} of {path} cannot be called '{name}'", "names are folders: letters, digits, . _ + -, each once")
        names.add(name)
        yield name, {column: str((path.parent / file).resolve()) if file else "" for column, file in row.items()}


def said(row: Row) -> str:
    """A finished pair in words."""
    landmarks = f", landmarks {row['tre_mean_mm']:.2f} mm" if "tre_mean_mm" in row else ""
    folds = f", {row['folds_percent']:.2g} % folded" if row["folds_percent"] else ""
    return f"correlation {row['ncc_before']:.3f} -> {row['ncc']:.3f}{landmarks}{folds}, {row['seconds']:.0f} s"
