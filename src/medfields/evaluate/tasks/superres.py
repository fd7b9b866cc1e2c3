"""Super-resolution from thick slices: real volumes, scanned by `simulate`, scored inside.

The rule that keeps the field of view honest: the whole volume is scanned, so nothing beyond a crop is invented; the stacks cover the crop
and nothing else, which is all a method sees; and scores count voxels inside the head that lie `MARGIN` mm or more from the crop's faces,
the same voxels for every method. Noise is Rician with a standard deviation of 1 % of the truth's range there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
import torch

from ... import plugins
from ...cases import Stack, Stacks
from ...cases.stacks import Profile
from ...errors import GeometryError
from ...fields import MLP, Fourier, GridEncoding, Identity, MultiHead, Siren
from ...io import atomic, read_volume
from ...solve import Run
from ...space import Grid, Volume
from .. import families, measure, metrics, simulate
from ..families import PLAIN, data_folder

if TYPE_CHECKING:
    from ...solve import Method

MARGIN = 6.0  # mm
NOISE = 0.01  # of the truth's range
LESION_RADIUS, LESION_DEPTH, LESIONS = 4.0, 0.3, 4  # mm, of the truth's range, in each contrast


@dataclass(frozen=True)
class Source:
    """One contrast: its file below the data folder, and the voxel axes along which it is scanned thick."""

    contrast: str
    file: str
    through: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """One line of the evidence.

    Args:
        name: in rows and on the command line.
        title: what RESULTS.md calls it.
        sources: the contrasts, all on one grid.
        start, shape: the crop that is rebuilt, in voxels of the source.
        factor: slice thickness and distance, in voxels of the source along the slice axis.
        empty_outside: the volume is brain-extracted, so beyond it is zero.
        lesions: each contrast gets lesions that the others do not have, and a second solve without them measures what leaks across.
        tilt: rotation vector in degrees by which the stacks of a contrast are turned in turn to and fro, so that none lies along the voxels.
        methods: who takes part, beside the default; () is every method, "classical" every classical one.
    """

    name: str
    title: str
    sources: tuple[Source, ...]
    start: tuple[int, int, int]
    shape: tuple[int, int, int]
    factor: int
    empty_outside: bool = False
    lesions: bool = False
    tilt: tuple[float, float, float] = (0.0, 0.0, 0.0)
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ablation(families.Ablation):
    """Also with other data.

    Args:
        profile: "none" takes thick slices for points.
        one_contrast: solves every contrast alone.
    """

    profile: Profile = "gauss"
    one_contrast: bool = False


@dataclass(frozen=True)
class Trial:
    """What a method gets (`case`) and what it is scored with."""

    case: Stacks
    truth: Volume  # one channel for each contrast
    mask: np.ndarray  # [I, J, K] bool
    lesions: np.ndarray  # [contrast, lesion, I, J, K] bool: where a contrast has lesions of its own; no lesions: length 0
    ranges: np.ndarray  # [contrast] the truth's range inside the mask


FORREST = "a_mri/studyforrest_T1w_1mm.nii.gz"
T1GD, CORD = "a_mri/vs_seg_001_T1Gd_half.nii.gz", "a_mri/spinal/t2_t2.nii.gz"
BRAINWEB = (Source("t1", "a_mri/brainweb165a10f17_T1.nii.gz", (2,)), Source("t2", "a_mri/brainweb1e5a10f17_T2.nii.gz", (0,)))
STROKE = (Source("t1", "a_mri/stroke_T1.nii.gz", (2,)), Source("t2", "a_mri/stroke_T2.nii.gz", (1,)))

_CORE = ("classical",)
_TWO = ("classical", "mcginnis")
_ALL = (
    Task("forrest-2x5", "T1 head 1 mm, 2 views, 5x", (Source("", FORREST, (2, 0)),), (46, 62, 116), (100, 100, 100), 5, methods=(*_CORE, "hash")),
    Task("forrest-small", "T1 head 1 mm, 48 voxels a side, 2 views, 5x, every method", (Source("", FORREST, (2, 0)),), (72, 88, 142),
         (48, 48, 48), 5),
    Task("forrest-3x4", "T1 head 1 mm, 3 views, 4x", (Source("", FORREST, (2, 0, 1)),), (46, 62, 116), (100, 100, 100), 4, methods=_CORE),
    Task("forrest-oblique", "T1 head 1 mm, 2 oblique views, 5x", (Source("", FORREST, (2, 0)),), (46, 62, 116), (100, 100, 100), 5,
         tilt=(5.0, -7.0, 9.0), methods=_CORE),
    Task("t1gd-2x5", "T1 + contrast agent 0.82x0.82x1.5 mm, 2 views, 5x", (Source("", T1GD, (0, 1)),), (56, 60, 12), (100, 100, 40), 5,
         methods=_CORE),
    Task("cord-2x4", "T2 cervical cord 1 mm, 2 views, 4x", (Source("", CORD, (1, 0)),), (8, 8, 8), (44, 39, 36), 4, methods=_CORE),
    Task("brainweb-t1t2", "T1 axial, T2 sagittal (BrainWeb) 1 mm, 4x", BRAINWEB, (58, 76, 22), (64, 64, 64), 4, methods=_TWO),
    Task("stroke-t1t2", "T1 axial, T2 coronal of a stroke patient 1 mm, 4x", STROKE, (30, 48, 38), (64, 64, 64), 4, empty_outside=True,
         methods=_TWO),
    Task("brainweb-lesions", "the BrainWeb pair, lesions in one of the two, 4x", BRAINWEB, (58, 76, 22), (64, 64, 64), 4, lesions=True,
         methods=("mcginnis",)),
)
TASKS = {task.name: task for task in _ALL}

# The published networks are sized for a GPU: up to 4 M weights asked 10^9 times. This is what they get on two cores; the rows say so.
BUDGETS: dict[str, dict[str, Any]] = {
    "siren": {"net": Siren(width=128, depth=3, omega_first=40.0), "steps": 800, "lr": 1e-3, "samples": 2048, "nodes": 5},
    "fourier": {"net": MLP(Fourier(size=128, sigma=3.0), width=128, depth=3), "steps": 1600, "lr": 2e-3, "samples": 2048, "nodes": 5},
    "mh-relu": {"net": MultiHead(cells=(12, 12, 12), width=96, depth=3, alpha=64), "steps": 4500, "lr": 3e-3, "samples": 2048, "nodes": 5,
                "tv": 0.06},
    "hash": {"steps": 600},
    "irem": {"net": MLP(Fourier(size=128, sigma=3.5), width=96, depth=8, skips=(3, 6)), "epochs": 45, "lr": 1e-3, "samples": 2048, "nodes": 5},
    "spine-two-view": {"net": MLP(Fourier(size=256, sigma=3.5), width=160, depth=4), "epochs": 30, "lr": 2e-3, "samples": 2048, "nodes": 5},
    # Its Fourier body stays under-fitted at any size two cores can train (23.3 dB at best where this one has 26.2, and a quarter of a lesion
    # leaks), so a grid takes the place of the frequencies: shared body and split head are what is tested. Its outputs tell most about each
    # other while the grid is still coarse, so the information stop is off.
    "mcginnis": {"net": MLP(GridEncoding(levels=12, finest_mm=1.0, coarsest_mm=32.0, log2_table=19), width=64, depth=2, split=2),
                 "epochs": 30, "patience": None, "lr": 1e-2, "samples": 8192, "nodes": 5, "tv": 0.03},
    "ppn": {"net": MLP(Fourier(size=128, sigma=3.0), width=128, depth=4, skips=(2,)), "steps": 1400, "lr": 2e-3, "samples": 2048, "nodes": 5},
}
_NETWORKS = ("siren", "fourier", "mh-relu", "hash", "irem", "spine-two-view", "ppn")
_PAIRS = ("brainweb-t1t2", "stroke-t1t2")
ABLATIONS = (
    Ablation("no profile", ("forrest-small",), profile="none"),
    Ablation("tv 0", ("forrest-small",), _NETWORKS, overrides={"tv": 0.0}),
    # The same network without the idea of its paper.
    *(Ablation("no encoding", ("forrest-small",), (name,), overrides={"net": replace(BUDGETS[name]["net"], encoding=Identity())})
      for name in ("fourier", "irem", "spine-two-view", "ppn")),
    Ablation("omega 1", ("forrest-small",), ("siren",), overrides={"net": replace(BUDGETS["siren"]["net"], omega_first=1.0, omega=1.0)}),
    Ablation("one cell", ("forrest-small",), ("mh-relu",), overrides={"net": replace(BUDGETS["mh-relu"]["net"], cells=(1, 1, 1))}),
    Ablation("one level", ("forrest-small",), ("hash",),
             overrides={"net": MLP(GridEncoding(levels=1, finest_mm=1.0, coarsest_mm=1.0, log2_table=19), width=64, depth=2)}),
    Ablation("not taught", ("forrest-2x5", "forrest-3x4"), ("own-slices",), overrides={"steps": 1, "lr": 1e-9}),
    # The strongest rival is tuned with the truth, which ours never sees.
    *(Ablation(f"weight {w}", ("forrest-2x5", "forrest-3x4", "forrest-oblique", "forrest-small", "t1gd-2x5", "cord-2x4", *_PAIRS), ("srr-tv",),
               overrides={"weight": w}) for w in (0.0012, 0.0018, 0.0035, 0.005)),
    # A total variation shared by two contrasts joins them too, so mcginnis is also asked what its shared body does without it.
    Ablation("one contrast", _PAIRS, ("mcginnis", "own-slices", "srr-tv"), one_contrast=True),
    Ablation("tv 0", _PAIRS, ("mcginnis",), overrides={"tv": 0.0}),
    Ablation("one contrast, tv 0", _PAIRS, ("mcginnis",), one_contrast=True, overrides={"tv": 0.0}),
    Ablation("Fourier body", (*_PAIRS, "brainweb-lesions"), ("mcginnis",), overrides={
        "net": MLP(Fourier(size=256, sigma=3.5), width=160, depth=4, split=2), "epochs": 16, "patience": 4, "lr": 2e-3, "samples": 2048, "tv": 0.02}),
)


def ablation(method: str, variant: str) -> Ablation:
    """What a variant of a method is; for "" the method as it is."""
    return next((a for a in ABLATIONS if a.name == variant and (method in a.methods or not a.methods)), Ablation(PLAIN, ()))


def configured(method: str, variant: str) -> Method:
    """A method with the hyper-parameters it has in the bench."""
    return plugins.load(method)(**{**BUDGETS.get(method, {}), **ablation(method, variant).overrides})


def plan(task: Task, methods: Sequence[str] = (), ablations: bool = True) -> Iterator[tuple[str, str]]:
    """The methods and variants that a task asks for. Methods that learn from a cohort first do not take part: nobody gives them one."""
    names = list(methods) or [name for name, entry in plugins.entries().items() if entry.task == "superres" and _takes_part(task, entry)]
    for name in names:
        classical = plugins.find(name).fidelity == "classical"
        yield name, PLAIN
        for a in ABLATIONS if ablations else ():
            if task.name in a.tasks and (name in a.methods or not (a.methods or classical)):
                yield name, a.name


def _takes_part(task: Task, entry: plugins.Entry) -> bool:
    named = entry.name in task.methods or ("classical" in task.methods and entry.fidelity == "classical")
    return (not task.methods or named or entry.name == plugins.default("superres")) and "learn" not in vars(plugins.load(entry.name))


def scan_name(task: Task) -> str:
    """The task, and a hash of how it is scanned and of the code that scans."""
    scan: list[Any] = [task.sources, task.start, task.shape, task.factor, task.empty_outside, task.lesions, MARGIN, LESION_RADIUS, LESION_DEPTH]
    scan += [LESIONS, *([task.tilt] if any(task.tilt) else [])]
    code = [Path(f).read_bytes() for f in (simulate.__file__, metrics.__file__)]
    return f"{task.name}-{hashlib.sha256(b''.join([repr(scan).encode(), *code])).hexdigest()[:12]}"


def acquire(task: Task, cache: Path) -> Path:
    """Scan the task's volumes without noise, once; the file in `cache` is named by `scan_name`."""
    path = cache / f"{scan_name(task)}.npz"
    if not path.exists():
        arrays = _scan(task, data_folder())
        cache.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the keywords for allow_pickle
    return path


