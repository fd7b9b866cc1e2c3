"""The bench: methods x tasks x seeds on real data, one process and one line of JSON for each run.

Every run has its own process, so that its peak memory is its own and a crash ends nothing else. A run whose row exists, with the same
hyper-parameters on the same scan, is not repeated: a bench that was interrupted goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import InputError, UnknownName
from . import results
from .families import scores
from .families import tasks as family_of
from .rows import CHECKOUT, ROWS, append_row, read_rows

CACHE = CHECKOUT / "benchmarks/cache"


@dataclass(frozen=True)
class Job:
    """One run. The variant is "" or the name of an ablation."""

    family: str
    task: str
    method: str
    variant: str
    seed: int
    scan: str  # path of the measurements, from `acquire`

    @property
    def label(self) -> str:
        return f"{self.task} {self.method}{f' ({self.variant})' if self.variant else ''} seed {self.seed}"


def bench(family: str = "superres", *, tasks: Sequence[str] = (), methods: Sequence[str] = (), seeds: Sequence[int] = (0, 1, 2),
          ablations: bool = True, again: bool = False, rows: Path = ROWS, page: Path = results.PAGE, cache: Path = CACHE) -> int:
    """Run what is missing, append a row for each run, tell how it goes, and write RESULTS.md again.

    Args:
        family: of tasks, one of `families.FAMILIES`.
        tasks: names of tasks; () is all.
        methods: names or paths of methods; () is what each task asks for.
        seeds: of noise and fit.
        ablations: also run the methods without one idea of theirs, see ABLATIONS in its module.
        again: repeat runs whose rows exist.
        rows: the folder of the files of rows.
        page: RESULTS.md.
        cache: folder for simulated measurements.

    Returns:
        How many runs failed.

    Raises:
        UnknownName: for a family, task or method that does not exist.
        FileError: if the shared images are not there, or the file of rows is damaged.
    """
    own, file = family_of(family), rows / f"{family}.jsonl"
    known = own.TASKS
    for name in tasks:
        if name not in known:
            raise UnknownName(f"task of {family}", name, known)
    done = set() if again else {_identity(row) for row in read_rows(file)}
    failed = 0
    for job in _jobs(family, [known[name] for name in tasks or known], methods, seeds, ablations, cache, done):
        row = run_apart(job)
        if row is None:
            failed += 1
            continue
        append_row(file, row)
        told = ", ".join(f"{s.title} {row[s.key]:.{s.digits}f} {s.unit}".rstrip() for s in scores(known[job.task]))
        print(f"{job.label}: {told}, {row['seconds']:.1f} s, {row['peak_mb']:.0f} MB", flush=True)
    results.write(rows, page)
    return failed


def _jobs(family: str, chosen: Sequence[Any], methods: Sequence[str], seeds: Sequence[int], ablations: bool, cache: Path,
          done: set[str]) -> Iterator[Job]:
    """What is missing, task by task."""
    own = family_of(family)
    for task in chosen:
        scan = own.acquire(task, cache)
        for method, variant in own.plan(task, methods, ablations):
            config = own.configured(method, variant).config()
            for seed in seeds:
                job = Job(family, task.name, method, variant, seed, str(scan))
                if _identity({**asdict(job), "config": config, "scan": scan.stem}) not in done:
                    yield job


def _identity(row: dict[str, Any]) -> str:
    return json.dumps([row[key] for key in ("task", "method", "variant", "seed", "scan", "config")], sort_keys=True)


def run_apart(job: Job) -> dict[str, Any] | None:
    """The row of a run in a process of its own; None if it failed, after its error was printed."""
    with tempfile.TemporaryDirectory(prefix="medfields-bench-") as folder:
        out = Path(folder) / "row.json"
        words = [sys.executable, "-m", "medfields.evaluate.bench", json.dumps(asdict(job)), str(out)]
        done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0 and out.exists():
            return json.loads(out.read_text())
        last = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        print(f"{job.label}: FAILED: {last}", file=sys.stderr, flush=True)
        return None


def run_here(job: Job) -> dict[str, Any]:
    """Solve, score, and say everything about the run that a reader may ask."""
    import torch

    from ..solve.record import environment

    own = family_of(job.family)
    method = own.configured(job.method, job.variant)
    row: dict[str, Any] = {"task": job.task, "method": job.method, "variant": job.variant, "seed": job.seed, "scan": Path(job.scan).stem}
    row |= {"config": method.config(), "fidelity": type(method).fidelity}
    row |= own.measured(own.TASKS[job.task], Path(job.scan), job.seed, job.method, job.variant)
    facts = environment(torch.device("cpu"))
    del facts["command"]
    return row | {"cores": os.cpu_count(), "machine": facts, "commit": _commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}


def _commit() -> str:
    """The commit of the code, "-dirty" if the code has changed since; the bench itself changes the file of rows."""
    git = ["git", "-C", str(CHECKOUT)]
    try:
        done = subprocess.run([*git, "describe", "--always", "--abbrev=10"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return done.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def _child(words: Sequence[str]) -> None:
    job = Job(**json.loads(words[0]))
    Path(words[1]).write_text(json.dumps(run_here(job)), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise InputError("this module runs one job of the bench", "medfields bench superres")
    _child(sys.argv[1:])
