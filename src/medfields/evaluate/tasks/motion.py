"""Slices that moved: real heads cut into three orthogonal stacks in which every slice has a pose of its own, and what is made of them.

Methods of `superres`, which take slices for being at rest, run on the same stacks, to show what motion costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import plugins
from ...cases import Slices, Stack, Stacks
from ...cases.stacks import Profile, slice_axis
from ...solve import Run
from ...solve.settle import told
from ...space import Grid, Volume
from .. import families, measure, metrics, moved
from ..families import PLAIN, Score
from ..scans_motion import Task, acquire, scan_name

if TYPE_CHECKING:
    from ...solve import Method

__all__ = ["ABLATIONS", "TASKS", "Trial", "acquire", "configured", "measured", "plan", "scan_name", "trial"]

NOISE = 0.01  # of the truth's range
FADED, SPOILT = 0.3, 0.1  # what a corrupted slice keeps of its signal, and its noise as a share of the truth's range
RADIUS, SCORED = 0.46, 10.0  # the mask is a ball of this share of the shortest side; scores stay so many mm inside it
HELD_OUT, LARGE = 0.1, 500  # share of real slices that are never shown, and the pixels they have at least
FORREST, BRAINWEB = "a_mri/studyforrest_T1w_1mm.nii.gz", "a_mri/brainweb1e5a10f17_T2.nii.gz"
_HEAD = ((46, 62, 116), (100, 100, 100), 4.0)
_SMALL = ((48, 66, 22), (84, 84, 64), 4.0)
_RIVALS = ("cubic-mean", "srr-tv")
_FIELDS = ("nesvor", "gaussian-slices")
_ALL = (
    Task("forrest-4", "T1 head, 3 views of 4 mm, each slice moved by up to 4 degrees and 2 mm on each axis", FORREST, *_HEAD, 4.0, 2.0,
         methods=_RIVALS + _FIELDS),
    Task("forrest-6", "the same, 6 degrees and 4 mm", FORREST, *_HEAD, 6.0, 4.0, methods=_RIVALS),
    Task("forrest-4-bad", "4 degrees and 2 mm, one slice in ten corrupted", FORREST, *_HEAD, 4.0, 2.0, corrupted=0.1, methods=("nesvor",)),
    Task("forrest-8", "8 degrees and 6 mm", FORREST, *_HEAD, 8.0, 6.0),
    Task("brainweb-4", "T2 brain (BrainWeb), smaller, 4 degrees and 2 mm", BRAINWEB, *_SMALL, 4.0, 2.0, methods=_RIVALS + _FIELDS),
    Task("brainweb-6", "the same, 6 degrees and 4 mm", BRAINWEB, *_SMALL, 6.0, 4.0, methods=_RIVALS),
    Task("fetus", "a fetal brain, three clinical stacks of 3.3 mm; a tenth of the slices was never shown", "", (0, 0, 0), (0, 0, 0), 3.3, 0.0, 0.0,
         methods=_FIELDS, stacks=tuple(f"d_fetal/mialsrtk/sub-01_run-{n}_T2w.nii.gz" for n in (1, 3, 5)),
         scores=(Score("ncc", "NCC of unseen slices", digits=4), Score("psnr", "PSNR of unseen slices", "dB"))),
)
TASKS = {task.name: task for task in _ALL}


@dataclass(frozen=True)
class Ablation(families.Ablation):
    """Also with another profile: "none" takes thick slices for thin ones."""

    profile: Profile = "gauss"


ABLATIONS = (
    Ablation("no profile", ("forrest-4", "brainweb-4"), ("moved-slices",), profile="none"),
    Ablation("lattice of the result", ("forrest-4", "brainweb-4"), ("moved-slices",), overrides={"lattice": 1.0}),
    Ablation("poses of registration", ("brainweb-4", "fetus"), ("nesvor",), overrides={"motion": False}),
    Ablation("no profile", ("brainweb-4",), ("nesvor",), profile="none"),
    Ablation("3 rounds", ("forrest-6",), ("svr",), overrides={"outer": 3}),
    # The yardstick is tuned with the truth, which ours never sees.
    Ablation("weight 0.04", ("forrest-4", "forrest-6", "brainweb-4", "brainweb-6"), ("svr",), overrides={"weight": 0.04}),
)


@dataclass(frozen=True)
class Trial:
    """What a method gets, as slices or as stacks at rest, and what it is scored with."""

    case: Slices
    stacks: Stacks
    truth: Volume
    poses: np.ndarray  # [N, 4, 4] true
    bad: np.ndarray  # [N] corrupted
    mask: np.ndarray  # [I, J, K] where scores count


def ablation(method: str, variant: str) -> Ablation:
    """What a variant of a method is; for "" the method as it is."""
    return next((a for a in ABLATIONS if a.name == variant and method in a.methods), Ablation(PLAIN, ()))


def configured(method: str, variant: str) -> Method:
    """A method with the hyper-parameters it has in the bench."""
    return plugins.load(method)(**ablation(method, variant).overrides)


def plan(task: Task, methods: Sequence[str] = (), ablations: bool = True) -> Iterator[tuple[str, str]]:
    """The methods and variants that a task asks for."""
    for name in methods or (plugins.DEFAULT["motion"], "svr", *task.methods):
        yield name, PLAIN
        for a in ABLATIONS if ablations else ():
            if task.name in a.tasks and name in a.methods:
                yield name, a.name


def trial(task: Task, scan: Path, seed: int, profile: Profile = "gauss") -> Trial:
    """The slices with the motion, the noise and the corruption of one seed.

    Args:
        task: the task that `scan` was acquired for.
        scan: from `acquire`.
        seed: chooses the motion among those that were scanned, and draws the rest.
        profile: "none" tells the method to ignore the slice profile.
    """
    with np.load(scan, allow_pickle=False) as arrays:
        truth = Volume(arrays["truth"], Grid(task.shape, arrays["grid"]))
        number = seed % sum(name.endswith("/poses") for name in arrays.files)
        clean = [arrays[f"{number}/{s}/data"].astype(np.float64) for s in range(3)]
        grids, poses = [Grid(d.shape, arrays[f"{s}/affine"]) for s, d in enumerate(clean)], arrays[f"{number}/poses"]
    rng, span, stacks, bad = np.random.default_rng((seed, 7)), float(truth.data.max() - truth.data.min()), [], []
    for s, (data, grid) in enumerate(zip(clean, grids, strict=True)):
        hit = rng.random(grid.shape[2]) < task.corrupted
        data[:, :, hit] = FADED * data[:, :, hit] + SPOILT * span * rng.standard_normal(data[:, :, hit].shape)
        noisy = np.hypot(data + NOISE * span * rng.standard_normal(data.shape), NOISE * span * rng.standard_normal(data.shape))
        stacks.append(Stack(Volume(noisy, grid), task.thickness, name=f"stack-{s}", through=2))
        bad.append(hit)
    grid, radius = truth.grid, RADIUS * float((truth.grid.spacing * truth.grid.shape).min())
    far = np.linalg.norm(grid.points().numpy() - grid.centre, axis=-1)
    ball = Volume((far < radius).astype(np.float32), grid)
    case = Slices.of(stacks, [ball] * 3, grid=grid, profile=profile)
    first = np.cumsum([0, *(g.shape[2] for g in grids)])
    kept = np.array([first[s.stack] + s.order for s in case.slices])
    return Trial(case, Stacks(tuple(stacks), grid, profile), truth, poses[kept], np.concatenate(bad)[kept], far < radius - SCORED)


def measured(task: Task, scan: Path, seed: int, method: str, variant: str) -> dict[str, Any]:
    """One run: scores, seconds and memory."""
    if task.stacks:
        return _foretold(scan, seed, configured(method, variant), ablation(method, variant).profile)
    this, solver, run = trial(task, scan, seed, ablation(method, variant).profile), configured(method, variant), Run(seed=seed)
    case = this.case if solver.task == "motion" else this.stacks
    result, row = measure.timed(lambda: measure.solve(solver, case, run))
    n = len(this.case.slices)
    found, worth = np.tile(np.eye(4), (n, 1, 1)), np.ones(n)
    if motion := run.notes.get("motion"):
        found, worth = told(motion).poses, told(motion).worth
    truth = moved.truth_at(this.truth, result.grid, moved.frame(this.case, found, this.poses))
    return row | metrics.scores(result.data[0].numpy(), truth, this.mask) | moved.pose_scores(this.case, found, this.poses, worth, this.bad)


def _foretold(scan: Path, seed: int, solver: Method, profile: Profile) -> dict[str, Any]:
    """One run on real stacks, scored by the slices that were held out of it."""
    case = real(scan, profile)
    rng, hidden = np.random.default_rng((seed, 11)), np.zeros(len(case.slices), bool)
    inner = [n for n, s in enumerate(case.slices) if int(s.mask.sum()) > LARGE]
    hidden[rng.choice(inner, round(HELD_OUT * len(case.slices)), replace=False)] = True
    shown, run = case.only(~hidden), Run(seed=seed)
    result, row = measure.timed(lambda: measure.solve(solver, shown, run))
    found = told(run.notes["motion"])
    return row | moved.predicted(shown, found.poses, case.only(hidden), result) | {"lost": int((found.worth == 0).sum())}


def real(scan: Path, profile: Profile = "gauss") -> Slices:
    """The slices of a real scan, on a lattice of 0.8 mm."""
    with np.load(scan, allow_pickle=False) as arrays:
        stacks, masks = [], []
        for n in range(sum(name.endswith("/data") for name in arrays.files)):
            grid = Grid(arrays[f"{n}/data"].shape, arrays[f"{n}/affine"])
            volume = Volume(arrays[f"{n}/data"], grid)
            axis = slice_axis(grid)
            stacks.append(Stack(volume, float(grid.spacing[axis]), name=f"stack-{n}", through=axis))
            masks.append(Volume(arrays[f"{n}/mask"].astype(np.float32), grid))
    return Slices.of(stacks, masks, spacing=0.8, profile=profile)
