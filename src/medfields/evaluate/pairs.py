"""The pairs of the registration bench: real images with what they are scored by, and phantoms whose motion is known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.ndimage
from jaxtyping import Float

from ..io import atomic, read_image, read_volume
from ..io.landmarks import read_pairs
from ..solve.prealign import start_of
from ..space import Grid, Volume
from . import simulate_tube
from .families import Score, data_folder
from .metrics import Mask

Kind = Literal["lung", "breath", "brain", "slices", "phantom", "tube"]
Arrays = dict[str, np.ndarray]
Points = Float[np.ndarray, "N 3"]

SIZE, VOXEL = 48, 2.0  # of the phantom, voxels and mm
BALL, REACH = 18.0, 16.0  # radius of its mask, and of its motion (where it falls to 1/e), voxels
BLOBS, PROBES = 250, 300
AIR = -400.0  # HU, below which it is lung or air


@dataclass(frozen=True)
class Task:
    """One line of the evidence.

    Args:
        name, title: in rows and in RESULTS.md.
        kind: which images, and how they are scored.
        scores: the main ones; the first ranks the methods.
        methods: who takes part besides the default; "classical" is every classical method that is installed.
        motion: of the phantom, mean in voxels.
        bias: of the phantom's fixed image: it is multiplied by exp(b) with b a wave of this amplitude.
        noise: standard deviation, of both images of a phantom; each seed has its own.
        back: fixed and moving are changed over.
    """

    name: str
    title: str
    kind: Kind
    scores: tuple[Score, ...]
    methods: tuple[str, ...] = ("classical",)
    motion: float = 0.0
    bias: float = 0.0
    noise: float = 0.0
    back: bool = False


def scan_name(task: Task) -> str:
    """The task, and a hash of what its images depend on and of the code that makes them."""
    made = repr([task.kind, task.motion, task.bias, task.noise, task.back]).encode()
    code = [Path(f).read_bytes() for f in (__file__, simulate_tube.__file__)]
    return f"{task.name}-{hashlib.sha256(b''.join([made, *code])).hexdigest()[:12]}"


def acquire(task: Task, cache: Path) -> Path:
    """Read or simulate the task's images without noise, once; the file in `cache` is named by `scan_name`.

    Arrays: fixed, moving [I, J, K] and fixed_affine, moving_affine; start [4, 4], fixed to moving world; and, where the kind has them, mask and
    moving_mask, landmarks [2, N, 3] mm (fixed, moving), labels and moving_labels, points [N, 3] mm of the fixed world with truth [N, 3], their
    displacement in mm, line [N, 3] and radius of a tube in mm.

    Raises:
        FileError: if the shared images are not there.
    """
    path = cache / f"{scan_name(task)}.npz"
    if not path.exists():
        makers: dict[str, Callable[[Task], Arrays]] = {"lung": lung, "breath": breath, "brain": brain, "slices": slices, "phantom": phantom,
                                                       "tube": tube}
        arrays = makers[task.kind](task)
        if task.back:
            arrays = turned(arrays)
        cache.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the keywords for allow_pickle
    return path


def _pair(fixed: Volume, moving: Volume, start: np.ndarray | None = None) -> Arrays:
    return {"fixed": fixed.data[0].numpy(), "fixed_affine": fixed.grid.affine, "moving": moving.data[0].numpy(), "moving_affine": moving.grid.affine,
            "start": np.eye(4) if start is None else start}


def lung(task: Task) -> Arrays:
    """One lung, baseline and follow-up CT with masks, and the expert's landmarks that lie inside both images; they start by their masks' middles."""
    folder = data_folder() / "e_registration"
    image = {f"{when}{what}": read_volume(folder / f"3DCT_lung_{when}{what}.mha") for when in ("baseline", "followup") for what in ("", "_mask")}
    fixed, moving, mask, moving_mask = (image[name] for name in ("baseline", "followup", "baseline_mask", "followup_mask"))
    ends = "landmarks_dev50.txt"
    marks = read_pairs(folder / f"3DCT_lung_baseline_{ends}", folder / f"3DCT_lung_followup_{ends}", fixed.grid, moving.grid)
    start = start_of(fixed, moving, "moments", mask, moving_mask)
    return _pair(fixed, moving, start) | {"mask": mask.data[0].numpy() > 0.5, "moving_mask": moving_mask.data[0].numpy() > 0.5,
                                          "landmarks": np.stack([marks.fixed[marks.inside], marks.moving[marks.inside]])}


def breath(task: Task) -> Arrays:
    """Two phases of one breath, with the lungs as masks."""
    fixed, moving = (read_volume(data_folder() / f"b_ct/plastimatch_4dct_{phase}.nii.gz") for phase in ("t0", "t5"))
    return _pair(fixed, moving) | {name: lungs(v.data[0].numpy()) for name, v in (("mask", fixed), ("moving_mask", moving))}


def lungs(hu: Float[np.ndarray, "I J K"]) -> Mask:
    """The air inside a body: the largest parts below `AIR` that do not reach a border of the slices, with the vessels in them."""
    parts, count = scipy.ndimage.label(hu < AIR)
    outside = np.unique(np.concatenate([parts[[0, -1]].ravel(), parts[:, [0, -1]].ravel()]))
    size = np.bincount(parts.ravel(), minlength=count + 1)
    size[[0, *outside]] = 0
    air = (size >= 0.1 * size.max())[parts] & (size > 0)[parts]
    ball = np.linalg.norm(np.indices((7, 7, 7)) - 3, axis=0) <= 3
    closed = scipy.ndimage.binary_closing(np.pad(air, 3, "edge"), ball)[3:-3, 3:-3, 3:-3]
    return np.stack([scipy.ndimage.binary_fill_holes(s) for s in np.moveaxis(closed, 2, 0)], 2)


def brain(task: Task) -> Arrays:
    """Two people's brains with the labels of both, cut to what is not empty; an affine map by correlation first."""
    folder = data_folder() / "e_registration/ixi"
    images, labels = [], []
    for n in (1, 2):
        image, label = (read_volume(folder / f"ixi_subj{n}_{what}.nii.gz") for what in ("norm", "aseg"))
        label.grid.require_same(image.grid, "a brain and its labels")
        where = scipy.ndimage.find_objects((image.data[0].numpy() > 0).astype(np.uint8))[0]
        lo = np.maximum([s.start - 4 for s in where], 0)
        hi = np.minimum([s.stop + 4 for s in where], image.grid.shape)
        part = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
        images.append(Volume(image.data[0][part], image.grid.crop(lo, hi - lo)))
        labels.append(label.data[0].numpy()[part].round().astype(np.int16))
    fixed, moving = images
    mask = fixed.with_data(fixed.data > 0)
    start = start_of(fixed, moving, "affine", mask, similarity="ncc")
    return _pair(fixed, moving, start) | {"mask": mask.data[0].numpy() > 0.5, "labels": labels[0], "moving_labels": labels[1]}


