"""What RESULTS.md says of registration: how it was measured, what was asked for, which columns its tables have."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from .. import plugins
from .asking import Rows, in_time, mean_of, measured, verdict
from .families import PLAIN
from .pairs import Task

ANTS = ("ANTs, measured elsewhere", 1.69)  # mm on `lung`: affine and SyN (CC, radius 2), 455 s on two cores
FAR_MOTION = 8.0  # voxels, mean, of `phantom-far`
FAILED = 1.0  # voxels, above which the mean error of a start is a failure

HEAD = """## register

All methods of a task start from the same map between the worlds (`lung`: the middles of the masks; `brain` and `slices`: an affine map by
correlation; the others: none) and get the same masks; landmarks, labels and vessels are scored only. TRE is the mean distance of landmarks, at their
exact places; "snapped" rounds them to voxels first, as DIR-Lab does. Of the 50 landmarks of `lung` 22 lie inside both images. Of one of them the
annotation follows the end of a vessel 13 mm away, and all methods miss it alike: "of 21" is without it. They lie on voxels of the fixed image, and in
the moving one on half voxels and whole slices, 2.5 mm apart: that rounding alone leaves 0.7 mm. Folds are the share of det grad phi <= 0 on a
lattice twice as fine as the voxels, in the mask, of what comes after the start. HD95 is the larger of the two directed 95th percentiles
between border voxels, a mean over the labels that both images have; Dice counts a label that one of them lacks as 0.
"Vessels' overlap" is the Dice of the
strongest twentieth of the lung's ridges. Inverse consistency registers the other way round as well, and that is not in the time; of flows it is that
of the flow and the same flow backwards. Phantoms are exact, F(x) = M(x + u(x)), with new noise for each seed, and are scored in voxels.

How far to trust it. The settings of the default were chosen on `lung`, `brain` and `brain-back`, with their landmarks and labels in view and by one
run each, those of `bspline` on the first two: one pair of brains decides little. By Dice on `brain` and `brain-back`, fluid went from 0.741 and
0.715, when its small steps were fitted by Adam, over 0.725 on the latter (steps down the slope, most of them at the finest voxels) and 0.740 and
0.731 (values count beside windows, the whole is smoothed after each step) to 0.740 and 0.738 (half as many steps, twice as long) and 0.744 and
0.742 (smoothed by 0.04 instead of 0.06 squared nodes; 0.025 leaves 0.737 on the latter). Values by one line for the whole image did as well there,
and ruined `phantom-bias` (0.86 voxels). Adam met the vessels of `breath` more closely (overlap 0.80), `phantom` (0.087 voxels) and `phantom-far`
(0.141 voxels), whose images correspond exactly; on landmarks and labels it was behind. Times of fluid and ants, and of `bspline` on `lung`, are
those of a slower machine than the others' (`bspline` took 31.9 s before).

