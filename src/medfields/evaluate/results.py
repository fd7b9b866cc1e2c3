"""RESULTS.md from the rows of the bench, and from nothing else: `python -m medfields.evaluate.results [--check]`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import FileError
from .rows import CHECKOUT, RESULTS, latest, read_rows
from .tasks import superres
from .tasks.superres import PLAIN

PAGE = CHECKOUT / "RESULTS.md"
Rows = list[dict[str, Any]]
AGAIN = "run: .venv/bin/python -m medfields.evaluate.results"

HEAD = """# Results

Written by `medfields bench superres` from `benchmarks/results/superres.jsonl`; do not edit.

Real volumes are scanned by a simulator that shares no code with the reconstructions (quintic splines, Gaussian slice profile at 49 nodes,
Rician noise of 1 %). Every method gets the same stacks. PSNR and SSIM count voxels inside the head, {margin:g} mm or more from the border
of the crop; the data range is the truth's maximum - minimum there. Mean ± standard deviation over seeds; time is the whole solve, volume
included, memory is the peak of the process. **Bold** is the best; *classical* methods learn nothing.

How far to trust it. The settings of `own-slices`, the weights of `srr-tv` and the sizes of the networks were chosen with the truth in view, in
single-seed trials on crops of the T1 head that the `forrest` tasks score and on the two pairs of contrasts, so those rows are not a held-out
test (`forrest-oblique` is the same head). On `cord` and `t1gd` nothing was chosen but the weights of `srr-tv` that stand beside its own; that
`own-slices` turns volumes in mm, not in voxels, was mended after `t1gd`, the one grid of unequal voxels, had shown that it did not. The `t1gd`
rows of `own-slices` are of after. Times of the ablations were measured two runs at a time. Slices lie along the
voxels of the truth in every task but `forrest-oblique`, where no stack lies along the answer's voxels either. The networks are smaller than
published, to fit two cores, and all but those with `tv 0` carry a weak total variation that their papers do not have. `mcginnis` has a grid
in place of its Fourier features and no information stop; "Fourier body" is the published form at the size two cores can train. Ablations
take one idea away: "no profile" the slice profile, "no encoding", "omega 1", "one cell" and "one level" what the paper is about, "not taught" what
`own-slices` learned. A lesion's leak is what its own contrast's lesion changes in the other, as a share of its depth, mean / worst over the
lesions. Only rows whose hyper-parameters and scans are today's are shown; the last column says how many seeds there are.
"""


def page(every: Iterable[dict[str, Any]]) -> str:
    """The text of RESULTS.md."""
    rows = latest(row for row in every if is_current(row))
    parts = [HEAD.format(margin=superres.MARGIN)]
    if not rows:
        parts.append("Nothing has been measured yet.\n")
    else:
        parts.append(_machines(rows))
        parts.append(_lines(rows))
    for task in superres.TASKS.values():
        own = [r for r in rows if r["task"] == task.name]
        if own:
            parts.append(_table(task, own))
    return "\n".join(parts)


def is_current(row: dict[str, Any]) -> bool:
    """Whether a run with today's hyper-parameters, on today's scan, is what made the row; not if the task or the method is no more."""
    task, method = row["task"], row["method"]
    if task not in superres.TASKS or (method not in plugins.entries() and not Path(method).is_file()):
        return False
    config = json.loads(json.dumps(superres.configured(method, row["variant"]).config()))
    return bool(row["config"] == config and row["scan"] == superres.scan_name(superres.TASKS[task]))


def _machines(rows: Rows) -> str:
    kinds = sorted({f"{r['machine']['cpu']}, {r['machine']['threads']} threads, torch {r['machine']['torch']}" for r in rows})
    return "Measured on " + "; ".join(kinds) + ".\n"


def groups(rows: Rows) -> dict[tuple[str, str], Rows]:
    """(method, variant) -> its rows, best mean PSNR first."""
    found: dict[tuple[str, str], Rows] = {}
    for r in rows:
        found.setdefault((r["method"], r["variant"]), []).append(r)
    return dict(sorted(found.items(), key=lambda item: -_mean(item[1], "psnr")))


def _mean(rows: Rows, key: str) -> float:
    return statistics.fmean(float(r[key]) for r in rows)


def _spread(rows: Rows, key: str, digits: int) -> str:
    deviation = statistics.stdev(float(r[key]) for r in rows) if len(rows) > 1 else 0.0
    return f"{_mean(rows, key):.{digits}f} ± {deviation:.{digits}f}"


def _table(task: superres.Task, rows: Rows) -> str:
    contrasts = [s.contrast for s in task.sources] if len(task.sources) > 1 else []
    head = ["method", "PSNR, dB", "SSIM", *(f"PSNR {c}" for c in contrasts), *(["leak, %", "lesion kept, %"] if task.lesions else []),
            "time, s", "memory, MB", "seeds"]
    lines = [f"## {task.title} (`{task.name}`)\n", _row(head), _row(["---"] + ["--:"] * (len(head) - 1))]
    best = next((key for key in groups(rows) if key[1] == PLAIN), None)
    for (method, variant), own in groups(rows).items():
        name = f"{method}{f' ({variant})' if variant else ''}"
        if (method, variant) == best:
            name = f"**{name}**"
        if own[0]["fidelity"] == "classical":
            name += " *classical*"
        if method == plugins.DEFAULT["superres"]:
            name += " (the default)"
        cells = [name, _spread(own, "psnr", 2), _spread(own, "ssim", 4)]
        cells += [f"{statistics.fmean(r['contrasts'][c]['psnr'] for r in own):.2f}" for c in contrasts]
        if task.lesions:
            cells += [f"{100 * _mean(own, 'leak'):.1f} / {100 * max(r['leak_worst'] for r in own):.1f}", f"{100 * _mean(own, 'kept'):.1f}"]
        lines.append(_row([*cells, f"{_mean(own, 'seconds'):.1f}", f"{max(float(r['peak_mb']) for r in own):.0f}", str(len(own))]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lines(rows: Rows) -> str:
    """What was asked for, line by line, beside what was measured."""
    lines = ["## What was asked for\n", _row(["requirement", "asked", "measured", ""]), _row(["---", "--:", "--:", "---"])]
    lines += [_row(line) for line in requirements(rows)]
    return "\n".join(lines) + "\n"


def requirements(rows: Rows) -> list[list[str]]:
    """[what, asked, measured, verdict] of every requirement; what has no rows is said to be not measured."""
    out: list[list[str]] = []
    default = plugins.DEFAULT["superres"]

    def psnr(task: str, method: str, variant: str = PLAIN) -> float | None:
        own = [r for r in rows if (r["task"], r["method"], r["variant"]) == (task, method, variant)]
        return _mean(own, "psnr") if own else None

    def gain(what: str, asked: float, ours: float | None, theirs: float | None) -> None:
        measured = None if ours is None or theirs is None else ours - theirs
        told = "not measured" if measured is None else f"{measured:+.2f} dB"
        out.append([what, f">= {asked:+g} dB", told, _verdict(measured is not None and measured >= asked)])

    for task in ("forrest-2x5", "forrest-3x4"):
        rivals = {(r["method"], r["variant"]) for r in rows if r["task"] == task and r["fidelity"] == "classical"}
        best, name = max(((psnr(task, m, v) or 0.0, f"{m} {v}".strip()) for m, v in rivals), default=(None, ""))
        gain(f"{default} over the best classical ({name}), `{task}`", 0.5, psnr(task, default), best)
        seconds = [float(r["seconds"]) for r in rows if (r["task"], r["method"], r["variant"]) == (task, default, PLAIN)]
        measured = f"{max(seconds):.1f} s" if seconds else "not measured"
        out.append([f"time of {default}, `{task}`, slowest seed", "<= 90 s", measured, _verdict(bool(seconds) and max(seconds) <= 90)])
    small = superres.TASKS["forrest-small"]
    for method in sorted({m for m, _ in superres.plan(small) if plugins.find(m).fidelity != "classical"}):
        own = psnr(small.name, method)
        gain(f"{method} over cubic-mean", 3, own, psnr(small.name, "cubic-mean"))
        gain(f"the slice profile in {method}", 2, own, psnr(small.name, method, "no profile"))
    for task in ("brainweb-t1t2", "stroke-t1t2"):
        for tv in ("", "tv 0"):
            alone = ", ".join(part for part in ("one contrast", tv) if part)
            what = f"mcginnis, joint over one contrast{', both without total variation' if tv else ''}, `{task}`"
            gain(what, 0.5, psnr(task, "mcginnis", tv), psnr(task, "mcginnis", alone))
    for method, variant in superres.plan(superres.TASKS["brainweb-lesions"]):
        if plugins.find(method).fidelity != "classical":
            worst = [float(r["leak_worst"]) for r in rows if (r["task"], r["method"], r["variant"]) == ("brainweb-lesions", method, variant)]
            what = f"worst lesion of one contrast seen in the other, {method}{f' ({variant})' if variant else ''}"
            out.append([what, "<= 5 %", f"{100 * max(worst):.1f} %" if worst else "not measured", _verdict(bool(worst) and max(worst) <= 0.05)])
    return out


def _verdict(held: bool) -> str:
    return "yes" if held else "**no**"


def write(rows: Path = RESULTS, path: Path = PAGE) -> None:
    """Write RESULTS.md again."""
    path.write_text(page(read_rows(rows)), encoding="utf-8")


def check(rows: Path = RESULTS, path: Path = PAGE) -> None:
    """Raise FileError unless RESULTS.md is what the rows say."""
    if not path.exists() or path.read_text(encoding="utf-8") != page(read_rows(rows)):
        raise FileError(f"{path.name} is not what {rows.name} says", AGAIN)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check()
    else:
        write()