def _scan(task: Task, folder: Path) -> dict[str, np.ndarray]:
    """Noise-free stacks, truth and mask of a task, as named arrays."""
    volumes = [read_volume(folder / s.file) for s in task.sources]
    for v in volumes[1:]:
        volumes[0].grid.require_same(v.grid, "the contrasts of a task")
    crop = volumes[0].grid.crop(task.start, task.shape)
    inner = tuple(slice(a, a + n) for a, n in zip(task.start, task.shape, strict=True))
    index = np.stack(np.meshgrid(*map(np.arange, task.shape), indexing="ij"), -1)
    depth = (np.minimum(index + 0.5, np.array(task.shape) - index - 0.5) * crop.spacing).min(-1)
    mask = metrics.head_mask(volumes[0].data[0].numpy())[inner] & (depth >= MARGIN)
    ranges = np.array([metrics.data_range(v.data[0].numpy()[inner], mask) for v in volumes])
    centres = _lesion_centres(mask, crop, len(volumes)) if task.lesions else np.zeros((len(volumes), 0, 3))
    out: dict[str, np.ndarray] = {"grid": crop.affine, "mask": mask, "ranges": ranges}
    out["lesions"] = np.array([[simulate.lesion_profile(crop, c, LESION_RADIUS) > 0.5 for c in own] for own in centres]).reshape(
        len(volumes), -1, *task.shape)
    for variant in ("plain", "lesions")[: 1 + task.lesions]:
        truths = []
        for n, (source, volume) in enumerate(zip(task.sources, volumes, strict=True)):
            if variant == "lesions":
                sign = -1 if n % 2 == 0 else 1
                volume = simulate.paint_lesions(volume, centres[n], LESION_RADIUS, sign * LESION_DEPTH * ranges[n])
            truths.append(volume.data[0].numpy()[inner])
            scene = simulate.Scene(volume, empty_outside=task.empty_outside)
            for view, through in enumerate(source.through):
                thickness = task.factor * crop.spacing[through]
                tilt = [angle * (-1) ** view for angle in task.tilt]
                stack = simulate.thick_stack(scene, simulate.stack_grid(crop, through, thickness, tilt=tilt), float(thickness))
                key = f"{variant}/{n}/{through}"
                out[f"{key}/data"], out[f"{key}/affine"] = stack.volume.data[0].numpy(), stack.volume.grid.affine
        out[f"{variant}/truth"] = np.stack(truths)
    return out


