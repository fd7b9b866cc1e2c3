"""RESULTS.md from the rows of the bench, and from nothing else: `python -m medfields.evaluate.results [--check]`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import FileError
from .rows import CHECKOUT, RESULTS, latest, read_rows
from .tasks import superres

PLAIN = ""  # the variant that is no ablation
PAGE = CHECKOUT / "RESULTS.md"
Rows = list[dict[str, Any]]
AGAIN = "run: .venv/bin/python -m medfields.evaluate.results"

HEAD = """# Results

Written by `medfields bench superres` from `benchmarks/results/superres.jsonl`; do not edit.

Real volumes are scanned by a simulator that shares no code with the reconstructions (quintic splines, Gaussian slice profile at 49 nodes,
Rician noise of 1 %). Every method gets the same stacks. PSNR and SSIM count voxels inside the head, {margin:g} mm or more from the border
of the crop; the data range is the truth's maximum - minimum there. Mean ± standard deviation over seeds; time is the whole solve, volume
included, memory is the peak of the process. **Bold** is the best; *classical* methods learn nothing.

How far to trust it: the settings of `own-slices`, the weights of `srr-tv` and the sizes of the networks were chosen with the truth in view, in
single-seed trials on crops of the T1 head that the `forrest` tasks score and on the two pairs of contrasts, so those rows are not a held-out
test; on `cord` and `t1gd` nothing was chosen. The networks are smaller than published, to fit two cores, `mcginnis` has a grid in place of its
Fourier features, and all but those with `tv 0` carry a weak total variation that their papers do not have; the rows hold every setting. Some
methods have fewer than three seeds; the last column says so. `own-slices` has 3200 steps on `forrest-2x5` and `forrest-3x4`, its default; its
other rows are of 4000 steps, those of `forrest-small` and two of `cord` also of an older first volume.
"""


def page(every: Iterable[dict[str, Any]]) -> str:
    """The text of RESULTS.md."""
    rows = latest(every)
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
        cells += [f"{100 * _mean(own, key):.1f}" for key in ("leak", "kept") if task.lesions]
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
    """[what, asked, measured, verdict] of every requirement that the rows can speak to."""
    out: list[list[str]] = []
    default = plugins.DEFAULT["superres"]

    def psnr(task: str, method: str, variant: str = PLAIN) -> float | None:
        own = [r for r in rows if (r["task"], r["method"], r["variant"]) == (task, method, variant)]
        return _mean(own, "psnr") if own else None

    def tell(what: str, asked: str, measured: float, unit: str, held: bool) -> None:
        out.append([what, asked, f"{measured:+.2f} {unit}" if unit == "dB" else f"{measured:.1f} {unit}", "yes" if held else "**no**"])

    for task in ("forrest-2x5", "forrest-3x4"):
        ours = psnr(task, default)
        rivals = {(r["method"], r["variant"]) for r in rows if r["task"] == task and r["fidelity"] == "classical"}
        best = max(((psnr(task, m, v) or 0.0, f"{m} {v}".strip()) for m, v in rivals), default=None)
        if ours is not None and best is not None:
            gain = ours - best[0]
            tell(f"{default} over the best classical ({best[1]}), `{task}`", ">= +0.5 dB", gain, "dB", gain >= 0.5)
            seconds = max(float(r["seconds"]) for r in rows if (r["task"], r["method"], r["variant"]) == (task, default, PLAIN))
            tell(f"time of {default}, `{task}`, slowest seed", "<= 90 s", seconds, "s", seconds <= 90)
    cubic = psnr("forrest-small", "cubic-mean")
    for method in sorted({r["method"] for r in rows if r["task"] == "forrest-small" and r["fidelity"] != "classical"}):
        own, without = psnr("forrest-small", method), psnr("forrest-small", method, "no profile")
        if own is not None and cubic is not None:
            tell(f"{method} over cubic-mean", ">= +3 dB", own - cubic, "dB", own - cubic >= 3)
        if own is not None and without is not None:
            tell(f"the slice profile in {method}", ">= +2 dB", own - without, "dB", own - without >= 2)
    for task in ("brainweb-t1t2", "stroke-t1t2"):
        joint, alone = psnr(task, "mcginnis"), psnr(task, "mcginnis", "one contrast")
        if joint is not None and alone is not None:
            tell(f"mcginnis, joint over one contrast, `{task}`", ">= +0.5 dB", joint - alone, "dB", joint - alone >= 0.5)
    for method in sorted({r["method"] for r in rows if "leak" in r}):
        percent = 100 * _mean([r for r in rows if r["method"] == method and "leak" in r and r["variant"] == PLAIN], "leak")
        tell(f"lesion of one contrast seen in the other, {method}", "<= 5 %", percent, "%", percent <= 5)
    return out


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
