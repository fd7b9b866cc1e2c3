"""Tracked sweeps: frames that no method was shown are predicted at their true places.

A result is a function: a field is read at the pixels of a held-out frame, a volume between its voxels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import plugins
from ...cases import Sweep
from ...fields import MLP, Field, GridEncoding
from ...io import write_field
from ...solve import Method, Run
from ...space import Volume
from .. import measure
from ..families import PLAIN, Ablation
from ..scans_us import Task, acquire, scan_name, sweeps

__all__ = ["ABLATIONS", "ALONE", "TASKS", "acquire", "configured", "measured", "plan", "scan_name", "score"]

_ALL = (
    Task("spine", "spine phantom, 21 frames about 1.6 mm apart", "h_ultrasound/SpinePhantomFreehand.igs.mha"),
    Task("nwire", "wires in water, 97 frames about 0.4 mm apart", "h_ultrasound/NwirePhantomFreehand.igs.mha"),
)
TASKS = {task.name: task for task in _ALL}
ALONE = "frames alone"
_COARSE = MLP(GridEncoding(levels=8, finest_mm=3.0, coarsest_mm=16.0, log2_table=13), width=32, depth=1)
ABLATIONS = (
    Ablation(ALONE, tuple(TASKS), ("compounding", "us-field"), {"between": 0.0}),
    Ablation(f"{ALONE}, cells of 3 mm", tuple(TASKS), ("us-field",), {"between": 0.0, "net": _COARSE}),
)


def configured(method: str, variant: str) -> Method:
    """A method with the hyper-parameters it has in the bench."""
    overrides = next((a.overrides for a in ABLATIONS if a.name == variant and method in a.methods), {})
    return plugins.load(method)(**overrides)


def plan(task: Task, methods: Sequence[str] = (), ablations: bool = True) -> Iterator[tuple[str, str]]:
    """The methods and variants that a task asks for: all of the kind."""
    names = list(methods) or [name for name, entry in plugins.entries().items() if entry.task == "ultrasound"]
    for name in names:
        yield name, PLAIN
        for a in ABLATIONS if ablations else ():
            if task.name in a.tasks and name in a.methods:
                yield name, a.name


def measured(task: Task, scan: Path, seed: int, method: str, variant: str) -> dict[str, Any]:
    """One run: scores, size, seconds and memory."""
    shown, held = sweeps(task, scan)
    solver, run = configured(method, variant), Run(seed=seed)
    result, row = measure.timed(lambda: solver.solve(shown, run))
    return row | score(result, held) | {"bytes": stored(result), "share": stored(result) / (4 * shown.grid.size)}


def score(result: Callable[[Tensor], Tensor], held: Sweep) -> dict[str, float]:
    """Means over the held-out frames: PSNR with the range of the frame's counted pixels, and their correlation with the prediction (0 for
    a constant one)."""
    psnr, ncc = [], []
    for n in range(len(held.frames)):
        truth, found = held.frames[n][held.mask].double(), held.resliced(result, n).double()
        rms = (found - truth).square().mean().sqrt().clamp_min(1e-9)
        psnr.append(float(20 * torch.log10((truth.max() - truth.min()) / rms)))
        ncc.append(float(torch.corrcoef(torch.stack([found, truth]))[0, 1]) if found.std() > 0 else 0.0)
    return {"psnr": float(np.mean(psnr)), "ncc": float(np.mean(ncc))}


def stored(result: Field | Volume) -> int:
    """Bytes: of a field's file, and of a volume's voxels as 32-bit numbers."""
    if isinstance(result, Volume):
        return 4 * result.data.numel()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.field"
        write_field(result, path)
        return path.stat().st_size
