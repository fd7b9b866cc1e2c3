"""Slices that moved: three orthogonal stacks of a real head, each slice scanned in a pose of its own, with all that is known of it.

The whole head is scanned, so nothing beyond the stacks is invented; what a slice shows at a place x of its header lies at T x in the
subject, T a rotation and a shift drawn for each slice alone.

The head is first smoothed a little. A lattice of its own 1 mm would hold its finest detail where lattice points fall on the head's voxels and
lose it where they fall between them: then half a voxel of shift, which nobody can know, costs a decibel with perfect poses (measured).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from ..io import atomic, read_volume
from ..space import Grid
from . import simulate
from .families import IMAGE_SCORES, Score, data_folder

CODE = 2  # counts changes of how slices are scanned
SHARP = 1.5  # mm, full width at half maximum of the smoothing
SEEDS = 3  # motions that are simulated of every task; the seed of a run chooses one


@dataclass(frozen=True)
class Task:
    """One line of the evidence.

    Args:
        name: in rows and on the command line.
        title: what RESULTS.md calls it.
        file: the volume, below the data folder.
        start, shape: the crop that the stacks cover and that is rebuilt, in voxels of the volume.
        thickness: mm, of the slices and between them.
        degrees, mm: each component of a slice's rotation vector and shift is uniform between minus and plus these.
        corrupted: share of the slices that lost most of their signal.
        methods: who takes part, beside the default and `svr`.
        stacks: of a real scan, below the data folder, with BIDS masks beside them; nothing is simulated then, and slices are held out.
        scores: the first ranks the methods.
    """

    name: str
    title: str
    file: str
    start: tuple[int, int, int]
    shape: tuple[int, int, int]
    thickness: float
    degrees: float
    mm: float
    corrupted: float = 0.0
    methods: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()
    scores: tuple[Score, ...] = (*IMAGE_SCORES, Score("mm", "pose error", "mm", 3, larger=False))


def scan_name(task: Task) -> str:
    """The measurements: a hash of all that they depend on. Corruption, like noise, comes later."""
    if task.stacks:
        return f"motion-{hashlib.sha256(repr((task.stacks, CODE)).encode()).hexdigest()[:12]}"
    what = (task.file, task.start, task.shape, task.thickness, task.degrees, task.mm, SEEDS, CODE)
    return f"motion-{hashlib.sha256(repr(what).encode()).hexdigest()[:12]}"


def acquire(task: Task, cache: Path) -> Path:
    """Scan what is not there yet: clean slices of SEEDS motions, their headers and true poses."""
    path = cache / f"{scan_name(task)}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        arrays = _read(task) if task.stacks else _scanned(task)
        with atomic(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path


def motions(task: Task, slices: int, seed: int, about: Sequence[float] | np.ndarray) -> Float[np.ndarray, "N 4 4"]:
    """True poses: maps of the world, turning about a point."""
    rng = np.random.default_rng((seed, slices))
    turns = Rotation.from_rotvec(rng.uniform(-task.degrees, task.degrees, (slices, 3)), degrees=True).as_matrix()
    moved = np.tile(np.eye(4), (slices, 1, 1))
    moved[:, :3, :3] = turns
    moved[:, :3, 3] = about - turns @ np.asarray(about) + rng.uniform(-task.mm, task.mm, (slices, 3))
    return moved


def _scanned(task: Task) -> dict[str, np.ndarray]:
    volume = read_volume(data_folder() / task.file)
    crop = volume.grid.crop(task.start, task.shape)
    volume = volume.blurred(SHARP / simulate.FWHM_PER_SIGMA)
    scene = simulate.Scene(volume)
    inner = tuple(slice(a, a + n) for a, n in zip(task.start, task.shape, strict=True))
    out = {"grid": crop.affine, "truth": volume.data[0].numpy()[inner]}
    grids = [simulate.stack_grid(crop, through, task.thickness) for through in (2, 0, 1)]
    total = sum(g.shape[2] for g in grids)
    for seed in range(SEEDS):
        poses, n = motions(task, total, seed, crop.centre), 0
        for s, grid in enumerate(grids):
            planes = []
            for k in range(grid.shape[2]):
                header = grid.crop((0, 0, k), (*grid.shape[:2], 1))
                planes.append(scene.slices(Grid(header.shape, poses[n] @ header.affine), task.thickness)[..., 0])
                n += 1
            out[f"{seed}/{s}/data"] = np.stack(planes, -1).astype(np.float32)
        out[f"{seed}/poses"] = poses
    for s, grid in enumerate(grids):
        out[f"{s}/affine"] = grid.affine
    return out


def _read(task: Task) -> dict[str, np.ndarray]:
    """Real stacks and their masks."""
    out: dict[str, np.ndarray] = {}
    for n, name in enumerate(task.stacks):
        path = data_folder() / name
        stack, mask = read_volume(path), read_volume(path.with_name(path.name.replace(".nii.gz", "_desc-brain_mask.nii.gz")))
        out |= {f"{n}/data": stack.data[0].numpy(), f"{n}/affine": stack.grid.affine, f"{n}/mask": mask.on(stack.grid).data[0].numpy() > 0.5}
    return out