def turned(arrays: Arrays) -> Arrays:
    """Two labelled brains, fixed and moving changed over."""
    pairs = {"fixed": "moving", "fixed_affine": "moving_affine", "labels": "moving_labels"}
    found = {a: arrays[b] for a, b in (*pairs.items(), *((b, a) for a, b in pairs.items()))}
    return found | {"mask": arrays["moving"] > 0, "start": np.linalg.inv(arrays["start"])}


def slices(task: Task) -> Arrays:
    """Slices of two people's brains, pictures without millimetres; an affine map by correlation first."""
    fixed, moving = (read_image(data_folder() / f"e_registration/r{n}slice.jpg") for n in (16, 64))
    return _pair(fixed, moving, start_of(fixed, moving, "affine", similarity="ncc"))


def phantom(task: Task) -> Arrays:
    """Blobs in a ball, and the same blobs after a breath: both images are exact, F(x) = M(x + u(x)), and points of the mask are probed."""
    rng = np.random.default_rng(0)
    middle = VOXEL * (SIZE - 1) / 2
    grid = Grid.from_spacing((SIZE, SIZE, SIZE), VOXEL, [-middle] * 3)
    x = grid.points().numpy().astype(np.float64).reshape(-1, 3)
    direction = rng.normal(size=(BLOBS, 3))
    centres = direction / np.linalg.norm(direction, axis=1, keepdims=True) * (BALL + 3) * VOXEL * rng.uniform(0, 1, (BLOBS, 1)) ** (1 / 3)
    widths = rng.uniform(1.2, 2.4, BLOBS) * VOXEL
    inside = np.linalg.norm(x, axis=1) < BALL * VOXEL
    probes = x[rng.choice(np.flatnonzero(inside), PROBES, replace=False)] + rng.uniform(-0.5, 0.5, (PROBES, 3)) * VOXEL
    scale = task.motion * VOXEL / np.linalg.norm(breathing(probes), axis=1).mean()
    fixed, moving = blobs(x + scale * breathing(x), centres, widths), blobs(x, centres, widths)
    fixed *= np.exp(task.bias * np.sin(x @ np.array([0.9, 0.6, 0.4]) / (REACH * VOXEL) + 0.5))
    there, here = (Volume(v.reshape(grid.shape), grid) for v in (moving, fixed))
    return _pair(here, there) | {"mask": inside.reshape(grid.shape), "points": probes, "truth": scale * breathing(probes)}


def breathing(x: Points) -> Points:
    """The phantom's motion at world mm, up to its scale: most of it along z, nothing far away."""
    r = x / (REACH * VOXEL)
    u = np.stack([0.35 * np.sin(1.5 * r[:, 1]), -0.45 * np.cos(1.2 * r[:, 0]), 1 + 0.25 * np.sin(1.5 * r[:, 2])], 1)
    return u * np.exp(-(r**2).sum(1, keepdims=True))


def blobs(x: Points, centres: Float[np.ndarray, "B 3"], widths: Float[np.ndarray, "B"]) -> Float[np.ndarray, "N"]:
    """A sum of Gaussians over an even ground, with which a bias shows everywhere."""
    total = np.full(len(x), 0.3)
    for centre, width in zip(centres, widths, strict=True):
        total += np.exp(-((x - centre) ** 2).sum(1) / (2 * width**2))
    return total


def tube(task: Task) -> Arrays:
    """Two frames of a peristaltic wave, with the centreline and the true motion inside the tube."""
    pair, truth, mask = simulate_tube.peristalsis(0, noise=0.0)
    assert pair.centreline is not None
    inside = mask.data[0].numpy() > 0.5
    return _pair(pair.fixed, pair.moving) | {"mask": inside, "points": pair.grid.points().numpy()[inside].astype(np.float64),
                                             "truth": truth.data.numpy()[:, inside].T, "line": pair.centreline, "radius": np.array(pair.tube_radius)}
