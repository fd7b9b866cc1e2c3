"""A sweep around one axis that nobody tracked: real heads cut by thin planes whose poses are known roughly, and what is made of them.

Scored are planes across the axis, which no plane of the sweep ever saw, and how far the poses are off at the end. Poses do not tell where a subject
lies as a whole: the truth is read where the rigid map between true and found poses puts it (`moved`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from ... import plugins
from ...cases import Slices
from ...io import atomic, read_volume
from ...solve import Run
from ...solve.settle import told
from ...space import Grid, Volume
from .. import measure, metrics, moved, scans_sweep, simulate
from ..families import PLAIN, Ablation, Score, data_folder

if TYPE_CHECKING:
    from ...solve import Method

CODE = 1  # counts changes of how planes are read
SHARP = 2.5  # mm, full width at half maximum of the smoothing before pixels of 2 mm
NOISE = 0.01  # of the truth's range
RIM = 4  # voxels at the border of the result that do not count
FORREST, BRAINWEB = "a_mri/studyforrest_T1w_1mm.nii.gz", "a_mri/brainweb1e5a10f17_T2.nii.gz"
METHODS = ("implicitvol", "scattered")


@dataclass(frozen=True)
class Task:
    """One line of the evidence.

    Args:
        name: in rows and on the command line.
        title: what RESULTS.md calls it.
        file: the volume, below the data folder.
        start, side: the cube that is swept and rebuilt, in voxels of the volume.
        spacing: mm, of the pixels and of the result.
        planes: over half a turn.
        degrees, mm: standard deviations of each component of a plane's wrong turn and shift.
        methods: who takes part.
        scores: the first ranks the methods.
    """

    name: str
    title: str
    file: str
    start: tuple[int, int, int]
    side: int = 96
    spacing: float = 2.0
    planes: int = 48
    degrees: float = 3.0
    mm: float = 3.0
    methods: tuple[str, ...] = METHODS
    scores: tuple[Score, ...] = (Score("ssim", "SSIM of new planes", digits=4), Score("degrees", "turned by", "degrees", larger=False),
                                 Score("mm", "pose error", "mm", larger=False))


_ALL = (
    Task("turn", "T1 head, 48 planes around one axis, guessed to 3 degrees and 3 mm (1.5 pixels) on each axis", FORREST, (48, 64, 118)),
    Task("turn-far", "the same, 4.5 degrees and 4.5 mm", FORREST, (48, 64, 118), degrees=4.5, mm=4.5),
    Task("turn-brainweb", "T2 brain (BrainWeb), 3 degrees and 3 mm", BRAINWEB, (42, 60, 6)),
)
TASKS = {task.name: task for task in _ALL}
ABLATIONS = (
    Ablation("poses as guessed", tuple(TASKS), ("implicitvol",), {"motion": False}),
    # as many steps, with one network
    Ablation("one network", tuple(TASKS), ("implicitvol",), {"rounds": 1, "last": 1000}),
    Ablation("linear", ("turn", "turn-brainweb"), ("scattered",), {"between": "linear"}),
    Ablation("nothing holds the poses", ("turn",), ("implicitvol",), {"hold": 0.0}),
)


def scan_name(task: Task) -> str:
    """The measurements: a hash of all that they depend on. Wrong poses, like noise, come later."""
    what = (task.file, task.start, task.side, task.spacing, task.planes, SHARP, CODE)
    return f"sweep-{hashlib.sha256(repr(what).encode()).hexdigest()[:12]}"


def acquire(task: Task, cache: Path) -> Path:
    """Sweep what is not there yet: the truth, clean planes and where they lie."""
    path = cache / f"{scan_name(task)}.npz"
    if not path.exists():
        volume = read_volume(data_folder() / task.file)
        grid = volume.grid.crop(task.start, (task.side,) * 3).with_spacing(task.spacing)
        scene, affines = scans_sweep.Head(volume.blurred(SHARP / simulate.FWHM_PER_SIGMA), empty_outside=True), scans_sweep.fan(grid, task.planes)
        cache.mkdir(parents=True, exist_ok=True)
        with atomic(path) as part, part.open("wb") as file:
            np.savez_compressed(file, truth=scene.at(grid.points().double().numpy()), grid=grid.affine, affines=affines,
                                pictures=scans_sweep.swept(scene, grid, affines))
    return path


def configured(method: str, variant: str) -> Method:
    """A method with the hyper-parameters it has in the bench."""
    overrides = next((a.overrides for a in ABLATIONS if a.name == variant and method in a.methods), {})
    return plugins.load(method)(**overrides)


def plan(task: Task, methods: Sequence[str] = (), ablations: bool = True) -> Iterator[tuple[str, str]]:
    """The methods and variants that a task asks for."""
    for name in methods or task.methods:
        yield name, PLAIN
        for a in ABLATIONS if ablations else ():
            if task.name in a.tasks and name in a.methods:
                yield name, a.name


def trial(task: Task, scan: Path, seed: int) -> tuple[Slices, Volume, Float[np.ndarray, "N 4 4"]]:
    """What a method gets: planes with noise and wrong headers, drawn by the seed; the truth; and true poses."""
    with np.load(scan, allow_pickle=False) as arrays:
        truth, clean, affines = Volume(arrays["truth"], Grid(arrays["truth"].shape, arrays["grid"])), arrays["pictures"], arrays["affines"]
    rng, poses, centre = np.random.default_rng((seed, 13)), np.tile(np.eye(4), (len(affines), 1, 1)), truth.grid.centre
    poses[:, :3, :3] = Rotation.from_rotvec(rng.normal(0, task.degrees, (len(poses), 3)), degrees=True).as_matrix()
    poses[:, :3, 3] = centre - poses[:, :3, :3] @ centre + rng.normal(0, task.mm, (len(poses), 3))
    noise = NOISE * float(truth.data.max() - truth.data.min()) * rng.standard_normal(clean.shape)
    return scans_sweep.guessed(clean + noise, affines, poses, truth.grid), truth, poses


def across(result: Float[np.ndarray, "I J K"], truth: Float[np.ndarray, "I J K"], mask: Bool[np.ndarray, "I J K"]) -> float:
    """SSIM of the planes across the axis, the mean over those that the mask meets; the range is that of the truth in the mask."""
    from skimage.metrics import structural_similarity

    span, found = metrics.data_range(truth, mask), []
    for k in np.flatnonzero(mask.any((0, 1))):
        _, local = structural_similarity(result[:, :, k].astype(np.float64), truth[:, :, k].astype(np.float64), data_range=span,
                                         gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
        found.append(local[mask[:, :, k]].mean())
    return float(np.mean(found))


def counted(grid: Grid) -> Bool[np.ndarray, "I J K"]:
    """Where scores count: what was swept, but for its rim."""
    far = np.abs(np.moveaxis(np.indices(grid.shape), 0, -1) - (np.array(grid.shape) - 1) / 2)
    return (np.hypot(far[..., 0], far[..., 1]) < grid.shape[0] / 2 - RIM) & (far[..., 2] < grid.shape[2] / 2 - RIM)


def measured(task: Task, scan: Path, seed: int, method: str, variant: str) -> dict[str, Any]:
    """One run: scores, seconds and memory."""
    case, truth, poses = trial(task, scan, seed)
    run, mask = Run(seed=seed), counted(truth.grid)
    result, row = measure.timed(lambda: measure.solve(configured(method, variant), case, run))
    motion = told(run.notes["motion"])
    found = motion.poses
    there, image = moved.truth_at(truth, result.grid, moved.frame(case, found, poses)), result.data[0].numpy()
    row |= {"psnr": metrics.psnr(image, there, mask), "ssim": across(image, there, mask)}
    return row | moved.pose_scores(case, found, poses, motion.worth, np.zeros(len(poses), bool))
