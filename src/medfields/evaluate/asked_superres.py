"""What RESULTS.md says of super-resolution: how it was measured, what was asked for, which columns its tables have."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

from .. import plugins
from .asking import Rows, best_classical, gained, in_time, mean_psnr, measured, verdict
from .families import PLAIN
from .tasks.superres import TASKS, Task, plan

HEAD = """## superres

Real volumes are scanned by a simulator that shares no code with the reconstructions (quintic splines, Gaussian slice profile at 49 nodes,
Rician noise of 1 %). Every method gets the same stacks. PSNR and SSIM count voxels inside the head, 6 mm or more from the border
of the crop; the data range is the truth's maximum - minimum there.

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
lesions.
"""


def columns(task: Task) -> dict[str, Callable[[Rows], str]]:
    """Columns beside PSNR and SSIM: their title, and what a group of rows says in them."""
    found: dict[str, Callable[[Rows], str]] = {}
    for source in task.sources if len(task.sources) > 1 else ():
        found[f"PSNR {source.contrast}"] = partial(_of_contrast, source.contrast)
    if task.lesions:
        found["leak, %"] = lambda own: f"{100 * statistics.fmean(r['leak'] for r in own):.1f} / {100 * max(r['leak_worst'] for r in own):.1f}"
        found["lesion kept, %"] = lambda own: f"{100 * statistics.fmean(r['kept'] for r in own):.1f}"
    return found


def _of_contrast(contrast: str, own: Rows) -> str:
    return f"{statistics.fmean(r['contrasts'][contrast]['psnr'] for r in own):.2f}"


def requirements(rows: Rows) -> list[list[str]]:
    """[what, asked, measured, verdict] of every requirement; what has no rows is said to be not measured."""
    out: list[list[str]] = []
    default = plugins.DEFAULT["superres"]

    def psnr(task: str, method: str, variant: str = PLAIN) -> float | None:
        return mean_psnr(rows, task, method, variant)

    def gain(what: str, asked: float, ours: float | None, theirs: float | None) -> None:
        out.append(gained(what, asked, ours, theirs))

    for task in ("forrest-2x5", "forrest-3x4"):
        best, name = best_classical(rows, task)
        gain(f"{default} over the best classical ({name}), `{task}`", 0.5, psnr(task, default), best)
        out.append(in_time(rows, task, default, 90))
    small = TASKS["forrest-small"]
    for method in sorted({m for m, _ in plan(small) if plugins.find(m).fidelity != "classical"}):
        own = psnr(small.name, method)
        gain(f"{method} over cubic-mean", 3, own, psnr(small.name, "cubic-mean"))
        gain(f"the slice profile in {method}", 2, own, psnr(small.name, method, "no profile"))
    for task in ("brainweb-t1t2", "stroke-t1t2"):
        for tv in ("", "tv 0"):
            alone = ", ".join(part for part in ("one contrast", tv) if part)
            what = f"mcginnis, joint over one contrast{', both without total variation' if tv else ''}, `{task}`"
            gain(what, 0.5, psnr(task, "mcginnis", tv), psnr(task, "mcginnis", alone))
    for method, variant in plan(TASKS["brainweb-lesions"]):
        if plugins.find(method).fidelity != "classical":
            worst = [float(r["leak_worst"]) for r in measured(rows, "brainweb-lesions", method, variant)]
            what = f"worst lesion of one contrast seen in the other, {method}{f' ({variant})' if variant else ''}"
            out.append([what, "<= 5 %", f"{100 * max(worst):.1f} %" if worst else "not measured", verdict(bool(worst) and max(worst) <= 0.05)])
    return out
