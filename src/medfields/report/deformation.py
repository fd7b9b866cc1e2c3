"""Pictures of a deformation: checkerboards, grids, volume changes, outlines, and a histogram of distances, as bytes and SVG text."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Num, UInt8
from PIL import Image

from ..fields import Field
from ..losses.regularity import determinant
from .pictures import Plane

Pixels = UInt8[np.ndarray, "H W 3"]
FOLDED = (255, 0, 0)  # and nothing else is of this red
SHRINKS_GROWS = np.array([[16, 58, 138], [104, 168, 222], [246, 246, 244], [240, 160, 84], [168, 76, 8]], dtype=float)  # 1 is white
LENGTHS = np.array([[24, 26, 30], [22, 92, 112], [64, 164, 130], [190, 220, 120], [255, 250, 210]], dtype=float)
LINE = (120, 226, 214)
SERIES = ("#f0965c", "#63cfc5")
FACTORS = (1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
ROUND = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)  # mm
CHUNK = 1 << 15  # points whose derivatives are in memory at once


@dataclass(frozen=True)
class Cut:
    """A warp on a picture plane: the displacement u [H, W, 3] in mm, and det grad phi [H, W]."""

    plane: Plane
    u: np.ndarray
    det: np.ndarray

    @classmethod
    @torch.no_grad()
    def of(cls, warp: Field, plane: Plane) -> Cut:
        """Read a warp at the pixels; the determinants come from its own derivatives, never from differences of pixels."""
        points = torch.as_tensor(plane.points.reshape(-1, 3), dtype=torch.float32)
        parts = [warp.value_and_jacobian(x) for x in points.split(CHUNK)]
        u, slope = (torch.cat(several) for several in zip(*parts, strict=True))
        det = determinant(slope + torch.eye(3))
        return cls(plane, u.reshape(plane.points.shape).numpy(), det.reshape(plane.points.shape[:2]).numpy())

    @property
    def moved(self) -> Plane:
        """The pixels where the warp finds them in the other image."""
        return replace(self.plane, points=self.plane.points + self.u)

    @property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """[3] mm from pixel to pixel, down and across."""
        p = self.plane.points
        return ((p[-1, 0] - p[0, 0]) / max(len(p) - 1, 1), (p[0, -1] - p[0, 0]) / max(p.shape[1] - 1, 1))


def thinned(plane: Plane, most: int) -> Plane:
    """Every n-th pixel of a plane, so that it has at most `most` along a side."""
    n = -(-max(plane.points.shape[:2]) // most)
    return replace(plane, points=plane.points[n // 2 :: n, n // 2 :: n], pixel=plane.pixel * n)


def coloured(at: Float[np.ndarray, "H W"], stops: np.ndarray) -> Pixels:
    """Values from 0 to 1 in a scale of evenly spaced colours."""
    where = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(at, where, stops[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def bar(stops: np.ndarray) -> Pixels:
    """A horizontal strip of a scale's colours."""
    return np.repeat(coloured(np.linspace(0, 1, 256)[None], stops), 8, 0)


def checkerboard(a: Num[np.ndarray, "H W"], b: Num[np.ndarray, "H W"], tiles: int = 8) -> Num[np.ndarray, "H W"]:
    """Tiles of two pictures in turn, the first in the upper left; the shorter side has `tiles` of them."""
    side = max(1.0, min(a.shape) / tiles)
    i, j = (np.floor(np.arange(n) / side).astype(int) for n in a.shape)
    return np.where((i[:, None] + j[None, :]) % 2 == 0, a, b)


def widest(det: np.ndarray) -> float:
    """The round factor f for which a scale from 1/f to f shows all but one percent of the determinants that are not folded."""
    good = det[det > 0]
    far = float(np.exp(np.percentile(np.abs(np.log(good)), 99))) if good.size else 1.0
    return next((f for f in FACTORS if f >= far), FACTORS[-1])


def volume_change(det: Float[np.ndarray, "H W"], factor: float, inside: Bool[np.ndarray, "H W"] | None = None) -> Pixels:
    """Determinants on a logarithmic scale from 1/factor (blue) over 1 (white) to factor (orange).

    Folds, det <= 0, are pure red wherever they lie. What is not `inside` is dimmed.
    """
    folded = det <= 0
    level = np.log(np.where(folded, 1.0, det)) / np.log(factor)
    pixels = coloured((level + 1) / 2, SHRINKS_GROWS)
    if inside is not None:
        pixels = np.where(inside[..., None], pixels, (0.35 * pixels).astype(np.uint8))
    pixels[folded] = FOLDED
    return pixels


def enlarged(values: Num[np.ndarray, "H W"], times: int) -> Float[np.ndarray, "H2 W2"]:
    """A picture with `times` as many pixels each way, linear in between."""
    size = (values.shape[1] * times, values.shape[0] * times)
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def grid_spacing(cut: Cut, lines: int = 24) -> float:
    """mm between the lines of a grid that has about `lines` of them."""
    across = max(n * float(np.linalg.norm(s)) for n, s in zip(cut.det.shape, cut.steps, strict=True))
    return float(min(ROUND, key=lambda mm: abs(np.log(across / lines / mm))))


