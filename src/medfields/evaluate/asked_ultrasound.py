"""What RESULTS.md says of ultrasound: how it was measured, what was asked for, which columns its tables have."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from .. import plugins
from .asking import Rows, best_classical, gained, mean_of, mean_psnr, verdict
from .scans_us import Task
from .tasks.ultrasound import TASKS

HEAD = """## ultrasound

Two real freehand sweeps of phantoms, tracked optically (PLUS). Every fifth frame but the first and the last is never shown to a method; its pixels
are predicted at their true places and compared with what was recorded. PSNR takes the range of grey values in the frame's counted pixels,
NCC is the correlation; both are means over the held-out frames. A field is read at the pixels themselves, a volume between its voxels of
0.5 mm. "Size" is the file of a field, or the voxels as 32-bit numbers, as a share of the latter.

How far to trust it. Speckle differs from frame to frame, so no method can predict a held-out frame to better than its speckle. The
settings of `us-field` were chosen on other frames of the same two sweeps (number 2 and so on in every four or five of those that methods are
shown), with the frames that score here left out. "width ..." of `compounding` is swept with the truth; its own width is found from frames
that it leaves out itself. Classical methods draw no random numbers.
"""


def columns(task: Task) -> dict[str, Callable[[Rows], str]]:
    """Columns beside the scores: their title, and what a group of rows says in them."""
    return {"size, %": lambda own: f"{100 * statistics.fmean(r['share'] for r in own):.1f}"}


def requirements(rows: Rows) -> list[list[str]]:
    """[what, asked, measured, verdict] of every requirement; what has no rows is said to be not measured."""
    default, out = plugins.DEFAULT["ultrasound"], []
    for task in TASKS:
        own, (best, name) = mean_psnr(rows, task, default), best_classical(rows, task)
        out.append(gained(f"{default} over the best compounding, {name or 'none'}, `{task}`", 1.5, own, best))
        out.append(gained(f"{default} over nearest, `{task}`", 1.5, own, mean_psnr(rows, task, "nearest")))
        out.append(gained(f"{default} over compounding, `{task}`", 0.0, own, mean_psnr(rows, task, "compounding")))
        share = mean_of(rows, "share", task, default)
        told = "not measured" if share is None else f"{100 * share:.1f} %"
        out.append([f"file of {default}, of the voxels, `{task}`", "<= 25 %", told, verdict(share is not None and share <= 0.25)])
    return out
