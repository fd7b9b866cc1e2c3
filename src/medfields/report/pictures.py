"""Pictures for a report: anatomical planes, colours, curves; as PNG bytes and SVG text, with numpy alone."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

from ..space import Grid, Volume

# name, then for image columns and rows: (world axis, letter at the start, letter at the end); the patient's right is at the left
LAYOUT = (
    ("axial", (0, "R", "L"), (1, "A", "P")),
    ("coronal", (0, "R", "L"), (2, "S", "I")),
    ("sagittal", (1, "A", "P"), (2, "S", "I")),
)
BARS_MM = (1, 2, 5, 10, 20, 50, 100)
# blue, black, red: no error is dark
DIVERGING = np.array([[0, 70, 140], [88, 164, 214], [24, 26, 30], [240, 150, 92], [178, 34, 34]], dtype=float)


@dataclass(frozen=True)
class Plane:
    """A picture plane through a grid: the world points of its square pixels, and how to label its borders."""

    name: str
    points: np.ndarray  # [H, W, 3] mm
    pixel: float  # mm
    left: str
    right: str
    top: str
    bottom: str

    @property
    def bar(self) -> tuple[int, float]:
        """A scale bar: its length in mm, and as a percentage of the picture's width."""
        width = self.points.shape[1] * self.pixel
        mm = max((b for b in BARS_MM if b <= 0.35 * width), default=BARS_MM[0])
        return mm, 100 * mm / width


def nearest_axes(grid: Grid) -> tuple[list[int], np.ndarray]:
    """For each world axis the voxel axis that runs along it best, and the sign of that run."""
    run = grid.directions
    best = max(itertools.permutations(range(3)), key=lambda p: sum(abs(run[a, p[a]]) for a in range(3)))
    return list(best), np.array([1.0 if run[a, best[a]] >= 0 else -1.0 for a in range(3)])


def planes(grid: Grid, centre: np.ndarray) -> list[Plane]:
    """The three anatomical planes of a grid through the voxel `centre`, in its own axes, with square pixels.

    The planes follow the voxel axes nearest to the anatomical ones, so an upright or oblique grid is shown without resampling;
    R/L, A/P and S/I are those of the nearest axis.
    """
    axes, sign = nearest_axes(grid)
    result = []
    for name, (across, left, right), (down, top, bottom) in LAYOUT:
        column, row = axes[across], axes[down]
        extent = grid.spacing[[row, column]] * np.array(grid.shape)[[row, column]]
        pixel = float(min(grid.spacing[row], grid.spacing[column]))
        height, width = (max(1, round(e / pixel)) for e in extent)
        index = np.empty((height, width, 3))
        index[:] = np.round(centre)
        # R, A and S lie at the far ends of x, y and z, and begin their picture axes: both run down in the world
        index[..., row] = _steps(grid.shape[row], height, -sign[down])[:, None]
        index[..., column] = _steps(grid.shape[column], width, -sign[across])[None, :]
        result.append(Plane(name, grid.world(index), pixel, left, right, top, bottom))
    return result


def _steps(voxels: int, pixels: int, sign: float) -> np.ndarray:
    """Voxel positions of pixel centres along one axis, ascending or descending."""
    at = (np.arange(pixels) + 0.5) * voxels / pixels - 0.5
    return at if sign > 0 else at[::-1]


def read_plane(volume: Volume, plane: Plane, channel: int = 0, nearest: bool = False) -> np.ndarray:
    """Values [H, W] of a volume on a plane; NaN outside its field of view. `nearest` keeps its voxels visible."""
    index = volume.grid.index(plane.points)
    top = np.array(volume.grid.shape) - 1
    inside = ((index >= -0.5 - 1e-3) & (index <= top + 0.5 + 1e-3)).all(-1)
    if nearest:
        i, j, k = np.moveaxis(np.clip(np.floor(index + 0.5), 0, top).astype(int), -1, 0)
        values = volume.data[channel].cpu().numpy()[i, j, k]
    else:
        points = torch.as_tensor(plane.points, dtype=torch.float32, device=volume.data.device)
        values = volume(points)[..., channel].detach().cpu().numpy()
    return np.where(inside, values, np.nan)