def grid_lines(cut: Cut, spacing: float, times: int) -> Float[np.ndarray, "H2 W2"]:
    """Opacity of the lines phi_down = n spacing and phi_across = n spacing, on pixels `times` as fine as the cut's.

    They are the pull-back of a regular grid of the moving image onto the fixed one, seen in the plane: a point on a line comes from that line.
    """
    shown = np.zeros([n * times for n in cut.det.shape])
    for axis, step in enumerate(cut.steps):
        length = float(np.linalg.norm(step))
        n = cut.det.shape[axis]
        at = ((np.arange(n * times) + 0.5) / times - n / 2) * length  # from the middle of the picture
        places = (at[:, None] if axis == 0 else at[None, :]) + enlarged(cut.u @ (step / length), times)
        c = places / spacing
        slope = np.hypot(*np.gradient(c))  # lines per pixel
        distance = np.abs(c - np.round(c)) / np.maximum(slope, 1e-6)
        shown = np.maximum(shown, np.clip(1.3 - distance, 0, 1))
    return shown


def over(pixels: UInt8[np.ndarray, "H W *_"], opacity: np.ndarray, colour: tuple[int, int, int]) -> Pixels:
    """A colour laid over gray or coloured pixels with an opacity [H, W] from 0 to 1."""
    below = (np.repeat(pixels[..., None], 3, -1) if pixels.ndim == 2 else pixels).astype(float)
    share = opacity.astype(float)[..., None]
    return ((1 - share) * below + share * np.array(colour)).round().astype(np.uint8)


def jpeg(pixels: Pixels) -> str:
    """A large drawing as a data: URL of a JPEG, ten times as fast as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def edges(labels: Num[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels that have a neighbour, beside, above or below, with another label: lines two pixels wide."""
    found = np.zeros(labels.shape, dtype=bool)
    beside, below = labels[:, :-1] != labels[:, 1:], labels[:-1] != labels[1:]
    found[:, :-1] |= beside
    found[:, 1:] |= beside
    found[:-1] |= below
    found[1:] |= below
    return found


def said(distances: np.ndarray) -> str:
    """Mean, median and greatest of distances in mm."""
    return f"mean {distances.mean():.2f}, median {np.median(distances):.2f}, max {distances.max():.2f} mm"


def histogram(series: Mapping[str, Float[np.ndarray, "N"]], width: int = 380, height: int = 270) -> str:
    """At most two sets of distances in mm as bars over common bins, with their means marked, as a data: URL of an SVG on black."""
    top = max(float(v.max()) for v in series.values()) or 1.0
    step = next((s for s in ROUND if top / s <= 20), ROUND[-1])
    edge = step * np.arange(int(top / step) + 2)
    counts = {name: np.histogram(v, edge)[0].tolist() for name, v in series.items()}
    most = max(max(c) for c in counts.values())
    left, right, upper, lower = 34, width - 12, 24 + 17 * len(series), height - 38

    def px(mm: float) -> float:
        return left + (right - left) * mm / float(edge[-1])

    def py(count: float) -> float:
        return lower - (lower - upper) * count / most

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
             'font-family="sans-serif" font-size="11"><rect width="100%" height="100%"/>']
    for count in range(0, most + 1, max(1, -(-most // 5))):
        parts.append(f'<path d="M{left} {py(count):.1f}H{right}" stroke="#333"/>'
                     f'<text x="{left - 6}" y="{py(count) + 4:.1f}" text-anchor="end" fill="#9aa2ab">{count}</text>')
    for mm in edge[:: max(1, -(-len(edge) // 6))]:
        parts.append(f'<text x="{px(mm):.1f}" y="{lower + 15}" text-anchor="middle" fill="#9aa2ab">{mm:.3g}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{height - 8}" text-anchor="middle" fill="#9aa2ab">mm between landmarks</text>')
    for n, ((name, bars), colour) in enumerate(zip(counts.items(), SERIES, strict=False)):
        gap, mean = (px(step) - px(0)) / len(series), px(float(series[name].mean()))
        parts += [f'<rect class="s{n}" x="{px(edge[k]) + n * gap + 0.5:.1f}" y="{py(c):.1f}" width="{max(gap - 1, 1):.1f}" '
                  f'height="{lower - py(c):.1f}" fill="{colour}"/>' for k, c in enumerate(bars) if c]
        parts.append(f'<path d="M{mean:.1f} {upper - 6}V{lower}" stroke="{colour}" stroke-dasharray="4 3"/>'
                     f'<text x="{right}" y="{18 + 17 * n}" text-anchor="end" fill="{colour}">{name}: {said(series[name])}</text>')
    return "data:image/svg+xml;base64," + base64.b64encode("".join([*parts, "</svg>"]).encode()).decode()
