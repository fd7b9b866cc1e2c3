"""What RESULTS.md says of CT: how it was measured, what was asked for, which columns its tables have."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from .. import plugins
from .asking import Rows, best_classical, gained, in_time, mean_of, mean_psnr, verdict
from .scans_ct import Task

HEAD = """## ct

Real CT volumes (LIDC chest, plastimatch thorax, TIGRE head) are projected at their own resolution by a simulator that shares no code with the
reconstructions (fine steps, four rays a pixel), and asked for at half of it. PSNR and SSIM count voxels in the disc that every view sees, the data
range is the truth's maximum - minimum there. "weight ..." of `pdhg-tv` is swept with the truth, "coarse" solves on the answer's own voxels, as total
variation usually does. Of the tooth there is no truth: its columns score the projections that were not used.

How far to trust it. The rule for the weight of `pdhg-tv`, the settings of `asd-pocs` and the step numbers of the classical methods were chosen with
the truth of slices 20, 50 and 80 of the chest, of which a and b are two; slice c is of a thorax on which only the rule was checked. The sizes of the
networks on two cores were tried on the same chest slices. So a and b are no held-out test. The default, `pnp`, learned its denoiser from images of
other people; its schedule, and how long it learned, were chosen with the truth of other slices of this chest and thorax (50 and 65, 30 and 90).
Total variation learned from others too, but only its weight. Classical methods and `pnp` draw no random numbers, so where there is no noise one seed
is all there is. "five ..." are neighbouring slices, each as thick as a row of the detector; "turned" means that the views of a slice lie between its
neighbours', and "PSNR middle" counts the third slice, which slice-a, b and c show alone.