def _lesion_centres(mask: np.ndarray, grid: Grid, contrasts: int) -> np.ndarray:
    """[contrasts, LESIONS, 3] world points: inside the mask, at least four radii apart, the same at every call."""
    inside = scipy.ndimage.distance_transform_edt(mask, sampling=grid.spacing) > 1.5 * LESION_RADIUS
    candidates = grid.world(np.random.default_rng(0).permutation(np.argwhere(inside)))
    chosen: list[np.ndarray] = []
    for point in candidates:
        if all(np.linalg.norm(point - other) >= 4 * LESION_RADIUS for other in chosen):
            chosen.append(point)
        if len(chosen) == contrasts * LESIONS:
            break
    else:
        raise GeometryError(f"the crop holds {len(chosen)} lesions, not {contrasts * LESIONS}", "take a larger crop")
    return np.array(chosen).reshape(contrasts, LESIONS, 3)


def trial(task: Task, scan: Path, seed: int, *, lesions: bool | None = None, profile: Profile = "gauss") -> Trial:
    """The stacks with the noise of one seed, and what they are scored with.

    Args:
        task: the task that `scan` was acquired for.
        scan: from `acquire`.
        seed: of the noise. With and without lesions the noise is the same, so that only the lesions differ.
        lesions: None takes the task's own kind.
        profile: "none" tells the method to ignore the slice profile.
    """
    variant = "lesions" if (task.lesions if lesions is None else lesions) else "plain"
    with np.load(scan, allow_pickle=False) as arrays:
        mask, ranges, truth = arrays["mask"], arrays["ranges"], arrays[f"{variant}/truth"]
        grid = Grid(task.shape, arrays["grid"])
        stacks = []
        for n, source in enumerate(task.sources):
            for through in source.through:
                data, affine = arrays[f"{variant}/{n}/{through}/data"], arrays[f"{variant}/{n}/{through}/affine"]
                clean = Stack(Volume(data, Grid(data.shape, affine)), float(task.factor * grid.spacing[through]), source.contrast,
                              f"{source.contrast or 'stack'}-{'ijk'[through]}", through=2)
                stacks.append(simulate.add_noise(clean, NOISE * ranges[n], (seed, n, through), "rician"))
        return Trial(Stacks(tuple(stacks), grid, profile), Volume(truth, grid), mask, arrays["lesions"], ranges)


