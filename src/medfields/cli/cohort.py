"""Cohorts: many jobs of one kind, each in a process of its own, here or by Slurm; what is finished is not done again; one table.

`register_cohort` and `motion_cohort` say which jobs there are and what each found. A finished job leaves `done.json`, which says by which command.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingExtra, OutputError
from .tables import write_table

HOURS = 24  # of a job of Slurm
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """One subject, or one pair: its name, the command that does it, and where the command leaves what."""

    name: str
    folder: Path  # of done.json
    command: tuple[str, ...]
    key: str  # changes with everything that makes it worth doing again
    output: Path  # without this file it is not done
    read: Callable[[], Row]  # what a command that succeeded found; goes to other machines, so nothing that cannot be pickled
    known: Row = dataclasses.field(default_factory=dict)  # what its row holds even if it fails

    def row(self) -> Row | None:
        """What a finished job found; None if it is not finished, or was done by another command."""
        try:
            done = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return done["row"] if done.get("key") == self.key and self.output.exists() else None

    def run(self) -> Row:
        """Do it in a process of its own; the row of the table, with an error text if that failed."""
        begun = time.monotonic()
        done = subprocess.run(self.command, capture_output=True, text=True)
        row = {"name": self.name, **self.known, "seconds": round(time.monotonic() - begun, 1)}
        if done.returncode:
            return {**row, "error": _reason(done.returncode, done.stderr)}
        from ..solve.record import write_json

        row |= self.read()
        write_json(self.folder / "done.json", {"key": self.key, "row": row})
        return row


def _reason(code: int, said: str) -> str:
    """Why a process failed: its own word if it had one, else the signal that ended it, else the last it said."""
    own = [line for line in said.splitlines() if line.startswith("medfields: error: ")]
    if own:
        return own[-1].removeprefix("medfields: error: ")
    if code < 0:
        memory = ", as happens when memory runs out" if -code == signal.SIGKILL else ""
        return f"the process was ended by {signal.Signals(-code).name}{memory}"
    return (said.splitlines() or ["?"])[-1]


Engine = Callable[[Sequence[Job]], Iterator[Row]]


def finish(jobs: Sequence[Job], engine: Engine, *, of: str, said: Callable[[Row], str], table: Path, columns: Sequence[str]) -> int:
    """Do what is left of the jobs and write the table; the answer is 1 if any failed, else 0.

    Args:
        jobs: all of them, in the order of the table.
        engine: `here` or `slurm`.
        of: what one of them is called.
        said: a row that succeeded in words.
        table: the .csv file to write.
        columns: its columns, in order.
    """
    rows = {job.name: row for job in jobs if (row := job.row()) is not None}
    left = [job for job in jobs if job.name not in rows]
    of = of + "s" * (len(jobs) != 1)
    if rows:
        print(f"{len(rows)} of {len(jobs)} {of} done already", file=sys.stderr)
    for row in engine(left):
        rows[row["name"]] = row
        print(f"[{len(rows)}/{len(jobs)}] {row['name']}: {row.get('error') or said(row)}", file=sys.stderr)
    write_table(filled([rows[job.name] for job in jobs], columns), table)
    failed = sum("error" in row for row in rows.values())
    print(f"{table}  {len(jobs)} {of}{f', {failed} of them failed' if failed else ''}")
    return 1 if failed else 0


def share(config: dict[str, Any], path: Path) -> str:
    """Write the options that all jobs share, for their --config; the text of that file.

    Raises:
        OutputError: if it cannot be written.
    """
    from ..solve.record import to_toml, write_text

    text = to_toml(config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise OutputError(f"cannot write into {path.parent}: {error.strerror}", "choose another folder with -o") from error
    return text


def key_of(*texts: str) -> str:
    """A short text that differs where any of these does."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def threads_of(threads: int | None, jobs: int, by_slurm: bool) -> list[str]:
    """The flag for one job: what was asked for, else a fair share of this machine; a node of Slurm knows its own."""
    n = threads or (None if by_slurm else max(1, (os.cpu_count() or 1) // jobs))
    return ["--threads", str(n)] if n else []


def engine_of(jobs: int, partition: str, folder: Path) -> Engine:
    """Slurm if a partition is named, else this machine.

    Raises:
        InputError: for no job at a time.
        MissingExtra: --slurm without submitit.
    """
    if jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    return slurm(partition, folder / "slurm") if partition else here(jobs)


def here(at_once: int) -> Engine:
    """Jobs on this machine, so many at a time; rows come as they are finished."""

    def run(jobs: Sequence[Job]) -> Iterator[Row]:
        with ThreadPoolExecutor(at_once) as pool:  # a thread only waits for its process
            try:
                for future in as_completed([pool.submit(job.run) for job in jobs]):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    return run


def slurm(partition: str, logs: Path, cluster: str = "slurm") -> Engine:
    """Each a job of Slurm; this process waits for them.

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

    def run(jobs: Sequence[Job]) -> Iterator[Row]:
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
                yield {"name": job.name, **job.known, "error": f"the job {ticket.job_id} failed: {reason[-1][:200]}"}

    return run


def filled(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows as a table has them: all with the same columns, and what a row does not have is empty."""
    return [{column: f"{v:.6g}" if isinstance(v := row.get(column, ""), float) else v for column in columns} for row in rows]
