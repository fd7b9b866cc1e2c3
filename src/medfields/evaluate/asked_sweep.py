"""What RESULTS.md says of sweeps that nobody tracked: how it was measured, what was asked for, which columns its tables have."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from .asking import Rows, mean_of, verdict
from .families import PLAIN

if TYPE_CHECKING:
    from .tasks.sweep import Task

HEAD = """## sweep

A cube of 96 mm of a real head is cut by 48 thin planes that turn around one axis, all of them through it, with pixels of 2 mm; they are read by
quintic splines. What a method is told of their poses is wrong: each component of a rotation vector about the middle of the cube, and of a shift, is
normal with the standard deviation named, drawn for each seed and plane. Noise is normal, 1 % of the truth's range. Heads stand for ultrasound, of
which nobody has the truth; speckle, shadows and attenuation are not simulated.

SSIM is the mean over planes across the axis, every 2 mm, within the swept cylinder but for a rim of 4 voxels; no plane of the sweep is one of them.
Planes do not tell where a subject lies as a whole, so the truth is read, by quintic splines, where the rigid map between true and found poses puts
it. Tables show medians over planes of what is wrong with the poses after that map; "before" is the same of the poses as they were given.

How far to trust it. Settings were chosen with poses and truth in view, on other draws of the same law on the same heads.
`scattered` is the mean of the nearest pixels at the poses as given, weighed by a Gaussian of the width that did best here with the truth in view,
or linear interpolation between them. Turning all planes about the axis, neighbours by nearly the same angle, hardly changes what they show of one
another: what is left of the rotation is mostly that, and only the guess itself says how it should be ("nothing holds the poses"). Learning the
field anew, the paper's way out of wrong agreement, is about as good as "one network" in as many steps: a grid that opens from coarse to fine seems
to find the same way out.
"""
OURS, RIVAL = "implicitvol", "scattered"


def columns(task: Task) -> dict[str, Callable[[Rows], str]]:
    """Columns beside the scores: their title, and what a group of rows says in them."""
    return {
        "before, degrees": lambda own: f"{statistics.fmean(r['degrees_before'] for r in own):.2f}",
        "before, mm": lambda own: f"{statistics.fmean(r['mm_before'] for r in own):.2f}",
        "PSNR, dB": lambda own: f"{statistics.fmean(r['psnr'] for r in own):.2f}",
    }


def requirements(rows: Rows) -> list[list[str]]:
    """[what, asked, measured, verdict] of every requirement; what has no rows is said to be not measured."""
    out = []
    for task in ("turn", "turn-brainweb"):
        after, before = (mean_of(rows, key, task, OURS) for key in ("degrees", "degrees_before"))
        gone = None if after is None or not before else 1 - after / before
        told = "not measured" if gone is None else f"{100 * gone:.0f} %"
        out.append([f"less rotation error by {OURS}, `{task}`", ">= 50 %", told, verdict(gone is not None and gone >= 0.5)])
        out.append(_above(rows, task, f"{RIVAL} at the poses as given", 0.10, RIVAL, PLAIN))
        out.append(_above(rows, task, "the same without finding poses", 0.05, OURS, "poses as guessed"))
    return out


def _above(rows: Rows, task: str, what: str, least: float, method: str, variant: str) -> list[str]:
    """How much higher the SSIM of new planes is."""
    ours, theirs = mean_of(rows, "ssim", task, OURS), mean_of(rows, "ssim", task, method, variant)
    gain = None if ours is None or theirs is None else ours - theirs
    told = "not measured" if gain is None else f"{gain:+.3f}"
    return [f"SSIM of new planes, {OURS} over {what}, `{task}`", f">= {least:+.2f}", told, verdict(gain is not None and gain >= least)]