Of the 21 landmarks of `lung` bspline, fluid (by Adam), syn and demons miss the same ones by the same vectors (correlations 0.88 to 0.98 between
their components; idir's with theirs 0.6 to 0.7), and the mean of all their answers errs by 1.09 mm: what is left is shared, by the annotation or by
what all of these see alike, and averaging takes next to nothing of it away (1.05 mm at best, of idir and bspline). ANTs, run since, leaves 1.04 mm.

`phantom-far`, where a small weight of |det - 1| lets space fold, was chosen among motions of 5.2, 7, 8 and 9 voxels on seed 0; hyperelastic's small
weights there, among three, so that it errs about as much as idir, also on seed 0. On it cycle does not find the motion, and its uncertainty tells
where; on `random-starts` it finds it, and what is left both of its ways see alike. On `peristalsis` the true motion itself leaves an MAE of 0.006;
with 400 steps instead of 2000 the MAE of both charts was 0.0082 and 0.0088. Networks are smaller than published, to fit two cores. Methods that are
programs of others run on volumes only, and in the versions installed here.
"""

_COMMON = {"folds, %": ("folds", 100.0, 3), "SDlogJ": ("sd_log_jacobian", 1.0, 3)}
_OWN: dict[str, dict[str, tuple[str, float, int]]] = {
    "lung": {"median": ("tre_median", 1.0, 2), "most": ("tre_max", 1.0, 2), "snapped": ("tre_snapped", 1.0, 2)},
    "breath": {"NCC before": ("ncc_before", 1.0, 4), "overlap before": ("vessels_before", 1.0, 3), "inverse, mm": ("inverse", 1.0, 2)},
    "slices": {"NCC before": ("ncc_before", 1.0, 4)},
    "phantom": {"inverse, voxels": ("inverse", 1.0, 3), "Spearman": ("spearman", 1.0, 2)},
    "tube": {"error, mm": ("tre", 1.0, 2)},
}


def columns(task: Task) -> dict[str, Callable[[Rows], str]]:
    """Columns beside the main scores: their title, and what a group of rows says in them."""
    return {title: _told(*what) for title, what in {**_OWN.get(task.kind, {}), **_COMMON}.items()}


def _told(key: str, scale: float, digits: int) -> Callable[[Rows], str]:
    def tell(own: Rows) -> str:
        return f"{scale * statistics.fmean(r[key] for r in own):.{digits}f}" if all(key in r for r in own) else ""

    return tell


def requirements(rows: Rows) -> list[list[str]]:
    """[what, asked, measured, verdict] of every requirement; what has no rows is said to be not measured."""
    default = plugins.DEFAULT["register"]
    return _of_the_lung(rows, default) + _of_the_brain(rows, default) + _of_the_time(rows, default) + _of_the_systems(rows)


def _of_the_lung(rows: Rows, default: str) -> list[list[str]]:
    """The default beside everyone else, in full and in 20 s."""
    others = {(r["method"], r["variant"]) for r in rows if r["task"] == "lung" and r["fidelity"] == "classical" and r["method"] != default}
    reached = {f"{m} {v}".strip(): mean_of(rows, "tre", "lung", m, v) or 0.0 for m, v in others} | dict([ANTS])
    rival, best = min(reached.items(), key=lambda item: item[1])
    out = [
        _most(f"TRE of {default}, `lung`, beside the best other, {rival}, minus 10 %", 0.9 * best, mean_of(rows, "tre", "lung", default), "mm"),
        _most("its worst landmark", 5.0, _worst(rows, "tre_max", "lung", default), "mm"),
        _most("its worst landmark of 21", 5.0, _worst(rows, "tre_max_without", "lung", default), "mm"),
        _most("its folds", 0.0, _worst(rows, "folds", "lung", default), "%"),
        in_time(rows, "lung", default, 120),
        _most("TRE in 20 s, beside the same", 0.9 * best, mean_of(rows, "tre", "lung", default, "20 s"), "mm"),
        _most("time of that", 20.0, _worst(rows, "seconds", "lung", default, "20 s"), "s"),
        _most("folds of that", 0.0, _worst(rows, "folds", "lung", default, "20 s"), "%"),
    ]
    before, after = (mean_of(rows, key, "breath", default) for key in ("vessels_before", "vessels"))
    return [*out, _least(f"vessels' overlap by {default}, `breath`, beside that before", before, after),
            _most(f"folds of {default}, `breath`", 0.0, _worst(rows, "folds", "breath", default), "%")]


def _of_the_brain(rows: Rows, default: str) -> list[list[str]]:
    """Labels."""
    def dice(method: str) -> float | None:
        return mean_of(rows, "dice", "brain", method)

    own = dice(default)
    syn = max((d for m in ("syn", "greedy", "ants") if (d := dice(m)) is not None), default=None)
    return [_least(f"Dice of {default}, `brain`, beside bspline", dice("bspline"), own),
            _least(f"Dice of {default}, `brain`, beside the best of syn, greedy and ants, plus 0.01", None if syn is None else syn + 0.01, own),
            _least(f"Dice of {default}, `brain-back`, beside syn, plus 0.01", _plus(mean_of(rows, "dice", "brain-back", "syn"), 0.01),
                   mean_of(rows, "dice", "brain-back", default)),
            _most(f"folds of {default}, `brain`", 0.0, _worst(rows, "folds", "brain", default), "%")]


def _of_the_time(rows: Rows, default: str) -> list[list[str]]:
    """Beside programs of others, on the same machine; nothing was asked but to say it."""
    out = []
    for task in ("lung", "phantom"):
        for other in ("syn", "greedy"):
            ours, theirs = (mean_of(rows, "seconds", task, m) for m in (default, other))
            told = "not measured" if ours is None or theirs is None else f"{ours:.1f} s / {theirs:.1f} s = {ours / theirs:.2g}"
            out.append([f"time of {default} over {other}'s, `{task}`", "said", told, verdict(told != "not measured")])
    return out


def _of_the_systems(rows: Rows) -> list[list[str]]:
    """The published systems beside themselves without their ideas."""
    def tre(task: str, method: str, variant: str = PLAIN) -> float | None:
        return mean_of(rows, "tre", task, method, variant)

    chart = [_ratio(rows, key, "peristalsis", ("geometry-informed", PLAIN), ("geometry-informed", "image chart")) for key in ("mae", "unlike")]
    weak = (("hyperelastic", "weak"), ("idir", "weak"))
    folded = [_worst(rows, "folds", "phantom-far", *who) for who in weak]
    return [
        _most("mirnf by blocks, TRE over that by points, `phantom-bias`", 0.8,
              _ratio(rows, "tre", "phantom-bias", ("mirnf", PLAIN), ("mirnf", "point NCC")), ""),
        _most("mirnf's velocity, folds, `phantom`", 0.0, _worst(rows, "folds", "phantom", "mirnf", "velocity"), "%"),
        _most("its inverse consistency", 0.1, mean_of(rows, "inverse", "phantom", "mirnf", "velocity"), "voxels"),
        _most("hyperelastic at a small weight, folds, `phantom-far`", 0.0, folded[0], "%"),
        _least("idir (|det - 1|) at a small weight, folds in its worst seed, more than none", 1e-9, folded[1], "%"),
        _most("TRE of the latter, which has to register for that to mean anything, beside a tenth of the motion",
              FAR_MOTION / 10, tre("phantom-far", *weak[1]), "voxels"),
        _most("TRE of the former over that of the latter", 1.05, _ratio(rows, "tre", "phantom-far", *weak), ""),
        _most("dnvf from bspline, TRE over dnvf's, `phantom`", 1.0, _ratio(rows, "tre", "phantom", ("dnvf", "cascaded"), ("dnvf", PLAIN)), ""),
        _most("dnvf's folds, `phantom`", 0.0, _worst(rows, "folds", "phantom", "dnvf"), "%"),
        _most("geometry-informed, MAE over that of the image chart", 0.9, chart[0], ""),
        _most("geometry-informed, 1 - SSIM over that of the image chart", 0.8, chart[1], ""),
        _fewer_failures(rows),
        *(_least(f"cycle, rank correlation of error and uncertainty, `{task}`", 0.3, mean_of(rows, "spearman", task, "cycle"))
          for task in ("phantom-far", "random-starts")),
    ]


def _fewer_failures(rows: Rows) -> list[str]:
    """Of starts that both saw."""
    lost = {m: {r["seed"]: r["tre"] > FAILED for r in measured(rows, "random-starts", m)} for m in ("cycle", "idir")}
    both = lost["cycle"].keys() & lost["idir"].keys()
    two, one = (sum(lost[m][seed] for seed in both) for m in ("cycle", "idir"))
    told = f"{two} / {one} of {len(both)}" if both else "not measured"
    return [f"cycle beside idir, 20 random starts that end above {FAILED:g} voxel", "fewer", told, verdict(len(both) >= 20 and two < one)]


def _plus(value: float | None, more: float) -> float | None:
    return None if value is None else value + more


def _worst(rows: Rows, key: str, task: str, method: str, variant: str = PLAIN) -> float | None:
    """The largest number of all seeds."""
    return max((float(r[key]) for r in measured(rows, task, method, variant)), default=None)


def _ratio(rows: Rows, key: str, task: str, ours: tuple[str, str], theirs: tuple[str, str]) -> float | None:
    """Of two means over seeds."""
    a, b = (mean_of(rows, key, task, *who) for who in (ours, theirs))
    return None if a is None or not b else a / b


def _most(what: str, most: float, value: float | None, unit: str) -> list[str]:
    """A share is told in %."""
    scale = 100 if unit == "%" else 1
    told = "not measured" if value is None else f"{scale * value:.3g} {unit}".strip()
    return [what, f"<= {scale * most:.3g} {unit}".strip(), told, verdict(value is not None and value <= most)]


def _least(what: str, least: float | None, value: float | None, unit: str = "") -> list[str]:
    scale = 100 if unit == "%" else 1
    asked = "not measured" if least is None else f"> 0 {unit}" if unit == "%" else f">= {least:.4g}"
    told = "not measured" if value is None else f"{scale * value:.4g} {unit}".strip()
    return [what, asked, told, verdict(least is not None and value is not None and value >= least)]
