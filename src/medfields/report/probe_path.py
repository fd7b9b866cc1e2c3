"""A sweep in words and in a drawing: its frames as outlines, the path of the probe's face, and the box of the result."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from ..cases import Sweep
from ..space import Grid
from .geometry import FINE, FIRST, LAST, PAPER, RULE, SOFT

MOST = 24  # frames that are outlined
WIDTH = 420  # pixels of a drawing
# name, and the world axes that run to the right and upwards
SIDES = (("along z", 0, 1), ("along y", 0, 2), ("along x", 1, 2))


def describe(case: Sweep) -> dict[str, str]:
    """What a sweep says, in mm and degrees."""
    rows, columns = case.mask.shape
    gaps, turns = case.gaps(), turns_of(case)
    low, high = case.grid.box().lo, case.grid.box().hi
    table = {"frames": f"{len(case.frames)} of {rows} x {columns} pixels of {case.pixel:.3g} mm, "
                       f"{100 * float(case.mask.float().mean()):.0f} % of which the probe sees"}
    if len(gaps):
        table["gaps"] = f"{np.median(gaps):.3g} mm between frames (median), {gaps.max():.3g} mm at most"
        table["turns"] = f"{np.median(turns):.2g} degrees from frame to frame (median), {turns.max():.2g} at most"
    data = case.frames[:, case.mask]
    table["grey values"] = f"{float(data.min()):g} to {float(data.max()):g}, mean {float(data.mean()):.3g}"
    table["grid"] = f"{' x '.join(map(str, case.grid.shape))} voxels of {' x '.join(f'{s:.3g}' for s in case.grid.spacing)} mm"
    table["box"] = ", ".join(f"{n} {a:.4g} to {b:.4g}" for n, a, b in zip("xyz", low, high, strict=True)) + " mm"
    return table


def turns_of(case: Sweep) -> Float[np.ndarray, "G"]:
    """From each frame to the next: the angle between their normals, degrees."""
    n = case.affines[:, :3, 2]
    return np.degrees(np.arccos(np.clip((n[1:] * n[:-1]).sum(1), -1, 1)))


def draw(case: Sweep) -> list[Image.Image]:
    """Three pictures, seen along each axis of the world: green is the first frame, orange the last; each frame's thick side is that at the
    probe, and the line along these sides is the path of the probe's face."""
    outlines = case.outlines()
    ends = np.concatenate([case.grid.corners(), outlines.reshape(-1, 3)])
    scale = 0.86 * WIDTH / float(np.ptp(ends, axis=0).max())
    return [_side(case.grid, outlines, (ends.min(0) + ends.max(0)) / 2, scale, *side) for side in SIDES]


def _side(grid: Grid, outlines: Float[np.ndarray, "F 4 3"], middle: np.ndarray, scale: float, name: str, right: int, up: int) -> Image.Image:
    image = Image.new("RGB", (WIDTH * FINE, WIDTH * FINE), PAPER)
    pen = ImageDraw.Draw(image)

    def place(x: np.ndarray) -> list[tuple[float, float]]:
        p = (np.atleast_2d(x) - middle)[:, [right, up]] * [scale, -scale] + WIDTH / 2
        return [(float(a) * FINE, float(b) * FINE) for a, b in p]

    box = grid.corners()
    for edge in [(a, b) for a in range(8) for b in range(a) if (a ^ b).bit_count() == 1]:  # corners count in binary, an axis for each digit
        pen.line(place(box[list(edge)]), fill=RULE, width=FINE)
    n = len(outlines)
    for f in np.unique(np.linspace(0, n - 1, min(n, MOST)).round().astype(int)):
        points = place(outlines[f])
        pen.line([*points, points[0]], fill=_colour(f / max(n - 1, 1)), width=FINE)
        pen.line(points[:2], fill=_colour(f / max(n - 1, 1)), width=3 * FINE)
    face = place(outlines[:, :2].mean(1))
    for f, ends in enumerate(pairwise(face)):
        pen.line(ends, fill=_colour(f / max(n - 1, 1)), width=2 * FINE)
    image = image.resize((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    ImageDraw.Draw(image).text((10, 8), f"seen {name}: {'xyz'[right]} to the right, {'xyz'[up]} up", fill=SOFT)
    return image


def _colour(share: float) -> tuple[int, int, int]:
    a, b = np.array(FIRST), np.array(LAST)
    return tuple(int(v) for v in (a + share * (b - a)).round())  # type: ignore[return-value]
