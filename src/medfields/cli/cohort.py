"""register --pairs: a table of pairs, each registered in a process of its own, here or by Slurm; what is finished is not done again.

A pair has a folder of its own: the warped image, the warp, the run, and `done.json`, which says by which command. One table sums them up.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, InputError, MissingExtra, OutputError, UnknownName
from .register import TASK, resolved

if TYPE_CHECKING:
    from ..solve import Method
    from .register import Options

COLUMNS = ("fixed", "moving", "mask", "moving_mask", "fixed_landmarks", "moving_landmarks", "name")
SUMMARY = {"ncc_before": "ncc_before", "ncc_started": "ncc_started", "ncc": "ncc", "sd_log_jacobian": "sd_log_jacobian",
           "tre_before_mm": "tre_before_mean", "tre_mean_mm": "tre_mean", "tre_median_mm": "tre_median", "tre_max_mm": "tre_max"}
HOURS = 24  # of a job of Slurm


@dataclasses.dataclass(frozen=True)
class Job:
    """One pair: its name, its folder and the command that registers it."""

    name: str
    folder: Path
    command: tuple[str, ...]
    key: str  # changes with everything the command depends on but the images

    def row(self) -> dict[str, Any] | None:
        """What a finished pair found; None if it is not finished, or was done by another command."""
        try:
            done = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return done["row"] if done.get("key") == self.key else None

    def run(self) -> dict[str, Any]:
        """Register the pair in a process of its own; the row of the table, with an error text if that failed."""
        begun = time.monotonic()
        done = subprocess.run(self.command, capture_output=True, text=True)
        seconds = {"name": self.name, "seconds": round(time.monotonic() - begun, 1)}
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("medfields: error: ")] or done.stderr.splitlines()[-1:] or ["?"]
            return {**seconds, "error": lines[-1].removeprefix("medfields: error: ")}
        from ..solve.record import write_json

        found = json.loads((self.folder / "warped.run/summary.json").read_text(encoding="utf-8"))["metrics"]
        numbers = {column: found[name] for column, name in SUMMARY.items() if name in found}
        row = {**seconds, "folds_percent": 100 * found["folds"], **numbers}
        write_json(self.folder / "done.json", {"key": self.key, "row": row})
        return row


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
    if options.jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {options.jobs}")
    jobs = jobs_of(options, method)
    rows = {job.name: row for job in jobs if (row := job.row()) is not None}
    left = [job for job in jobs if job.name not in rows]
    if rows:
        print(f"{len(rows)} of {len(jobs)} pairs are done already", file=sys.stderr)
    engine = slurm(options.slurm, Path(options.output) / "slurm") if options.slurm else here(options.jobs)
    for row in engine(left):
        rows[row["name"]] = row
        print(f"[{len(rows)}/{len(jobs)}] {row['name']}: {row.get('error') or said(row)}", file=sys.stderr)
    path = write_summary([rows[job.name] for job in jobs], Path(options.output) / "summary.csv")
    failed = sum("error" in row for row in rows.values())
    print(f"{path}  {len(jobs)} pairs{f', {failed} of them failed' if failed else ''}")
    return 1 if failed else 0


def jobs_of(options: Options, method: Method) -> list[Job]:
    """One job for each row of the table; the options that all share go into `register.toml` of the output folder."""
    from ..solve.record import to_toml, write_text

    folder = Path(options.output)
    text = to_toml(resolved(options, method))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "register.toml", text)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}", "choose another folder with -o") from error
    threads = options.threads or (None if options.slurm else max(1, (os.cpu_count() or 1) // options.jobs))
    made = []
    for name, row in _table(Path(options.pairs)):
        words = [row["fixed"], row["moving"], "-o", str(folder / name / "warped.nii.gz"), "--config", str(folder / "register.toml")]
        for flag, columns in {"--mask": ["mask"], "--moving-mask": ["moving_mask"], "--landmarks": ["fixed_landmarks", "moving_landmarks"]}.items():
            if given := [row[c] for c in columns if row.get(c)]:
                words += [flag, *given]
        words += ["--no-folds"] * options.no_folds + (["--device", options.device] if options.device != "auto" else [])
        key = hashlib.sha256("\0".join([text, *words]).encode()).hexdigest()
        words += ["--threads", str(threads)] if threads else []
        made.append(Job(name, folder / name, (sys.executable, "-m", "medfields", TASK, *words), key))
    return made


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


Engine = Callable[[Sequence[Job]], Iterator[dict[str, Any]]]


def here(at_once: int) -> Engine:
    """Pairs on this machine, so many at a time; rows come as they are finished."""

    def run(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(at_once) as pool:  # a thread only waits for its process
            try:
                for future in as_completed([pool.submit(job.run) for job in jobs]):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    return run


def slurm(partition: str, logs: Path, cluster: str = "slurm") -> Engine:
    """Pairs as jobs of Slurm; this process waits for them.

    Args:
        partition: where they run.
        logs: a folder that all machines see.
        cluster: "local" and "debug" run the same jobs here, in processes or in this one.

    Raises:
        MissingExtra: without submitit.
    """
    try:
        import submitit
        from submitit.core.utils import UncompletedJobError
    except ImportError:
        raise MissingExtra("submitit", "slurm", "--slurm") from None

    def run(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        if not jobs:
            return
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(timeout_min=60 * HOURS, **({"slurm_partition": partition} if cluster == "slurm" else {}))
        sent = [executor.submit(job.run) for job in jobs]
        for job, ticket in zip(jobs, sent, strict=True):
            try:
                yield ticket.result()
            except UncompletedJobError as error:  # whatever befell the node: the others go on
                lines = str(error).strip().splitlines()
                reason = [line for line in lines if re.match(r"\w+(Error|Exception)\b", line)] or lines[:1]
                yield {"name": job.name, "error": f"the job {ticket.job_id} failed: {reason[-1][:200]}"}

    return run


def said(row: dict[str, Any]) -> str:
    """A finished pair in words."""
    landmarks = f", landmarks {row['tre_mean_mm']:.2f} mm" if "tre_mean_mm" in row else ""
    folds = f", {row['folds_percent']:.2g} % folded" if row["folds_percent"] else ""
    return f"correlation {row['ncc_before']:.3f} -> {row['ncc']:.3f}{landmarks}{folds}, {row['seconds']:.0f} s"


def write_summary(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """The rows as one table; numbers that a pair does not have stay empty.

    Raises:
        OutputError: if it cannot be written.
    """
    from ..io import atomic

    columns = ["name", "folds_percent", *SUMMARY, "seconds", "error"]
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows([f"{v:.6g}" if isinstance(v := row.get(column, ""), float) else v for column in columns] for row in rows)
    return path
