"""CT from few, moving or metal-corrupted projections: who takes part, what is asked, and how a run is scored.

Scores count voxels in the disc (or cylinder) that every view sees; the data range is the truth's maximum - minimum there. Attenuation is
compared as it is, in 1/mm; nothing is rescaled unless the column says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.optimize
import torch

from ... import plugins
from ...cases import Projections
from ...fields import MLP, Fourier, GridEncoding, Harmonics, Positive
from ...operators.projections import Projector
from ...solve import Method, Run
from ...solve.fbp import filtered_backprojection
from ...solve.views import denser
from ...space import Grid, Volume
from .. import families, measure, metrics, simulate_ct
from ..families import PLAIN
from ..scans_ct import LESION, WATER, Source, Task, acquire, geometry, metal_spectrum, recorded, scan_name, volume_of

__all__ = ["ABLATIONS", "BUDGETS", "TASKS", "Ablation", "acquire", "configured", "measured", "plan", "scan_name"]

CHEST, THORAX, HEAD = "b_ct/lidc0001_chest_half.nii.gz", "b_ct/plastimatch_4dct_t0.nii.gz", "i_projections/tigre_head_128.nii.gz"
_SLICES = {"a": Source(CHEST, 20), "b": Source(CHEST, 80), "c": Source(THORAX, 60)}
_FIVE = {"a": Source(CHEST, 18, 5), "b": Source(CHEST, 78, 5), "c": Source(THORAX, 58, 5)}
_EVERY = ("classical", "scope", "coil", "kim", "naf", "intratomo", "uncertainr", "gaussians", "neurec", "nerp")
_VOLUME = ("classical", "pnp")

_ALL = (
    Task("slice-a", "chest slice, 128 x 128, 20 views, every method", _SLICES["a"], 20, methods=_EVERY),
    *(Task(f"slice-{k}", f"slice {k}, 128 x 128, 20 views", _SLICES[k], 20, methods=("classical",)) for k in "bc"),
    *(Task(f"slice-{k}-40db", f"slice {k}, 128 x 128, 20 views, 40 dB", _SLICES[k], 20, decibel=40.0,
           methods=("classical", *(("uncertainr", "coil") if k == "a" else ()))) for k in "abc"),
    *(Task(f"five-{k}", f"five slices {k}, 128 x 128 x 5, 20 views", _FIVE[k], 20, methods=("pdhg-tv",)) for k in "abc"),
    *(Task(f"five-{k}-turned", f"five slices {k}, 20 views each, between those of its neighbours", _FIVE[k], 20, turned=True, methods=("pdhg-tv",))
      for k in "abc"),
    Task("slice-a-360", "chest slice, 128 x 128, 360 views: what filtered backprojection can reach", _SLICES["a"], 360, methods=("fbp",)),
    Task("limited-a", "chest slice, 128 x 128, 40 views over 120 degrees", _SLICES["a"], 40, arc=120.0, methods=("classical", "intratomo")),
    Task("slice-b-photons", "slice b, 40 views of a fan, 10,000 photons a pixel", _SLICES["b"], 40, "fan", photons=1e4, methods=("classical",)),
    Task("cone-head", "head (TIGRE), 128^3, cone beam, 50 views", Source(HEAD, 0, 0, 128, 0.0), 50, "cone", 1, methods=_VOLUME),
    Task("cone-chest", "chest, 128 x 128 x 100, cone beam, 50 views", Source(CHEST, 0, 0, 256), 50, "cone", methods=_VOLUME),
    Task("prior", "chest slice with an earlier scan, 128 x 128, 20 views", Source(CHEST, 50), 20, kind="prior", methods=("pdhg-tv", "nerp")),
    Task("motion", "chest slice that moves, 64 x 64, 60 views", Source(CHEST, 50), 60, binned=4, kind="motion", methods=("classical", "scnf")),
    Task("metal", "chest slice with two iron discs, 64 x 64, 90 views", Source(CHEST, 80), 90, binned=4, photons=2e6, kind="metal",
         methods=("fbp", "pdhg-tv", "li-mar", "polyner")),
    *(Task(f"tooth-{n}", f"tooth, real projections, {n} of 180 views", Source("i_projections/tomopy_tooth.h5"), n, kind="real",
           methods=("fbp", "sirt", "pdhg-tv")) for n in (20, 45, 90)),
)
TASKS = {task.name: task for task in _ALL}


@dataclass(frozen=True)
class Ablation(families.Ablation):
    """Also with other knowledge.

    Args:
        prior: what the case holds as the earlier scan: "own", "another" patient's, or "none", with which nothing is learned from others either.
        oracle: the true poses of a moving subject are known.
    """

    prior: str = "own"
    oracle: bool = False


# What a method gets on two cores, where the published size asks for a GPU; the rows say so.
_GRID = MLP(GridEncoding(levels=8, finest_mm=2.8, coarsest_mm=45.0, log2_table=14, features=4), width=64, depth=2)
BUDGETS: dict[str, dict[str, Any]] = {
    "scope": {"steps": 2000},
    "naf": {"rays": None, "lr": 3e-3, "steps": 600},
    "kim": {"net": Positive(MLP(Fourier(size=64, sigma=2.0), width=64, depth=3)), "lr": 3e-3, "steps": 2500},
    "coil": {"net": MLP(Harmonics(10), width=128, depth=6, skips=(2, 4)), "lr": 3e-3},
    "nerp": {"net": Positive(_GRID), "embed_steps": 300, "embed_lr": 3e-3, "steps": 800, "lr": 3e-3, "cold_lr": 3e-3, "misfit": "l1", "final": 0.1},
    "intratomo": {"net": Positive(_GRID), "steps": 1500, "lr": 5e-3, "misfit": "l1"},
    "uncertainr": {"net": _GRID, "dropout": 0.0, "members": 5, "passes": 1, "steps": 400, "lr": 1e-2, "final": 0.05, "tv": 8.0},
    "neurec": {"learn_steps": 1500},
    "scnf": {"steps": 600},
    "polyner": {"net": Positive(MLP(GridEncoding(8, 5.6, 128.0, 16, 4), width=64, depth=2), "squareplus", 3.0), "lr": 1e-2, "steps": 600},
    "gaussians": {"count": 5000, "steps": 400, "densify": 0, "tv": 1.0},
}
_PLAIN_TASKS = tuple(name for name in TASKS if name.startswith(("slice", "five", "limited")))
ABLATIONS: tuple[Ablation, ...] = (
    Ablation("coarse", (*_PLAIN_TASKS, "prior", "motion", "metal"), ("pdhg-tv",), {"finer": 1, "subrays": 1, "steps": 300}),
    *(Ablation(f"weight {w}", (*_PLAIN_TASKS, "cone-head", "cone-chest", "prior", "motion"), ("pdhg-tv",), {"weight": w}) for w in (0.1, 0.3, 1.0)),
    Ablation("non-local means", tuple(name for name in TASKS if name.startswith("slice")), ("pnp",), {"learned": False}),
    Ablation("cold", ("prior",), ("nerp",), {"warm": False}),
    Ablation("another's prior", ("prior",), ("nerp",), prior="another"),
    Ablation("naive", ("motion",), ("scnf",), {"motion": False}),
    Ablation("true poses", ("motion",), ("scnf",), {"motion": False}, oracle=True),
    Ablation("no smoothness", ("metal",), ("polyner",), {"smooth": 0.0}),
    Ablation("monochromatic", ("metal",), ("polyner",), {"monochromatic": True}),
    Ablation("direct", ("slice-a",), ("scope",), {"reproject": False}),
    Ablation("interpolated", ("slice-a", "slice-a-40db"), ("coil",), {"network": False}),
    Ablation("no correction", ("slice-a",), ("kim",), {"weight": 0.0}),
    Ablation("no refinement", ("slice-a", "limited-a"), ("intratomo",), {"refine": False}),
    Ablation("one level", ("slice-a",), ("naf",), {"levels": 1}),
    Ablation("random rays", ("cone-head",), ("naf",), {"rays": 1024, "lr": 1e-3, "steps": 1000}),
    Ablation("fixed bells", ("slice-a",), ("gaussians",), {"adapt": False}),
    Ablation("not learned", ("slice-a",), ("neurec",), prior="none"),
    Ablation("not adapted", ("slice-a",), ("neurec",), {"steps": None}),
    Ablation("100 steps", ("slice-a",), ("neurec",), {"steps": 100}),
    Ablation("100 steps, not learned", ("slice-a",), ("neurec",), {"steps": 100}, prior="none"),
    Ablation("one network", ("slice-a-40db",), ("uncertainr",), {"members": 1}),
)


def ablation(method: str, variant: str) -> Ablation:
    """What a variant of a method is; for "" the method as it is."""
    return next((a for a in ABLATIONS if a.name == variant and method in a.methods), Ablation(PLAIN, (), ()))


def configured(method: str, variant: str) -> Method:
    """A method with the hyper-parameters it has in the bench."""
    return plugins.load(method)(**{**BUDGETS.get(method, {}), **ablation(method, variant).overrides})


def plan(task: Task, methods: Sequence[str] = (), ablations: bool = True) -> Iterator[tuple[str, str]]:
    """The methods and variants that a task asks for."""
    names = list(methods) or [name for name, entry in plugins.entries().items() if entry.task == "ct" and _takes_part(task, entry)]
    for name in names:
        yield name, PLAIN
        for a in ABLATIONS if ablations else ():
            if task.name in a.tasks and name in a.methods:
                yield name, a.name


def _takes_part(task: Task, entry: plugins.Entry) -> bool:
    if entry.name in task.methods:
        return True
    if entry.name == plugins.default("ct"):
        return task.kind in ("plain", "real") and task.views < 180
    needs_metal = entry.name == "li-mar"
    return "classical" in task.methods and entry.fidelity == "classical" and not needs_metal


@dataclass(frozen=True)
class Trial:
    """What a method gets, and what it is scored with."""

    case: Projections
    truth: Volume
    mask: np.ndarray  # [I, J, K] voxels that are scored
    arrays: dict[str, np.ndarray]


def trial(task: Task, scan: Path, seed: int, *, prior: str = "own", oracle: bool = False) -> Trial:
    """The projections with the noise of one seed, and what they are scored with."""
    with np.load(scan, allow_pickle=False) as file:
        arrays = dict(file)
    grid = Grid(arrays["truth"].shape, arrays["grid"])
    data, truth = arrays["data"], Volume(arrays["truth"], grid, "1/mm")
    mask = _seen(grid) & ~arrays.get("metal", np.zeros((), bool))
    if task.kind == "real":
        case = Projections(torch.tensor(data), recorded(arrays), grid, name=task.name)
        return Trial(case.subset(arrays["used"]), truth, mask, arrays)
    views = geometry(task, grid)
    if oracle:
        views = simulate_ct.followed(views, arrays["poses"], grid.centre)
    noisy = simulate_ct.add_noise(data, task.photons, (seed, 3), decibel=task.decibel)
    case = Projections(torch.tensor(noisy), views, grid, water=WATER, photons=task.photons or 0.0, name=task.name)
    if task.kind == "prior" and prior != "none":
        case = replace(case, prior=Volume(arrays["earlier" if prior == "own" else "another"], grid, "1/mm"))
    if task.kind == "metal":
        spectrum, water = metal_spectrum()
        near = scipy.ndimage.binary_dilation(arrays["metal"], np.ones((3, 3, 1)))
        case = replace(case, metal=Volume(near, grid), spectrum=spectrum, water=water)
        mask &= ~near
    return Trial(case, truth, mask, arrays)


def _seen(grid: Grid) -> np.ndarray:
    """Voxels in the cylinder that fits the grid."""
    i, j = (np.arange(n) - (n - 1) / 2 for n in grid.shape[:2])
    disc = i[:, None] ** 2 + j**2 <= (min(grid.shape[:2]) / 2) ** 2
    return np.repeat(disc[..., None], grid.shape[2], 2)


def measured(task: Task, scan: Path, seed: int, method: str, variant: str) -> dict[str, Any]:
    """One run: scores, seconds and memory. What a method learns from others first is not part of its time."""
    chosen, solver = ablation(method, variant), configured(method, variant)
    this = trial(task, scan, seed, prior=chosen.prior, oracle=chosen.oracle)
    if method == "scope":  # the paper's truth is itself a filtered backprojection
        many = TASKS["slice-a-360"]
        this.arrays["dense"] = filtered_backprojection(trial(many, acquire(many, scan.parent), seed).case, "ramp")[0].numpy()
    learns = "learn" in vars(type(solver)) and chosen.prior != "none"
    prior = solver.learn(cohort(this.case), Run(seed=seed)) if learns else None
    result, row = measure.timed(lambda: measure.solve(solver, this.case, Run(seed=seed), prior))
    return row | score(task, result, this)


def cohort(like: Projections) -> list[Projections]:
    """Slices of two other patients, an abdomen and a thorax that no task scores, projected as this case with nine times its views."""
    views, cases = denser(like.geometry, 9).geometry, []
    for file, slices in (("b_ct/totalseg_abdomen_ct.nii.gz", range(5, 110, 8)), ("b_ct/totalseg_thorax_cta_aorta.nii.gz", range(5, 160, 10))):
        for k in slices:
            volume = volume_of(Source(file, k, 1, 128))
            grid = Grid.from_spacing((128, 128, 1), like.grid.spacing.tolist(), like.grid.world(np.zeros(3)).tolist())
            stretched = Volume(volume.data, grid, "1/mm")
            data = simulate_ct.project(stretched, views)
            cases.append(replace(like, data=torch.tensor(data), geometry=views, grid=grid, prior=None, metal=None, name=f"{file} {k}"))
    return cases


def score(task: Task, result: Volume, this: Trial) -> dict[str, Any]:
    """psnr, ssim and nrmse of the attenuation, and what the kind of the task asks for besides."""
    image = result.data[0].cpu().numpy()
    if task.kind == "real":
        return _held_out(image, this)
    truth = this.truth.data[0].numpy()
    if task.kind == "motion":
        image = aligned(image, truth, this.mask)
    out: dict[str, Any] = _scores(image, truth, this.mask)
    if 1 < image.shape[2] < 8:
        middle = np.s_[..., image.shape[2] // 2:image.shape[2] // 2 + 1]
        out["psnr_middle"] = metrics.psnr(image[middle], truth[middle], this.mask[middle])
    if task.kind == "metal":
        gain = float((image * truth)[this.mask].sum() / (image * image)[this.mask].sum())
        out["psnr_scaled"] = metrics.psnr(gain * image, truth, this.mask)
    if task.kind == "prior":
        lesion = this.arrays["lesion"]
        out["lesion_error"] = float(abs((image - truth)[lesion].mean()) / (LESION[1] * WATER))
    if "dense" in this.arrays:
        out["psnr_dense"] = metrics.psnr(image, this.arrays["dense"], this.mask)
    if result.channels > 1:
        out |= calibration(image, result.data[1].cpu().numpy(), truth, this.mask & (truth > 0.2 * WATER))
    return out


def _scores(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    if image.shape[2] > 7:
        return metrics.scores(image, truth, mask)
    # The window of the structural similarity wants depth: a thin stack is continued on both sides, and only its own slices count.
    more = [(0, 0), (0, 0), (5, 5)]
    wide = [np.pad(image, more, "edge"), np.pad(truth, more, "edge"), np.pad(mask, more)]
    return metrics.scores(*wide)


def _held_out(image: np.ndarray, this: Trial) -> dict[str, float]:
    """Scores of the projections that were not used, as an image of views and columns."""
    used = this.arrays["used"]
    rest = np.setdiff1d(np.arange(len(this.arrays["data"])), used)
    predicted = Projector(this.case.grid, recorded(this.arrays).subset(rest)).apply(torch.tensor(image)).numpy()
    shown, seen = (np.moveaxis(a, 1, 2).astype(np.float64) for a in (predicted, this.arrays["data"][rest]))
    return _scores(shown, seen, np.ones(seen.shape, bool))


def aligned(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The slice turned and shifted onto the truth: where the subject lies as a whole is not in the data (a gauge), so it is not scored."""
    def moved(pose: np.ndarray) -> np.ndarray:
        c, s = np.cos(pose[0]), np.sin(pose[0])
        turn, middle = np.array([[c, -s], [s, c]]), (np.array(image.shape[:2]) - 1) / 2
        return scipy.ndimage.affine_transform(image[..., 0], turn, middle - turn @ middle + pose[1:], order=3, mode="nearest")[..., None]

    def error(pose: np.ndarray) -> float:
        return float(((moved(pose) - truth)[mask] ** 2).sum())

    starts = [np.array([a, 0.0, 0.0]) for a in np.radians([-3, 0, 3])]
    best = min((scipy.optimize.minimize(error, s, method="Powell", options={"xtol": 1e-3}) for s in starts), key=lambda found: float(found.fun))
    return moved(best.x)


def calibration(image: np.ndarray, std: np.ndarray, truth: np.ndarray, body: np.ndarray) -> dict[str, float]:
    """How well a standard deviation tells the error: rank correlation of the two, and the mean over 20 central intervals of a normal
    distribution of |share of voxels inside - nominal| (expected calibration error, no widening)."""
    from scipy.stats import norm, spearmanr

    error, spread = np.abs(image - truth)[body], np.maximum(std[body], 1e-12)
    nominal = np.arange(1, 21) / 21
    inside = [(error <= norm.ppf((1 + q) / 2) * spread).mean() for q in nominal]
    return {"spearman": float(spearmanr(error, spread).statistic), "ece": float(np.abs(np.array(inside) - nominal).mean())}
