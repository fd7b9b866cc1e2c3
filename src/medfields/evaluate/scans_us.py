"""The measurements of the ultrasound bench: real tracked sweeps of phantoms. Every fifth frame is never shown and judges the result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..cases import Sweep
from ..io import atomic
from ..io.sweep import read_sweep
from ..space import Grid
from .families import Score, data_folder

CODE = 1  # counts changes of how sweeps are read and cut
EVERY = 5  # frames, of which one is held out
CALIBRATION = "h_ultrasound/PlusDeviceSet_SpinePhantomFreehandReconstructionOnly.xml"  # the probe of both sweeps


@dataclass(frozen=True)
class Task:
    """One line of the evidence.

    Args:
        name: in rows and on the command line.
        title: what RESULTS.md calls it.
        file: the sweep, below the data folder.
        spacing: mm of the lattice of the result.
        scores: the first ranks the methods.
    """

    name: str
    title: str
    file: str
    spacing: float = 0.5
    scores: tuple[Score, ...] = (Score("psnr", "PSNR", "dB"), Score("ncc", "NCC", digits=4))


def scan_name(task: Task) -> str:
    """The measurements: a hash of all that they depend on."""
    what = (task.file, CALIBRATION, task.spacing, EVERY, CODE)
    return f"us-{task.name}-{hashlib.sha256(repr(what).encode()).hexdigest()[:12]}"


def acquire(task: Task, cache: Path) -> Path:
    """The sweep as arrays: frames [F, I, J] as stored, affines [F, 4, 4], mask [I, J] and the lattice's shape and affine; read once."""
    path = cache / f"{scan_name(task)}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        tracked = read_sweep(data_folder() / task.file, calibration=data_folder() / CALIBRATION)
        case = Sweep.of(tracked, spacing=task.spacing)
        with atomic(path) as part, part.open("wb") as file:
            np.savez_compressed(file, frames=tracked.frames, affines=case.affines, mask=case.mask.numpy(), shape=np.array(case.grid.shape),
                                affine=case.grid.affine)
    return path


def sweeps(task: Task, scan: Path) -> tuple[Sweep, Sweep]:
    """What methods are shown, and the frames that judge them; the lattice holds both."""
    with np.load(scan, allow_pickle=False) as file:
        arrays = dict(file)
    shape = tuple(int(n) for n in arrays["shape"])
    grid = Grid((shape[0], shape[1], shape[2]), arrays["affine"])
    frames = torch.as_tensor(np.ascontiguousarray(arrays["frames"])).float()
    return Sweep(frames, arrays["affines"], torch.as_tensor(arrays["mask"]), grid, task.name).without(EVERY, EVERY)
