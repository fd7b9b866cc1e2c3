"""What several commands need once torch is loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import plugins
from ..errors import InputError, OutOfMemory, OutputError, UnknownName
from ..fields import Field
from ..io import read_field
from ..operators.slices import slice_quadrature


class Slope(nn.Module):
    """The gradient of a field per mm, as a function of the world: its magnitude for each channel, or its components."""

    def __init__(self, field: Field, kind: Literal["magnitude", "vector"]):
        super().__init__()
        self.field, self.kind = field, kind
        self.channels = field.channels * (field.box.ndim if kind == "vector" else 1)
        self.unit = f"{field.unit}/mm" if field.unit else "1/mm"

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        _, slope = self.field.value_and_jacobian(x)
        return slope.norm(dim=-1) if self.kind == "magnitude" else slope.flatten(-2)


class Thick(nn.Module):
    """A field as slices measure it: its average across them, under a Gaussian profile.

    Args:
        field: of three coordinates.
        normal: unit vector across the slices.
        thickness: mm, full width at half maximum.
        nodes: at which the field is read for each voxel.
    """

    def __init__(self, field: Field, normal: Float[np.ndarray, "3"], thickness: float, nodes: int):
        super().__init__()
        z, w = slice_quadrature("gauss", thickness, nodes)
        self.field, self.channels, self.unit = field, field.channels, field.unit
        self.steps, self.weights = torch.tensor(z[:, None] * normal, dtype=torch.float32), w.tolist()

    def forward(self, x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch C"]:
        # Node after node: all at once would need so many times the memory.
        total = self.weights[0] * self.field(x + self.steps[0].to(x))
        for step, weight in zip(self.steps[1:], self.weights[1:], strict=True):
            total = total + weight * self.field(x + step.to(x))
        return total


def use_threads(n: int | None) -> None:
    """Let torch and the Numba kernels use `n` threads; None leaves them alone."""
    if n is None:
        return
    if not 1 <= n <= 4096:
        raise InputError(f"--threads must be at least 1, got {n}")
    torch.set_num_threads(n)  # the kernels follow torch


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to be told how many steps of how many are done; it shows a bar once two seconds have passed."""
    from ..solve import Event, Terminal

    terminal, start = Terminal(), time.monotonic()

    def tell(done: int, total: int) -> None:
        seconds = time.monotonic() - start
        terminal.event(Event(what, done, total, seconds, {}, seconds * (total - done) / done if done else float("nan"), done == total))

    try:
        yield tell
    finally:
        terminal.close()


def require_memory(size: int, what: str, hint: str) -> None:
    """Raise OutOfMemory if `size` bytes cannot fit into this machine, before anything is computed."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 36
    if size > total:
        raise OutOfMemory(f"{what} needs {size / 2**30:.3g} GiB, this machine has {total / 2**30:.3g}", hint)


def spare(outputs: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Raise OutputError if a result would take the place of a file it is made from, or of the folder of such a file: a scan may be
    the only copy."""
    read = [part for path in inputs if path for part in (Path(path), Path(path).parent) if part.exists()]
    for path in outputs:
        if path.exists() and any(path.samefile(other) for other in read):
            raise OutputError(f"{path} is, or holds, an input of this command and would be overwritten", "choose another name with -o")


def read_any_field(path: str) -> Field:
    """A .field file, also one whose spec is written in the file of its method: installed methods are then loaded, and
    only those; a name from the file is never imported."""
    try:
        return read_field(path)
    except UnknownName:
        for name in plugins.entries():
            plugins.load(name)
        return read_field(path)
