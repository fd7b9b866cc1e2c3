"""The measurements of the CT bench: real volumes, projected by `simulate_ct` at their own resolution, asked for at half of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from ..io import atomic, read_projections, read_volume
from ..operators.materials import attenuation
from ..operators.spectrum import Spectrum
from ..space import Geometry, Grid, Volume
from ..space.orbit import field_of_view
from . import simulate_ct
from .families import data_folder

Kind = Literal["plain", "prior", "motion", "metal", "real"]

WATER = 0.0193  # 1/mm at 70 keV
TOP = 1500.0  # HU, above which a scanner's clipped values say nothing
MOST_MOTION = (3.0, 3.0)  # degrees and voxels of the answer, in every view anew
LESION = (8.0, 0.3)  # radius mm, and how much of water's attenuation is added
METAL = "iron"


@dataclass(frozen=True)
class Source:
    """A CT volume in HU, and which part of it is projected.

    Args:
        file: below the data folder.
        first, slices: along k; all of them if `slices` is 0.
        side: voxels of the square into which a slice is put, air around it.
        scale: HU per unit of the file; 0 for a file whose values are 0 to 1 times twice water (TIGRE's head).
    """

    file: str
    first: int = 0
    slices: int = 1
    side: int = 256
    scale: float = 1.0


@dataclass(frozen=True)
class Task:
    """One line of the evidence.

    Args:
        name, title: in rows and in RESULTS.md.
        source: what is projected, and for "prior" what the patient looked like earlier.
        views: of the scan.
        beam: "parallel" or "fan" over half a turn and a whole one, or "cone" over a turn.
        binned: voxels of the source in one of the answer, along i and j.
        decibel: signal-to-noise ratio of white noise in the line integrals; None is without.
        photons: of photon noise; None is without.
        kind: what is special about it, see `acquire`.
        arc: degrees of a parallel beam's half turn that the views cover, evenly, from the first on.
        turned: in a stack each slice has views of its own, which lie between its neighbours': two fifths of a step on from slice to slice.
        methods: who takes part; () is the default of the task, "classical" every classical method.
    """

    name: str
    title: str
    source: Source
    views: int
    beam: Literal["parallel", "fan", "cone"] = "parallel"
    binned: int = 2
    decibel: float | None = None
    photons: float | None = None
    kind: Kind = "plain"
    arc: float = 180.0
    turned: bool = False
    methods: tuple[str, ...] = ()


def scan_name(task: Task) -> str:
    """The task, and a hash of how it is scanned and of the code that scans."""
    scan = [task.source, task.views, task.beam, task.binned, task.kind, task.arc, task.turned, WATER, TOP, MOST_MOTION, LESION, METAL]
    code = [Path(f).read_bytes() for f in (__file__, simulate_ct.__file__)]
    return f"{task.name}-{hashlib.sha256(b''.join([repr(scan).encode(), *code])).hexdigest()[:12]}"


def acquire(task: Task, cache: Path) -> Path:
    """Project the task's volume without noise, once; the file in `cache` is named by `scan_name`.

    Arrays: data [V, R, C], truth [I, J, K] 1/mm, grid (the answer's affine). "prior" adds earlier and another [I, J, K] (an earlier scan of the
    same patient and a scan of another one) and lesion (a mask); "motion" adds poses [V, 6]; "metal" adds metal (a mask); "real" has instead of
    a truth all its views, and which of them are used.
    """
    path = cache / f"{scan_name(task)}.npz"
    if not path.exists():
        arrays = _tooth(task) if task.kind == "real" else _scanned(task)
        cache.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the keywords for allow_pickle
    return path


def geometry(task: Task, grid: Grid) -> Geometry:
    """The views of a task, around the middle of the answer's grid."""
    n, side = grid.shape[0], float(grid.spacing[0])
    columns = int(np.ceil(1.42 * n)) | 1
    turn = np.radians(task.arc) if task.beam == "parallel" else 2 * np.pi
    angles = np.arange(task.views) * turn / task.views
    if task.beam == "parallel":
        if task.turned:
            first, *others = (_slice_views(task, grid, k) for k in range(grid.shape[2]))
            return first.followed_by(*others)
        return Geometry.parallel(angles, columns, side, rows=grid.shape[2], row_pitch=float(grid.spacing[2]), isocentre=grid.centre.tolist())
    reach = 2.5 * n * side
    if task.beam == "fan":
        return Geometry.fan(angles, columns, 1.5 * side, reach, 1.5 * reach, isocentre=grid.centre.tolist())
    rows = int(np.ceil(1.25 * grid.shape[2] * grid.spacing[2] / side))
    return Geometry.cone(angles, (rows, columns), 1.5 * side, reach, 1.5 * reach, isocentre=grid.centre.tolist())


def _slice(grid: Grid, k: int) -> Grid:
    return grid.crop((0, 0, k), (grid.shape[0], grid.shape[1], 1))


def _slice_views(task: Task, grid: Grid, k: int) -> Geometry:
    """The views of slice k of a stack on the answer's grid."""
    views = geometry(replace(task, turned=False), _slice(grid, k))
    angle = 0.4 * k % 1 * np.pi / task.views if task.turned else 0.0
    return views.moved(Rotation.from_rotvec([0, 0, angle]).as_matrix(), np.zeros(3), grid.centre)


def _scanned(task: Task) -> dict[str, np.ndarray]:
    whole = volume_of(task.source)
    if task.kind == "prior":
        earlier, whole = whole, simulate_ct.warp(whole, 4.0, seed=1)
        centre = _soft_place(whole)
        whole = simulate_ct.lesion(whole, centre, LESION[0], LESION[1] * WATER)
    grid = _coarser(whole.grid, task.binned)
    views = geometry(task, grid)
    out = {"grid": grid.affine, "truth": _binned(whole, task.binned)}
    if task.kind == "prior":
        other = volume_of(Source("b_ct/plastimatch_4dct_t0.nii.gz", 60, 1, task.source.side))
        out["earlier"], out["another"] = _binned(earlier, task.binned), _binned(other, task.binned)
        out["lesion"] = np.linalg.norm((grid.points().numpy() - centre)[..., :2], axis=-1) < 0.8 * LESION[0]
    if task.kind == "motion":
        rng = np.random.default_rng(0)
        poses = np.zeros((task.views, 6))
        poses[:, 2] = np.radians(rng.uniform(-MOST_MOTION[0], MOST_MOTION[0], task.views))
        poses[:, 3:5] = rng.uniform(-MOST_MOTION[1], MOST_MOTION[1], (task.views, 2)) * grid.spacing[0]
        out |= {"poses": poses, "data": simulate_ct.moving(whole, views, poses, grid.centre)}
    elif task.kind == "metal":
        mask = _discs(whole.grid)
        out["metal"] = _binned(mask, task.binned) > 0
        out["data"] = simulate_ct.polychromatic(whole, views, Spectrum.tube(120), metal={METAL: mask})
    elif task.beam == "parallel" and whole.grid.shape[2] > 1:
        # Slices as thick as the rows and constant through them: what the scanner that made the volume averaged, this one averages again.
        parts = [Volume(whole.data[..., k:k + 1], _slice(whole.grid, k)) for k in range(whole.grid.shape[2])]
        data = [simulate_ct.project(part, _slice_views(task, grid, k)) for k, part in enumerate(parts)]
        out["data"] = np.concatenate(data, 0 if task.turned else 1)
    else:
        out["data"] = simulate_ct.project(whole, views)
    return out


def volume_of(source: Source) -> Volume:
    """The chosen slices in 1/mm, in a square of air."""
    volume = read_volume(data_folder() / source.file)
    values = volume.data[0].numpy()
    mu = 2 * WATER * values / 65535 if source.scale == 0 else WATER * (1 + np.clip(source.scale * values, -1000, TOP) / 1000)
    mu = mu[:, :, source.first : source.first + source.slices] if source.slices else mu
    before = [(source.side - n) // 2 for n in mu.shape[:2]]
    mu = np.pad(mu, [(b, source.side - n - b) for b, n in zip(before, mu.shape[:2], strict=True)] + [(0, 0)])
    # Upright: the bench is about reconstruction, not about headers, which have tests of their own.
    spacing = volume.grid.spacing
    origin = [-(n - 1) / 2 * s for n, s in zip(mu.shape, spacing, strict=True)]
    return Volume(mu.astype(np.float32), Grid.from_spacing(mu.shape, spacing.tolist(), origin), "1/mm")


def _coarser(grid: Grid, binned: int) -> Grid:
    """Voxels of `binned` x `binned` of the old ones."""
    shape = (grid.shape[0] // binned, grid.shape[1] // binned, grid.shape[2])
    first = grid.world(np.array([(binned - 1) / 2, (binned - 1) / 2, 0.0]))
    return Grid.from_spacing(shape, (grid.spacing * [binned, binned, 1]).tolist(), first.tolist())


def _binned(volume: Volume, binned: int) -> np.ndarray:
    """[I, J, K] means over the voxels of `_coarser`."""
    i, j, k = volume.grid.shape
    return volume.data[0].numpy().reshape(i // binned, binned, j // binned, binned, k).mean((1, 3))


def _soft_place(volume: Volume) -> np.ndarray:
    """[3] mm, where soft tissue is deepest: there the lesion goes."""
    import scipy.ndimage

    data = volume.data[0].numpy()
    soft = (data > 0.9 * WATER) & (data < 1.25 * WATER)
    depth = scipy.ndimage.distance_transform_edt(scipy.ndimage.binary_opening(soft[..., 0]))
    return volume.grid.world(np.array([*np.unravel_index(int(depth.argmax()), depth.shape), 0.0]))


def _discs(grid: Grid) -> Volume:
    """Two metal discs, as of hip implants: 7 % of the field wide, left and right of the middle."""
    x, width = grid.points().numpy(), float(grid.shape[0] * grid.spacing[0])
    inside = [np.linalg.norm(x[..., :2] - (side * 0.15 * width, 0.0), axis=-1) < 0.035 * width for side in (-1, 1)]
    return Volume(np.logical_or(*inside).astype(np.float32), grid)


def _tooth(task: Task) -> dict[str, np.ndarray]:
    """A real scan: the views of a tooth, two columns taken together; every n-th view is used, the others judge."""
    scan = read_projections(data_folder() / task.source.file, pitch=1.0)
    data = scan.data[:180, :1].reshape(180, 1, -1, 2).mean(-1)
    g = scan.geometry.subset(slice(0, 180))
    used = np.unique(np.round(np.arange(task.views) * 180 / task.views).astype(int))
    # The rotation axis is where the reader found it; the answer's grid is centred there.
    n = data.shape[2]
    middle, _ = field_of_view(g)
    grid = Grid.from_spacing((n, n, 1), 2.0, (middle - np.array([n - 1, n - 1, 0.0])).tolist())
    poses = {"source": g.source, "centre": g.centre, "u": 2 * g.u, "v": g.v}
    return {"data": data, "grid": grid.affine, "used": used, "truth": np.zeros((n, n, 1), np.float32), **poses}


def recorded(arrays: dict[str, np.ndarray]) -> Geometry:
    """The views of a real scan, all of them."""
    return Geometry("parallel", arrays["source"], arrays["centre"], arrays["u"], arrays["v"], (1, arrays["data"].shape[2]))


def metal_spectrum() -> tuple[Spectrum, float]:
    """The tube of the metal task, and water's attenuation at its mean energy, 1/mm."""
    spectrum = Spectrum.tube(120)
    return spectrum, float(attenuation("water", spectrum.mean))

