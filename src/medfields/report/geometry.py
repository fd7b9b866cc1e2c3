"""A geometry in words and in a drawing: source, detector, first and last view, their outer rays, and the box of the result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..space import Geometry, Grid
from ..space.orbit import across, ahead, angles, axis_of, distances, fan_angle, field_of_view, magnification

PAPER, INK, SOFT, RULE = (251, 250, 248), (28, 31, 35), (93, 100, 109), (205, 203, 198)
FIRST, LAST = (11, 110, 105), (194, 84, 45)
FINE = 2  # drawn so many times larger, then averaged: smooth lines
Point = tuple[float, float]


def describe(geometry: Geometry, grid: Grid) -> dict[str, str]:
    """What a geometry says, in the words of the field and in mm and degrees."""
    middle, radius = field_of_view(geometry)
    turned = np.round(np.degrees(angles(geometry)), 4)
    steps = np.diff(turned)
    rows, columns = geometry.shape
    pitch = np.median(geometry.pitch, axis=0)
    kind = "parallel" if geometry.beam == "parallel" else "fan" if rows == 1 else "cone"
    table = {"beam": kind + (" beam, curved detector" if geometry.arc else " beam, flat detector" if kind != "parallel" else " beam")}
    mixed = bool((steps > 0).any() and (steps < 0).any())
    if mixed:  # in the order of the file the steps say nothing
        turned = np.sort(turned)
        steps = np.diff(turned)
    step = f"{np.median(np.abs(steps)):.3g} degrees apart" if len(steps) else "one view"
    if len(steps) and np.ptp(np.abs(steps)) > 0.02 * np.abs(steps).max() + 1e-3:
        step += f" ({np.abs(steps).min():.3g} to {np.abs(steps).max():.3g})"
    step += ", not in this order" if mixed else ""
    table["views"] = f"{geometry.views}, {step}"
    table["angles"] = f"{turned[0] + 0.0:.4g} to {turned[-1]:.4g} degrees, an arc of {np.ptp(turned):.4g}, about {_axis(axis_of(geometry))}"
    table["detector"] = f"{columns} columns x {rows} row{'s' * (rows != 1)}"
    table["pitch"] = f"{pitch[0]:.4g} mm between columns" + (f", {pitch[1]:.4g} mm between rows" if rows > 1 else "")
    if geometry.beam == "cone":
        near, far = distances(geometry)
        table["distances"] = f"source to isocentre {near:.5g} mm, source to detector {far:.5g} mm"
        table["magnification"] = f"{magnification(geometry):.4g}, fan angle {np.degrees(fan_angle(geometry)):.3g} degrees"
    table["isocentre"] = f"{', '.join(f'{v:.4g}' for v in np.round(middle, 4) + 0.0)} mm"
    table["field of view"] = f"{2 * radius:.4g} mm across"
    table["grid"] = f"{' x '.join(map(str, grid.shape))} voxels of {' x '.join(f'{s:.3g}' for s in grid.spacing)} mm"
    low, high = grid.box().lo, grid.box().hi
    table["box"] = ", ".join(f"{n} {a:.4g} to {b:.4g}" for n, a, b in zip("xyz", low, high, strict=True)) + " mm"
    table["rays in the box"] = f"{100 * geometry.sees(grid.box()).mean():.0f} %"
    return table


def _axis(axis: np.ndarray) -> str:
    names = ("x (left to right)", "y (back to front)", "z (feet to head)")
    best = int(np.abs(axis).argmax())
    return names[best] if abs(axis[best]) > 1 - 1e-9 else f"({', '.join(f'{v:.3f}' for v in axis)})"


def draw(geometry: Geometry, grid: Grid, width: int = 560) -> list[Image.Image]:
    """Pictures of the views: along their axis, as axial images are looked at; and from the side where there are several rows.

    Green is the first view, orange the last: source, central and outer rays, detector. The grey path is that of the source, the square
    the box of the result, the circle what the views see between them.
    """
    axis = axis_of(geometry)
    k = int(np.abs(axis).argmax())
    up = np.eye(3)[1 if k == 2 else 2]
    up = up - (up @ axis) * axis
    up /= np.linalg.norm(up)
    right = np.cross(axis, up)  # the reader's right is the patient's left where the axis points to the head
    pictures = [_view(geometry, grid, right, up, "seen along the axis of the views", width, circle=True)]
    if geometry.shape[0] > 1:
        beam = ahead(geometry)[0] - (ahead(geometry)[0] @ axis) * axis
        pictures.append(_view(geometry, grid, beam / np.linalg.norm(beam), axis, "seen from the side, the first beam to the right", width))
    return pictures


def _view(geometry: Geometry, grid: Grid, right: np.ndarray, up: np.ndarray, title: str, width: int, circle: bool = False) -> Image.Image:
    middle, radius = field_of_view(geometry)
    scene = _scene(geometry, grid, circle, middle, radius)
    flat = {name: np.stack([(p - middle) @ right, (p - middle) @ up], -1) for name, p in scene.items()}
    every = np.concatenate([p.reshape(-1, 2) for p in flat.values()])
    centre, half = (every.max(0) + every.min(0)) / 2, np.maximum(np.ptp(every, axis=0) / 2, 1e-9)
    edge, head = 26, 34
    scale = (width / 2 - edge) / max(half[0], 0.45 * half[1])
    height = int(2 * half[1] * scale + 2 * edge) + head

    def at(p: np.ndarray) -> list[Point]:
        x, y = width / 2 + (p[..., 0] - centre[0]) * scale, head + (height - head) / 2 - (p[..., 1] - centre[1]) * scale
        return [(FINE * a, FINE * b) for a, b in zip(np.ravel(x), np.ravel(y), strict=True)]

    image = Image.new("RGB", (FINE * width, FINE * height), PAPER)
    pen = ImageDraw.Draw(image)
    _paint(pen, flat, at)
    font = ImageFont.load_default(size=FINE * 13)
    pen.text((FINE * 14, FINE * 10), title, SOFT, font)
    for n, (name, colour) in enumerate((("first view", FIRST), ("last view", LAST))):
        pen.text((FINE * (width - 150 + 76 * n), FINE * 10), name, colour, font)
    _letters(pen, right, up, width, height, head, font)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _scene(geometry: Geometry, grid: Grid, circle: bool, middle: np.ndarray, radius: float) -> dict[str, np.ndarray]:
    """Points [..., 3] mm of all that is drawn. A parallel beam has no source: its rays start and end a little outside the field of view."""
    scene = {"box": grid.corners()[[0, 1, 3, 2, 0, 4, 5, 7, 6, 4, 5, 1, 3, 7, 6, 2]]}
    if circle:
        turn = np.linspace(0, 2 * np.pi, 181)[:, None]
        e1, e2 = across(axis_of(geometry))
        scene["circle"] = middle + radius * (np.cos(turn) * e1 + np.sin(turn) * e2)
    if geometry.beam == "cone":
        scene["path"] = geometry.source
    reach = 1.3 * max(radius, float(grid.box().sides.max()) / 2)
    for name, view in (("first", 0), ("last", geometry.views - 1)):
        rows, columns = geometry.shape
        pixels = geometry.pixels(view)
        outer = np.stack([pixels[rows // 2, 0], pixels[rows // 2, columns // 2], pixels[rows // 2, -1], pixels[0, columns // 2],
                          pixels[-1, columns // 2]])
        if geometry.beam == "parallel":
            d = geometry.source[view]
            shift = (reach - (outer - middle) @ d)[:, None] * d
            start, outer, screen = outer + shift - 2 * reach * d, outer + shift, pixels + shift[:1]
        else:
            start, screen = np.broadcast_to(geometry.source[view], outer.shape), pixels
        scene[f"{name} rays"] = np.stack([start, outer], 1)
        scene[f"{name} detector"] = np.concatenate([screen[0], screen[-1, ::-1], screen[0, :1]])
    return scene


def _paint(pen: ImageDraw.ImageDraw, flat: dict[str, np.ndarray], at: Callable[[np.ndarray], list[Point]]) -> None:
    if "circle" in flat:
        dots = at(flat["circle"])
        for n in range(0, len(dots) - 1, 4):
            pen.line(dots[n : n + 3], SOFT, FINE)
    pen.line(at(flat["box"]), INK, FINE, joint="curve")
    if "path" in flat:
        path = at(flat["path"])
        pen.line(path, RULE, FINE)
        for x, y in path:
            pen.ellipse((x - FINE, y - FINE, x + FINE, y + FINE), SOFT)
    for name, colour in (("last", LAST), ("first", FIRST)):
        rays = flat[f"{name} rays"]
        light = tuple((c + 2 * p) // 3 for c, p in zip(colour, PAPER, strict=True))
        for n, ray in enumerate(rays):
            pen.line(at(ray), light if n == 1 else colour, FINE)
        pen.line(at(flat[f"{name} detector"]), colour, 3 * FINE)
        if "path" in flat:  # there is a source
            x, y = at(rays[0, 0])[0]
            pen.ellipse((x - 5 * FINE, y - 5 * FINE, x + 5 * FINE, y + 5 * FINE), colour)


def _letters(pen: ImageDraw.ImageDraw, right: np.ndarray, up: np.ndarray, width: int, height: int, head: int,
             font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    """R, L, A, P, S and I at the borders, where a border is one of them."""
    for direction, x, y in ((right, width - 12, (height + head) / 2), (-right, 12, (height + head) / 2), (up, width / 2, head + 6),
                            (-up, width / 2, height - 10)):
        k = int(np.abs(direction).argmax())
        if abs(direction[k]) > 0.9:
            pen.text((FINE * x, FINE * y), ("RAS" if direction[k] > 0 else "LPI")[k], SOFT, font, anchor="mm")
