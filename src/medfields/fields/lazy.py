"""LazyVolume: a function of the world, seen as an array that is computed where it is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..space import Grid, Volume


class LazyVolume:
    """Array of shape [C, I, J, K], float32, of a field at the voxel centres of a grid.

    Indexing computes the touched slabs along I only; `numpy.asarray`, dask and zarr accept it. Nothing is kept.
    """

    dtype = np.dtype(np.float32)
    ndim = 4

    def __init__(self, field: nn.Module, grid: Grid, chunk: int):
        self.field, self.grid, self.chunk = field, grid, chunk
        self.channels: int = getattr(field, "channels", 1)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.channels, *self.grid.shape)

    def slabs(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Pairs (first i, values [C, i, J, K]) that cover start <= i < stop."""
        stop = self.grid.shape[0] if stop is None else stop
        step = max(1, self.chunk // (self.grid.shape[1] * self.grid.shape[2]))
        device = next((p.device for p in self.field.parameters()), torch.device("cpu"))
        for i in range(start, stop, step):
            points = self.grid.slab(i, min(i + step, stop), device)
            flat = points.reshape(-1, 3)
            with torch.inference_mode():
                values = torch.cat([self.field(part) for part in flat.split(self.chunk)])
            yield i, values.reshape(*points.shape[:-1], -1).movedim(-1, 0)

    def __getitem__(self, key: Any) -> np.ndarray | np.float32:
        key = key if isinstance(key, tuple) else (key,)
        if Ellipsis in key:
            at = key.index(Ellipsis)
            key = key[:at] + (slice(None),) * (4 - len(key) + 1) + key[at + 1:]
        key = key + (slice(None),) * (4 - len(key))
        rows = range(self.grid.shape[0])[key[1]]
        lo, hi = (rows, rows + 1) if isinstance(rows, int) else (min(rows, default=0), max(rows, default=-1) + 1)
        parts = [v.cpu().numpy() for _, v in self.slabs(lo, hi)]
        block = np.concatenate(parts, 1) if parts else np.zeros((self.channels, 0, *self.grid.shape[1:]), np.float32)
        inner = 0 if isinstance(rows, int) else [r - lo for r in rows]
        return block[:, inner][(key[0], *((key[2], key[3]) if isinstance(rows, int) else (slice(None), key[2], key[3])))]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...]).astype(dtype or self.dtype, copy=False)

    def volume(self, on_slab: Callable[[int, int], None] | None = None) -> Volume:
        """All values as a Volume. `on_slab(done, of)` is told how far it is."""
        data = torch.empty(self.shape)
        for i, v in self.slabs():
            data[:, i:i + v.shape[1]] = v.cpu()
            if on_slab is not None:
                on_slab(i + v.shape[1], self.shape[1])
        return Volume(data, self.grid, getattr(self.field, "unit", ""))