def brightness_centre(volume: Volume, channel: int = 0) -> np.ndarray:
    """Voxel index in the middle of what is bright: where pictures are cut."""
    data = np.nan_to_num(volume.data[channel].cpu().numpy().astype(np.float64))
    weight = np.clip(data - np.percentile(data, 50), 0, None)
    if weight.sum() <= 0:
        return (np.array(data.shape) - 1) / 2
    return np.array(
        [(weight.sum(tuple(b for b in range(3) if b != a)) * np.arange(n)).sum() / weight.sum() for a, n in enumerate(data.shape)]
    )


def window(volume: Volume, channel: int = 0) -> tuple[float, float]:
    """The intensities shown as black and white: 1st to 99.7th percentile, and 0 as black where the values start near it."""
    low, high = np.percentile(np.nan_to_num(volume.data[channel].cpu().numpy()), [1, 99.7])
    low = 0.0 if 0 <= low < 0.15 * high else float(low)
    return low, float(high) if high > low else low + 1.0


def gray(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[H, W] values as [H, W] bytes; NaN is black."""
    return (255 * np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)).round().astype(np.uint8)


def diverging(values: np.ndarray, top: float) -> np.ndarray:
    """[H, W] signed values in -top..top as [H, W, 3] bytes: blue, black, red; NaN is black."""
    at = np.clip((np.nan_to_num(values) / top + 1) / 2, 0, 1)
    stops = np.linspace(0, 1, len(DIVERGING))
    return np.stack([np.interp(at, stops, DIVERGING[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def png(pixels: np.ndarray, least: int = 1) -> str:
    """[H, W] or [H, W, 3] bytes as a data: URL of a PNG, its pixels repeated until the longer side has `least`."""
    times = max(1, math.ceil(least / max(pixels.shape[:2])))
    pixels = np.ascontiguousarray(np.repeat(np.repeat(pixels, times, 0), times, 1))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def colour_bar() -> str:
    """A horizontal strip of the diverging colours, as a data: URL."""
    return png(np.repeat(diverging(np.linspace(-1, 1, 256)[None], 1.0), 8, 0), least=256)


def curves(series: dict[str, list[tuple[float, float]]], width: int = 560, height: int = 220, log: bool = True,
           dots: Collection[str] = ()) -> Markup:
    """Numbers over steps as an inline SVG, one line for each name, or `dots`; on a logarithmic vertical axis values <= 0 are left out."""
    lines = {name: [(x, math.log10(y) if log else y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
             for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return Markup("")
    xs, heights = [x for points in lines.values() for x, _ in points], [y for points in lines.values() for _, y in points]
    x0, x1 = min(xs), max(max(xs), min(xs) + 1)
    y0, y1 = min(heights), max(heights)
    if y1 - y0 < 0.3:
        y0, y1 = y0 - 0.15, y1 + 0.15
    left, right, top, bottom = 62, width - 12, 12, height - 30

    def px(x: float) -> float:
        return left + (right - left) * (x - x0) / (x1 - x0)

    def py(y: float) -> float:
        return bottom - (bottom - top) * (y - y0) / (y1 - y0)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{"loss curves" if log else "curves"}">']
    for value in _log_ticks(y0, y1) if log else _ticks(y0, y1):
        y = py(math.log10(value) if log else value)
        parts.append(
            f'<line class="rule" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for i, anchor in enumerate(("start", "middle", "end")):
        x = round(x0 + (x1 - x0) * i / 2)  # where it says it is
        parts.append(f'<text class="tick" x="{px(x):.1f}" y="{bottom + 20}" text-anchor="{anchor}">{x}</text>')
    for n, (name, points) in enumerate(lines.items()):
        path = [f"{px(x):.1f},{py(y):.1f}" for x, y in points]
        circles = (f'<circle cx="{cx}" cy="{cy}" r="3"/>' for cx, cy in (at.split(",") for at in path))
        shape = "".join(circles) if name in dots or len(path) == 1 else f'<polyline points="{" ".join(path)}"/>'
        parts.append(f'<g class="line c{n % 6}">{shape}</g>')
    return Markup("".join([*parts, "</svg>"]))


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers between two."""
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 5)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """About four round values between 10^low and 10^high."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in steps if low <= math.log10(m * 10.0**e) <= high]
        if len(ticks) >= 3:
            return ticks[:: max(1, len(ticks) // 5)]
    return [10**low, 10**high]