The total variation of intratomo and gaussians and the steps and rates of scope, kim, coil and neurec were chosen on slice 50 of the chest (for
intratomo on slice 30 of the thorax as well), which no table scores for them. "PSNR to dense FBP" takes a filtered backprojection (ramp) of 360
views for the truth, as the paper of scope does: there re-projection helps, and against the patient it does not. `neurec` learned from 30 slices of
two other patients, with 180 views each; that time is not in its row. On cone beams the strongest classical method is `pdhg-tv`, not `asd-pocs`."""


def columns(task: Task) -> dict[str, Callable[[Rows], str]]:
    """Columns beside PSNR and SSIM: their title, and what a group of rows says in them."""
    extra = {"metal": {"PSNR scaled": ("psnr_scaled", 1.0, 2)}, "prior": {"lesion error, %": ("lesion_error", 100.0, 1)}}.get(task.kind, {})
    if task.name.startswith("five"):
        extra = {"PSNR middle": ("psnr_middle", 1.0, 2)}
    if "scope" in task.methods:
        extra = {**extra, "PSNR to dense FBP": ("psnr_dense", 1.0, 2)}
    if "uncertainr" in task.methods:
        extra = {**extra, "Spearman": ("spearman", 1.0, 2), "ECE": ("ece", 1.0, 3)}
    return {title: _told(*what) for title, what in extra.items()}


def _told(key: str, scale: float, digits: int) -> Callable[[Rows], str]:
    def tell(own: Rows) -> str:
        return f"{scale * statistics.fmean(r[key] for r in own):.{digits}f}" if all(key in r for r in own) else ""

    return tell


def requirements(rows: Rows) -> list[list[str]]:
    """[what, asked, measured, verdict] of every requirement; what has no rows is said to be not measured."""
    return _of_the_default(rows, plugins.DEFAULT["ct"]) + _of_the_systems(rows)


def _of_the_default(rows: Rows, default: str) -> list[list[str]]:
    """The default beside the classical methods."""
    out = []

    def psnr(task: str, method: str) -> float | None:
        return mean_psnr(rows, task, method)

    def over_slices(end: str, variant: str = "") -> float | None:
        found = [mean_psnr(rows, f"slice-{k}{end}", default, variant) for k in "abc"]
        return None if None in found else statistics.fmean(v for v in found if v is not None)

    for end, asked in (("", 1.0), ("-40db", 0.5)):
        rivals = [best_classical(rows, f"slice-{k}{end}")[0] for k in "abc"]
        best = None if None in rivals else statistics.fmean(v for v in rivals if v is not None)
        what = f"{default} over the best classical of each slice, mean of a, b, c{', 40 dB' * bool(end)}"
        out.append(gained(what, asked, over_slices(end), best))
    out += [in_time(rows, f"slice-{k}", default, 60) for k in "abc"]
    for end, what in (("-turned", "each with views between its neighbours'"), ("", "all with the same views")):
        middles = [mean_of(rows, "psnr_middle", f"five-{k}{end}", default) for k in "abc"]
        together = None if None in middles else statistics.fmean(v for v in middles if v is not None)
        out.append(gained(f"{default}, the middle of five slices over it alone, {what}", 1.0, together, over_slices("")))
    for task in ("cone-head", "cone-chest"):
        out.append(gained(f"{default} over asd-pocs, `{task}`", 1.0, psnr(task, default), psnr(task, "asd-pocs")))
    for task in ("cone-head", "cone-chest", "limited-a", "slice-b-photons"):
        best, name = best_classical(rows, task)
        out.append(gained(f"{default} over the best classical, {name or 'none'}, `{task}`", 0.0, psnr(task, default), best))
    for end in ("", "-40db"):
        out.append(gained(f"{default} over itself with non-local means, mean of a, b, c{', 40 dB' * bool(end)}", 0.0, over_slices(end),
                          over_slices(end, "non-local means")))
    for n in (20, 45, 90):
        task = f"tooth-{n}"
        out.append(gained(f"{default} over pdhg-tv on unused real projections, `{task}`", 0.0, psnr(task, default), psnr(task, "pdhg-tv")))
    return out


def _of_the_systems(rows: Rows) -> list[list[str]]:
    """The published systems beside themselves without their ideas."""
    def psnr(task: str, method: str, variant: str = "") -> float | None:
        return mean_psnr(rows, task, method, variant)

    fbp = psnr("slice-a", "fbp")
    return [
        gained("nerp with the earlier scan over without, `prior`", 1.5, psnr("prior", "nerp"), psnr("prior", "nerp", "cold")),
        gained("nerp with another patient's scan over without", -0.5, psnr("prior", "nerp", "another's prior"), psnr("prior", "nerp", "cold")),
        _below("lesion that the earlier scan lacks, error of its contrast", 0.2, mean_of(rows, "lesion_error", "prior", "nerp"), "%"),
        gained("scnf over the same field without poses, `motion`", 4.0, psnr("motion", "scnf"), psnr("motion", "scnf", "naive")),
        gained("scnf over the same field with the true poses", -3.0, psnr("motion", "scnf"), psnr("motion", "scnf", "true poses")),
        gained("polyner over linear interpolation, `metal`, after one scale", 3.0, mean_of(rows, "psnr_scaled", "metal", "polyner"),
               mean_of(rows, "psnr_scaled", "metal", "li-mar")),
        gained("polyner over its monochromatic twin, after one scale", 1.0, mean_of(rows, "psnr_scaled", "metal", "polyner"),
               mean_of(rows, "psnr_scaled", "metal", "polyner", "monochromatic")),
        gained("polyner over itself without smoothness, raw", 5.0, psnr("metal", "polyner"), psnr("metal", "polyner", "no smoothness")),
        gained("scope's field over fbp", 4.0, psnr("slice-a", "scope", "direct"), fbp),
        gained("scope re-projected over its field, scored with the truth", 0.0, psnr("slice-a", "scope"), psnr("slice-a", "scope", "direct")),
        gained("scope re-projected over its field, scored with FBP of 360 views as in the paper", 0.0,
               mean_of(rows, "psnr_dense", "slice-a", "scope"), mean_of(rows, "psnr_dense", "slice-a", "scope", "direct")),
        gained("coil over fbp", 0.0, psnr("slice-a", "coil"), fbp),
        gained("coil over interpolated views", 0.0, psnr("slice-a", "coil"), psnr("slice-a", "coil", "interpolated")),
        gained("kim over fbp", 2.5, psnr("slice-a", "kim"), fbp),
        gained("kim over its field without correction", 0.0, psnr("slice-a", "kim"), psnr("slice-a", "kim", "no correction")),
        gained("intratomo, both modules over the first alone", 0.5, psnr("slice-a", "intratomo"), psnr("slice-a", "intratomo", "no refinement")),
        gained("intratomo over total variation on the same lattice, `limited-a`", 0.0, psnr("limited-a", "intratomo"),
               psnr("limited-a", "pdhg-tv", "coarse")),
        gained("neurec, as learned, over fbp", 4.0, psnr("slice-a", "neurec", "not adapted"), fbp),
        gained("neurec adapted in 100 steps over 100 steps from nothing", 2.0, psnr("slice-a", "neurec", "100 steps"),
               psnr("slice-a", "neurec", "100 steps, not learned")),
        gained("neurec adapted in 300 steps over 300 steps from nothing", 0.0, psnr("slice-a", "neurec"), psnr("slice-a", "neurec", "not learned")),
        gained("naf over itself with one level", 0.0, psnr("slice-a", "naf"), psnr("slice-a", "naf", "one level")),
        gained("gaussians over bells that stay as they start", 0.0, psnr("slice-a", "gaussians"), psnr("slice-a", "gaussians", "fixed bells")),
        gained("uncertainr, the ensemble's mean over one network", 0.3, psnr("slice-a-40db", "uncertainr"),
               psnr("slice-a-40db", "uncertainr", "one network")),
        _above("uncertainr, rank correlation of error and spread", 0.4, mean_of(rows, "spearman", "slice-a-40db", "uncertainr")),
        _below("uncertainr, expected calibration error", 0.1, mean_of(rows, "ece", "slice-a-40db", "uncertainr")),
    ]


def _below(what: str, most: float, value: float | None, unit: str = "") -> list[str]:
    scale = 100 if unit == "%" else 1
    told = "not measured" if value is None else f"{scale * value:.3g} {unit}".strip()
    return [what, f"<= {scale * most:g} {unit}".strip(), told, verdict(value is not None and value <= most)]


def _above(what: str, least: float, value: float | None) -> list[str]:
    return [what, f">= {least:g}", "not measured" if value is None else f"{value:.3g}", verdict(value is not None and value >= least)]