def measured(task: Task, scan: Path, seed: int, method: str, variant: str) -> dict[str, Any]:
    """One run: scores, seconds and memory."""
    chosen, solver = ablation(method, variant), configured(method, variant)

    def solve(case: Stacks) -> Volume:
        if not chosen.one_contrast:
            return measure.solve(solver, case, Run(seed=seed))
        alone = [measure.solve(solver, case.only(contrast), Run(seed=seed)) for contrast in case.contrasts]
        return Volume(torch.cat([v.data for v in alone]), case.grid)

    this = trial(task, scan, seed, profile=chosen.profile)
    result, row = measure.timed(lambda: solve(this.case))
    row |= score(result, this)
    if task.lesions:
        row |= leak(result, solve(trial(task, scan, seed, lesions=False, profile=chosen.profile).case), this)
    return row


def score(result: Volume, trial: Trial) -> dict[str, object]:
    """psnr, ssim and nrmse, averaged over the contrasts, and by contrast where there are several."""
    rows = [metrics.scores(result.data[c].cpu().numpy(), trial.truth.data[c].numpy(), trial.mask) for c in range(trial.truth.channels)]
    out: dict[str, object] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    if len(rows) > 1:
        out["contrasts"] = dict(zip(trial.case.contrasts, rows, strict=True))
    return out


def leak(having: Volume, lacking: Volume, trial: Trial) -> dict[str, float]:
    """What lesions of one contrast do to the others, as a share of their depth; 0 is none.

    Two solves are compared, from measurements that differ by the lesions alone: comparing one solve with the truth would count every
    other error in that place as leak. A lesion's leak is |mean difference inside it| / (depth x the range of the contrast that lacks it).

    Returns:
        leak: mean over the lesions and the contrasts that lack them.
        kept: mean over the lesions of what their own contrast shows of them; 1 is all.
    """
    change = (having.data - lacking.data).cpu().numpy() / (LESION_DEPTH * trial.ranges[:, None, None, None])
    leaks, kept = [], []
    for own, regions in enumerate(trial.lesions):
        for region in regions:
            means = [abs(float(channel[region].mean())) for channel in change]
            kept.append(means.pop(own))
            leaks += means
    return {"leak": float(np.mean(leaks)), "leak_worst": max(leaks), "kept": float(np.mean(kept))}
