"""The bench: methods x tasks x seeds on real data, one process and one line of JSON for each run.

Every run has its own process, so that its peak memory is its own and a crash ends nothing else. A run whose row exists, with the same
hyper-parameters on the same scan, is not repeated: a bench that was interrupted goes on.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UnknownName
from . import results
from .rows import CHECKOUT, RESULTS, append_row, read_rows
from .tasks import superres

if TYPE_CHECKING:
    from ..cases import Stacks
    from ..solve import Method, Run
    from ..space import Volume


CACHE = CHECKOUT / "benchmarks/cache"


@dataclass(frozen=True)
class Job:
    """One run. The variant is "" or the name of an ablation."""

    task: str
    method: str
    variant: str
    seed: int
    scan: str  # path of the noise-free stacks, from `superres.acquire`

    @property
    def label(self) -> str:
        return f"{self.task} {self.method}{f' ({self.variant})' if self.variant else ''} seed {self.seed}"


def bench(family: str = "superres", *, tasks: Sequence[str] = (), methods: Sequence[str] = (), seeds: Sequence[int] = (0, 1, 2),
          ablations: bool = True, again: bool = False, rows: Path = RESULTS, page: Path = results.PAGE, cache: Path = CACHE) -> int:
    """Run what is missing, append a row for each run, tell how it goes, and write RESULTS.md again.

    Args:
        family: of tasks; "superres" is the one there is.
        tasks: names of tasks; () is all.
        methods: names or paths of methods; () is what each task asks for.
        seeds: of noise and fit.
        ablations: also run the methods without one idea of theirs, see `superres.ABLATIONS`.
        again: repeat runs whose rows exist.
        rows: the file of rows.
        page: RESULTS.md.
        cache: folder for the noise-free stacks.

    Returns:
        How many runs failed.

    Raises:
        UnknownName: for a family, task or method that does not exist.
        FileError: if the shared images are not there, or the file of rows is damaged.
    """
    if family != "superres":
        raise UnknownName("family of tasks", family, ["superres"])
    chosen = [superres.TASKS[name] if name in superres.TASKS else _unknown(name) for name in tasks or superres.TASKS]
    done = set() if again else {_identity(row) for row in read_rows(rows)}
    failed = 0
    for job in _jobs(chosen, methods, seeds, ablations, cache, done):
        row = run_apart(job)
        if row is None:
            failed += 1
            continue
        append_row(rows, row)
        score = f"{row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}"
        print(f"{job.label}: {score}, {row['seconds']:.1f} s, {row['peak_mb']:.0f} MB", flush=True)
    results.write(rows, page)
    return failed


def _jobs(tasks: Sequence[superres.Task], methods: Sequence[str], seeds: Sequence[int], ablations: bool, cache: Path,
          done: set[str]) -> Iterator[Job]:
    """What is missing, task by task."""
    for task in tasks:
        scan = superres.acquire(task, cache)
        for method, variant in superres.plan(task, methods, ablations):
            config = superres.configured(method, variant).config()
            for seed in seeds:
                job = Job(task.name, method, variant, seed, str(scan))
                if _identity({**asdict(job), "config": config, "scan": scan.stem}) not in done:
                    yield job


def _unknown(name: str) -> superres.Task:
    raise UnknownName("task of superres", name, superres.TASKS)


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

    from ..solve import Run
    from ..solve.record import environment

    task, ablation = superres.TASKS[job.task], superres.ablation(job.method, job.variant)
    trial = superres.trial(task, Path(job.scan), job.seed, profile=ablation.profile)
    method = superres.configured(job.method, job.variant)
    before = peak_mb()
    start = time.monotonic()
    result = solve(method, trial.case, Run(seed=job.seed), ablation.one_contrast)
    seconds = time.monotonic() - start
    row: dict[str, Any] = {"task": job.task, "method": job.method, "variant": job.variant, "seed": job.seed, "scan": Path(job.scan).stem}
    row |= {"config": method.config(), "fidelity": type(method).fidelity, **superres.score(result, trial)}
    row |= {"seconds": round(seconds, 2), "peak_mb": round(peak_mb(), 1), "start_mb": round(before, 1)}
    if task.lesions:
        without = superres.trial(task, Path(job.scan), job.seed, lesions=False, profile=ablation.profile)
        row |= superres.leak(result, solve(method, without.case, Run(seed=job.seed), ablation.one_contrast), trial)
    facts = environment(torch.device("cpu"))
    del facts["command"]
    return row | {"cores": os.cpu_count(), "machine": facts, "commit": _commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}


def solve(method: Method, case: Stacks, run: Run, one_contrast: bool = False) -> Volume:
    """The result of a method on the grid of the case; with `one_contrast`, every contrast solved alone."""
    import torch

    from ..space import Volume

    if one_contrast:
        alone = [solve(method, case.only(contrast), run) for contrast in case.contrasts]
        return Volume(torch.cat([v.data for v in alone]), case.grid)
    result = method.solve(case, run)
    if not isinstance(result, Volume):
        return result.on(case.grid).volume()
    return result if result.grid.same_as(case.grid) else result.on(case.grid)


def peak_mb() -> float:
    """The largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if platform.system() == "Darwin" else peak / 2**10


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
