"""Registration of real pairs and of phantoms: who takes part, and how a run is scored.

Landmarks, labels and vessels are scored only: no method sees them. All methods of a task start from the same map between the two worlds.
Errors of phantoms are in voxels, all others in mm.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch

from ... import plugins
from ...cases.pair import Pair
from ...fields import Field, Siren, displacement
from ...fields.agreed import Agreed, uncertainty
from ...fields.warp import Flow
from ...losses import ncc
from ...solve import Method, Run
from ...solve.carry import carried_image
from ...space import Grid, Volume
from .. import families, measure, metrics
from .. import registration as quality
from ..families import PLAIN, Score
from ..pairs import VOXEL, Arrays, Points, Task, acquire, scan_name

__all__ = ["ABLATIONS", "BUDGETS", "TASKS", "Ablation", "acquire", "configured", "measured", "plan", "scan_name"]

DEFAULT = plugins.DEFAULT["register"]
ODD = 8  # of the lung's landmarks: the annotation follows the end of a vessel 13 mm away, and all methods miss it alike
FIRST_VOXELS = 20_000  # at which inverse consistency is read

_MM = (Score("tre", "TRE", "mm", larger=False), Score("tre_without", "TRE of 21", "mm", larger=False))
_VOXELS = (Score("tre", "TRE", "voxels", 3, larger=False), Score("tre_max", "most", "voxels", larger=False))
_LABELS = (Score("dice", "Dice", digits=4), Score("hd95", "HD95", "mm", larger=False))
_ALIKE = (Score("ncc", "NCC", digits=4),)
_NETWORKS = ("idir", "hyperelastic", "mirnf", "cycle")

_ALL = (
    Task("lung", "one lung, baseline and follow-up CT, 22 landmark pairs", "lung", _MM, ("classical", *_NETWORKS)),
    Task("breath", "lungs at two phases of a breath", "breath", (*_ALIKE, Score("vessels", "vessels' overlap", digits=3))),
    Task("brain", "brains of two people, 44 labels", "brain", _LABELS),
    Task("brain-back", "the same two brains, the other one fixed", "brain", _LABELS, back=True),
    Task("slices", "slices of two brains, 256 x 256", "slices", _ALIKE, ("classical", "idir", "mirnf")),
    Task("phantom", "phantom of 48^3 voxels, motion of 5.2 voxels", "phantom", _VOXELS, ("classical", *_NETWORKS, "dnvf"), motion=5.2, noise=0.02),
    Task("phantom-bias", "phantom, motion of 2.3 voxels, one image brighter on one side", "phantom", _VOXELS,
         ("classical", "idir", "mirnf", "hyperelastic"),
         motion=2.31, bias=0.8, noise=0.02),
    Task("phantom-far", "phantom, motion of 8 voxels, whose least determinant is 0.03", "phantom", _VOXELS,
         ("classical", *_NETWORKS), motion=8.0, noise=0.02),
    Task("random-starts", "phantom, random starts of networks", "phantom", _VOXELS, ("idir", "cycle"), motion=5.2, noise=0.02),
    Task("peristalsis", "a tube with a wave of contraction", "tube",
         (Score("mae", "MAE", digits=4, larger=False), Score("unlike", "1 - SSIM", digits=4, larger=False)), ("geometry-informed",), noise=0.005),
)
TASKS = {task.name: task for task in _ALL}


@dataclass(frozen=True)
class Ablation(families.Ablation):
    """Also with another start.

    Args:
        first: the method whose displacement it starts from; its time counts.
    """

    first: str = ""


# What a method gets on two cores, where the published size (256 units, 10,000 points, 2500 steps) asks for a GPU; the rows say so.
_SINES = Siren(width=128, depth=3, omega_first=32.0, omega=32.0)
_LOW = Siren(width=128, depth=3, omega_first=10.0, omega=10.0)
BUDGETS: dict[str, dict[str, Any]] = {
    "idir": {"net": _SINES, "steps": 1000, "points": 3000},
    "hyperelastic": {"net": _LOW, "steps": 600, "points": 3000, "lr": 3e-4, "zero_start": True, "schedule": "cosine", "blur": (4.0, 2.0, 0.0)},
    "cycle": {"net": _SINES, "steps": 1000, "points": 3000},
    "mirnf": {"net": _LOW, "steps": 500, "lr": 3e-4, "blocks": 4, "coarse": 1000},
    "dnvf": {"net": Siren(width=64, depth=3, omega_first=10.0, omega=10.0), "steps": 150, "lr": 3e-4, "nodes": 8000, "voxels": 100_000},
    "geometry-informed": {"net": Siren(width=64, depth=3, omega_first=32.0, omega=32.0), "steps": 2000, "samples": 3000, "weight": 0.005},
}
_TUNED = {key: BUDGETS["hyperelastic"][key] for key in ("net", "steps", "lr", "zero_start", "schedule", "blur")}
_REAL = ("lung", "breath", "brain")
ABLATIONS: tuple[Ablation, ...] = (
    Ablation("20 s", ("lung",), ("fluid",),
             {"search": 0.0, "elastic": (30, 20, 10, 6), "voxels": (2.0,), "steps": (6,)}),
    Ablation("not searched", (*_REAL, "phantom", "phantom-far"), ("fluid",), {"search": 0.0}),
    Ablation("windows alone", ("brain-back", "phantom"), ("fluid",), {"values": 0.0}),
    Ablation("not held", ("brain-back", "phantom"), ("fluid",), {"stiff": 0.0}),
    Ablation("low omega", ("lung", "phantom"), ("idir",), _TUNED),
    # Both on one network, at weights that leave about the same error: |det - 1| lets a volume vanish, conformal hyperelasticity does not.
    Ablation("weak", ("phantom", "phantom-bias", "phantom-far"), ("idir",), {**_TUNED, "weight": 1e-3}),
    Ablation("weak", ("phantom", "phantom-bias", "phantom-far"), ("hyperelastic",), {"shape": 3e-4, "volume": 3e-4}),
    Ablation("point NCC", ("lung", "phantom", "phantom-bias"), ("mirnf",), {"windowed": False}),
    Ablation("velocity", ("phantom",), ("mirnf",), {"mode": "velocity"}),
    Ablation("cascaded", ("phantom",), ("dnvf",), first="bspline"),
    Ablation("image chart", ("peristalsis",), ("geometry-informed",), {"chart": "image"}),
)


def ablation(method: str, variant: str) -> Ablation:
    """What a variant of a method is; for "" the method as it is."""
    return next((a for a in ABLATIONS if a.name == variant and method in a.methods), Ablation(PLAIN, (), ()))


def configured(method: str, variant: str) -> Method:
    """A method with the hyper-parameters it has in the bench."""
    return plugins.load(method)(**{**BUDGETS.get(method, {}), **ablation(method, variant).overrides})


# ---- who takes part

LIBRARIES = {"syn": "dipy", "itk-bspline": "SimpleITK", "demons": "SimpleITK", "greedy": "picsl_greedy"}
ANTS = "MEDFIELDS_ANTS_PYTHON"


def plan(task: Task, methods: Sequence[str] = (), ablations: bool = True) -> Iterator[tuple[str, str]]:
    """The methods and variants that a task asks for; says which are left out, and why."""
    names = list(methods) or [name for name, entry in plugins.entries().items() if entry.task == "register" and _takes_part(task, entry)]
    for name in names:
        if reason := lacking(task, name):
            print(f"{task.name}: {name} is left out: {reason}", flush=True)
            continue
        yield name, PLAIN
        for a in ABLATIONS if ablations else ():
            if task.name in a.tasks and name in a.methods:
                yield name, a.name


def _takes_part(task: Task, entry: plugins.Entry) -> bool:
    if task.kind == "tube" or task.name == "random-starts":
        return entry.name in task.methods
    return entry.name in (*task.methods, DEFAULT) or ("classical" in task.methods and entry.fidelity == "classical")


def lacking(task: Task, method: str) -> str:
    """Why a method cannot run a task here; "" if it can."""
    if task.kind == "slices" and method in (*LIBRARIES, "ants"):
        return "it registers volumes only"
    if method in LIBRARIES and find_spec(LIBRARIES[method]) is None:
        return f"{LIBRARIES[method]} is not installed"
    return f"{ANTS} is not set" if method == "ants" and not os.environ.get(ANTS) else ""


# ---- one run


@dataclass(frozen=True)
class Trial:
    """What a method gets, and what it is scored with: the same images without noise."""

    case: Pair
    fixed: Volume
    moving: Volume
    arrays: Arrays


def trial(task: Task, scan: Path, seed: int) -> Trial:
    """The pair with the noise of one seed."""
    with np.load(scan, allow_pickle=False) as file:
        arrays = dict(file)
    rng = np.random.default_rng((seed, 3))
    fixed, moving = (Volume(arrays[name], Grid(arrays[name].shape, arrays[f"{name}_affine"]), fill=float(arrays[name].min()),
                            interpolation="cubic" if task.kind == "tube" else "linear") for name in ("fixed", "moving"))
    noisy = [v.with_data(v.data + task.noise * torch.from_numpy(rng.standard_normal(v.data.shape)).float()) for v in (fixed, moving)]
    mask, moving_mask = (Volume(arrays[name].astype(np.float32), v.grid) if name in arrays else None
                         for name, v in (("mask", fixed), ("moving_mask", moving)))
    case = Pair(noisy[0], noisy[1], mask, moving_mask, arrays["start"], centreline=arrays.get("line"), tube_radius=float(arrays.get("radius", 0.0)),
                name=task.name)
    return Trial(case, fixed, moving, arrays)


def measured(task: Task, scan: Path, seed: int, method: str, variant: str) -> dict[str, Any]:
    """One run: scores, seconds and memory. The way back, from the moving to the fixed image, is not part of its time."""
    this, solver, first = trial(task, scan, seed), configured(method, variant), ablation(method, variant).first

    def solve(case: Pair) -> Field:
        case = case.replaced(first=configured(first, PLAIN).solve(case, Run(seed=seed))) if first else case
        found = solver.solve(case, Run(seed=seed))
        assert isinstance(found, Field)  # what is asked of a method of registration
        return found

    warp, row = measure.timed(lambda: solve(this.case))
    row |= score(task, warp, this)
    if task.kind == "breath":
        c = this.case
        back = solve(Pair(c.moving, c.fixed, c.moving_mask, c.mask, np.linalg.inv(c.start)))
        some = c.points().double().numpy()[:: max(1, int(c.inside.sum()) // FIRST_VOXELS)]
        row["inverse"] = quality.inverse_consistency(warp, back, some)
    return row


def score(task: Task, warp: Field, this: Trial) -> dict[str, Any]:
    """The numbers of a warp: its folds, and what its kind of task asks for."""
    case, a = this.case, this.arrays
    row: dict[str, Any] = quality.regularity(warp, case.grid, case.inside, 2)
    whole = case.whole(warp)
    if task.kind == "lung":
        return row | _landmarks(whole, a["landmarks"][0], a["landmarks"][1], case.moving.grid)
    if task.kind == "phantom":
        return row | _probed(warp, a["points"], a["truth"])
    mask = case.inside.numpy()
    # The tube's wall, 1.5 voxels, is 0.018 off when the true motion carries it and it is read linearly, 0.006 when it is read cubically.
    warped = carried_image(whole, this.moving, case.grid, this.moving.interpolation).data
    if task.kind == "tube":
        image, truth = warped[0].numpy(), this.fixed.data[0].numpy()
        off = np.linalg.norm(quality.moved(warp, a["points"]) - a["points"] - a["truth"], axis=1)
        return row | {"mae": float(np.abs(image - truth)[mask].mean()), "unlike": 1 - metrics.ssim(image, truth, mask), "tre": float(off.mean())}
    if task.kind == "brain":
        labels = carried_image(whole, Volume(a["moving_labels"].astype(np.float32), case.moving.grid), case.grid, "nearest").data[0].numpy()
        return row | _labelled(a["labels"].astype(int), labels.astype(int), case.grid)
    start = carried_image(case.whole(_still(case)), this.moving, case.grid).data
    row |= {"ncc": float(ncc(this.fixed.data[0][mask], warped[0][mask])), "ncc_before": float(ncc(this.fixed.data[0][mask], start[0][mask]))}
    if task.kind == "breath":
        row |= {"vessels": quality.vesselness_overlap(this.fixed.data[0].numpy(), warped[0].numpy(), mask),
                "vessels_before": quality.vesselness_overlap(this.fixed.data[0].numpy(), start[0].numpy(), mask)}
    return row


def _still(case: Pair) -> Field:
    """No displacement."""
    return case.displacement(Siren(1, 1), zero=True)


def _landmarks(whole: Field, fixed: Points, moving: Points, grid: Grid) -> dict[str, float]:
    """Target registration errors in mm."""
    far, snapped = quality.tre(whole, fixed, moving), quality.tre_snapped(whole, fixed, moving, grid)
    rest = np.delete(far, ODD)
    return {"tre": float(far.mean()), "tre_median": float(np.median(far)), "tre_max": float(far.max()), "tre_snapped": float(snapped.mean()),
            "tre_without": float(rest.mean()), "tre_max_without": float(rest.max())}


def _probed(warp: Field, points: Points, truth: Points) -> dict[str, float]:
    """Errors in voxels at points whose displacement is known, and what the warp says of its own error or inverse."""
    off = np.linalg.norm(quality.moved(warp, points) - points - truth, axis=1) / VOXEL
    row = {"tre": float(off.mean()), "tre_median": float(np.median(off)), "tre_max": float(off.max())}
    if isinstance(warp.spec, Agreed):
        unsure = uncertainty(warp, torch.as_tensor(points, dtype=torch.float32)).detach().numpy()
        row["spearman"] = float(scipy.stats.spearmanr(unsure, off).statistic)
    if isinstance(warp.spec, Flow):
        row["inverse"] = quality.inverse_consistency(warp, backwards(warp, warp.spec), points) / VOXEL
    return row


def backwards(warp: Field, spec: Flow) -> Field:
    """The inverse of a flow: the same velocity, from the end to the beginning."""
    made = displacement(replace(spec, backwards=not spec.backwards), warp.box, seed=0)
    made.net.load_state_dict(warp.net.state_dict())
    return made


def _labelled(fixed: np.ndarray, warped: np.ndarray, grid: Grid) -> dict[str, float]:
    """Means over the labels that one of both has; a border is measured where both have one."""
    found = quality.dice(fixed, warped)
    both = [n for n, d in found.items() if (fixed == n).any() and (warped == n).any()]
    far = [quality.hd95(fixed == n, warped == n, grid.spacing) for n in both]
    return {"dice": float(np.mean(list(found.values()))), "hd95": float(np.mean(far)), "labels": float(len(found))}
