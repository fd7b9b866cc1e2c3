"""The report of a `register` run: how well the images lie on one another, how space was bent to bring them there, how far landmarks are off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from ..cases import Pair
from ..errors import InputError
from ..fields import Field
from ..losses.similarity import ncc
from ..space import Volume
from . import deformation, pictures
from .deformation import Cut
from .page import Compare, Figure, Page, Picture, duration, number, write_report
from .run_folder import RunFolder

COLUMNS = {"ncc": "NCC", "dice": "Dice", "seconds": "time, s"}
IMAGES = "The warped image is the moving one read at x + u(x): it should show the anatomy of the fixed image. Each image has a window of its own."
COMPARED = "Move the pointer across a picture, or the slider below: left of the line is the fixed image, right of it the warped one."
TILES = "Fixed and moving image in turn: edges should run on across the tiles."
DIFFERENCE = " Right: moving minus fixed, after the moving image was given the mean and the spread of the fixed one; black is no difference."
GRID = ("Left: a regular grid of the moving image, {} mm wide, where it comes to lie on the fixed one, as far as it moves within the plane. "
        "Right: the length of u, across the plane too.")
CHANGE = ("How much larger a small piece of the fixed image is in the moving one, det grad phi, on a logarithmic scale: blue shrinks, orange grows. "
          "Pure red is folded (det ≤ 0): {} of {} points shown{}.")
LABELS = "Outlines of the labels of the fixed image in green, and of the moving one in orange."
LANDMARKS = "Distances between where {} landmarks of the fixed image are carried and where an expert saw them, in mm, not rounded to voxels."
SIDE, DRAWN = 320, 640  # pixels: most along a side at which the warp is read, and least at which lines are drawn
SAMPLES = 20_000  # points that figures of the whole image are taken from
ALIKE = 0.5  # correlation below which intensities cannot be subtracted
GREEN, ORANGE = (99, 207, 197), (240, 150, 92)
Rivals = Mapping[str, Field]
Metrics = Mapping[str, Mapping[str, float]]
Rows = dict[str, dict[str, float | str]]
Landmarks = tuple[np.ndarray, np.ndarray]


def register_page(case: Pair, warp: Field, folder: Path, *, start: str = "", landmarks: Landmarks | None = None,
                  labels: tuple[Volume, Volume] | None = None, rivals: Rivals | None = None, metrics: Metrics | None = None,
                  notes: Sequence[str] = ()) -> Path:
    """Write `report.html` into the run folder.

    Args:
        case: the pair, with its pre-alignment.
        warp: what came out: the displacement in mm in the aligned world, warped(x) = case.aligned(x + u(x)).
        folder: of the run; configuration, versions, times and curves are read from there.
        start: how the pre-alignment was found, for instance "rigid".
        landmarks: [N, 3] mm in the fixed world and the same points in the moving world, as it is without the pre-alignment.
        labels: label maps on the grids of the fixed and of the moving image: adds their outlines.
        rivals: warps of other methods by name, in the aligned world: add columns, and rows of the table.
        metrics: method -> quantity ("folds, %", "SDlogJ", "dice", "seconds", ...) -> value, the run's own method among them; what stands here
            is not worked out again.
        notes: what was understood, assumed or doubted when the files were read.

    Raises:
        InputError: if there are landmarks in one image only.
        OutputError: if the page cannot be written.
    """
    if landmarks is not None and (landmarks[0].shape != landmarks[1].shape or landmarks[0].ndim != 2 or not len(landmarks[0])):
        shapes = f"{landmarks[0].shape} and {landmarks[1].shape}"
        raise InputError(f"landmarks of shapes {shapes} are no pairs of points", "give both images the same ones, [N, 3] mm")
    facts, metrics = RunFolder.read(folder), dict(metrics or {})
    ours = facts.method or "result"
    seen = _Seen.of(case, {**(rivals or {}), ours: warp}, ours)
    distances = {} if landmarks is None else seen.distances(*landmarks)
    rows, triples = _rows(seen, distances, metrics, facts.seconds), _triples(seen)
    page = Page(
        title=f"One {'slice' if case.grid.is_2d else 'volume'} laid on another",
        kicker=f"medfields register · {ours}",
        verdict=_verdict(seen, rows, facts.seconds, distances),
        tiles=_tiles(seen, rows, facts.seconds, distances),
        compare=[Compare(fixed, warped, "fixed", "warped") for _, (fixed, _, warped) in triples],
        compare_caption=COMPARED,
        figures=[_images(seen, triples), *_figures(seen, distances, labels)],
        table=rows,
        ours=ours,
        table_note="NCC: correlation of the intensities" + (" inside the mask" if case.mask else "") + ". TRE: distance of landmarks, sub-voxel.",
        charts=facts.charts(),
        card=facts.card(),
        config=facts.config,
        facts={
            "Input": _input(case, start),
            "Convention": {"warp": "u in mm, RAS+; warped(x) = moving(start(x + u(x)))", "landmarks": "from the fixed to the moving image"},
            **({"Noted when it was read": {str(n + 1): text for n, text in enumerate(notes)}} if notes else {}),
            **facts.tables(),
        },
    )
    return write_report(folder / "report.html", page)


@dataclass(frozen=True)
class _Seen:
    """The pair and its warps, read once on the planes that are shown and at points of the whole image."""

    case: Pair
    ours: str
    warps: Rivals
    cuts: Mapping[str, list[Cut]]  # one for each plane
    lengths: np.ndarray  # of u of our warp at the points, mm
    likeness: Mapping[str, float]  # NCC of each method; "as they are", and after the start under ""
    windows: tuple[tuple[float, float], tuple[float, float]]  # black and white of the fixed and of the moving image
    line: tuple[float, float]  # offset and slope that give the warped image the mean and the spread of the fixed one

    @classmethod
    @torch.no_grad()
    def of(cls, case: Pair, warps: Rivals, ours: str) -> _Seen:
        planes = [deformation.thinned(p, SIDE) for p in _planes(case)]
        cuts = {name: [Cut.of(w, p) for p in planes] for name, w in warps.items()}
        x = _points(case)
        fixed = case.fixed(x)[:, 0]
        aligned, plain = (Volume(v.data, v.grid, interpolation=v.interpolation, fill=float("nan")) for v in (case.aligned, case.moving))
        moved = {"": torch.zeros_like(x)} | {name: torch.cat([w(part) for part in x.split(deformation.CHUNK)]) for name, w in warps.items()}
        read = {"as they are": plain(x)[:, 0]} | {name: aligned(x + u)[:, 0] for name, u in moved.items()}
        good = {name: torch.isfinite(values) for name, values in read.items()}
        likeness = {name: float(ncc(fixed[good[name]], values[good[name]])) for name, values in read.items() if good[name].sum() > 9}
        a, b = fixed[good[ours]].numpy(), read[ours][good[ours]].numpy()
        slope = float(a.std() / max(b.std(), 1e-12)) if a.size else 1.0
        line = (float(a.mean() - slope * b.mean()) if a.size else 0.0, slope)
        windows = (pictures.window(case.fixed), pictures.window(case.moving))
        return cls(case, ours, warps, cuts, moved[ours].norm(dim=-1).numpy(), likeness, windows, line)

    @property
    def started(self) -> bool:
        return not np.allclose(self.case.start, np.eye(4), atol=1e-9)

    @torch.no_grad()
    def distances(self, fixed: Float[np.ndarray, "N 3"], moving: Float[np.ndarray, "N 3"]) -> dict[str, np.ndarray]:
        """Of landmarks, mm: as the images are (where there is a pre-alignment), before, and after each method."""
        x = torch.as_tensor(fixed, dtype=torch.float32)
        found = {"before": fixed} | {name: fixed + w(x).double().numpy() for name, w in self.warps.items()}
        made = {name: np.linalg.norm(_carried(self.case.start, y) - moving, axis=-1) for name, y in found.items()}
        return {**({"as they are": np.linalg.norm(fixed - moving, axis=-1)} if self.started else {}), **made}

    @property
    def alike(self) -> bool:
        """Whether the intensities of both images mean the same."""
        return self.likeness.get(self.ours, 0.0) >= ALIKE


def _carried(start: np.ndarray, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
    return points @ start[:3, :3].T + start[:3, 3]


def _planes(case: Pair) -> list[pictures.Plane]:
    """Three planes through the middle of the mask; the one plane of a slice."""
    middle = pictures.brightness_centre(case.fixed if case.mask is None else case.mask)
    planes = pictures.planes(case.grid, middle)
    return [max(planes, key=lambda p: p.points.shape[0] * p.points.shape[1])] if case.grid.is_2d else planes


def _points(case: Pair) -> Float[torch.Tensor, "N 3"]:
    """About SAMPLES voxels that count, evenly spread, in mm."""
    step = max(1, round((float(case.inside.sum()) / SAMPLES) ** (1 / (2 if case.grid.is_2d else 3))))
    at = np.argwhere(case.inside[::step, ::step, ::step].numpy()) * step
    at = at if len(at) else np.argwhere(case.inside.numpy())[:SAMPLES]  # a mask thinner than the step
    return torch.as_tensor(case.grid.world(at), dtype=torch.float32)


def _rows(seen: _Seen, distances: Mapping[str, np.ndarray], metrics: Metrics, seconds: float | None) -> Rows:
    rows: Rows = {}
    before = ["as they are", "before"] if seen.started else ["before"]
    for name in [*before, *seen.warps]:
        row: dict[str, float | str] = {}
        if (likeness := seen.likeness.get("" if name == "before" else name)) is not None:
            row["NCC"] = likeness
        if name in distances:
            d = distances[name]
            row |= {"TRE mean, mm": float(d.mean()), "TRE median, mm": float(np.median(d)), "TRE max, mm": float(d.max())}
        row |= {COLUMNS.get(k, k): v for k, v in metrics.get(name, {}).items()}
        if name == seen.ours and seconds:
            row.setdefault("time, s", seconds)
        rows[name] = row
    return {("after the pre-alignment" if seen.started and name == "before" else name): row for name, row in rows.items()}


def _before(seen: _Seen) -> str:
    return "after the pre-alignment" if seen.started else "before"


def _folded(seen: _Seen) -> tuple[int, int]:
    """Points of our warp that are folded, and all, on the planes and inside the mask."""
    shown = [(cut.det <= 0)[_inside(seen.case, cut.plane)] for cut in seen.cuts[seen.ours]]
    return sum(int(s.sum()) for s in shown), sum(s.size for s in shown)


def _inside(case: Pair, plane: pictures.Plane) -> np.ndarray:
    mask = case.mask or case.fixed.with_data(torch.ones_like(case.fixed.data))
    return pictures.read_plane(mask, plane, nearest=True) > 0.5


def _verdict(seen: _Seen, rows: Rows, seconds: float | None, distances: Mapping[str, np.ndarray]) -> str:
    row, before = rows[seen.ours], _before(seen)
    moved = seen.lengths
    text = f"Half of all points moved by more than {np.median(moved):.2g} mm, the farthest by {moved.max():.2g} mm"
    text += f"; finding out where took {duration(seconds)}." if seconds else "."
    if seen.alike and "NCC" in rows[before]:
        text += f" The images correlate to {float(row['NCC']):.3f}, {before} to {float(rows[before]['NCC']):.3f}."
    if distances:
        was, now = distances["before"], distances[seen.ours]
        text += f" Landmarks are {now.mean():.2f} mm off in the mean and {now.max():.2f} mm at most"
        text += f", {before} {was.mean():.2f} and {was.max():.2f} mm."
    else:
        text += " No landmarks are known: that images look alike does not yet say that anatomy lies on anatomy."
    share, (folded, shown) = row.get("folds, %"), _folded(seen)
    if not folded and not share:
        return text + (" Space is folded nowhere." if share is not None else f" None of the {shown:,} points shown is folded.")
    how = f"{float(share):.2g} % of space is" if share else f"{folded:,} of the {shown:,} points shown are"
    return text + f" {how} folded: there the warp has no inverse, and nothing should be carried through it."


def _tiles(seen: _Seen, rows: Rows, seconds: float | None, distances: Mapping[str, np.ndarray]) -> list[tuple[str, str, str]]:
    row, before, tiles = rows[seen.ours], _before(seen), []
    if distances:
        was, now = distances["before"], distances[seen.ours]
        tiles.append(("Landmarks", f"{now.mean():.2f} mm", f"mean of {len(now)}; {was.mean():.2f} mm {before}"))
    if "NCC" in row:
        tiles.append(("Correlation", f"{row['NCC']:.3f}", f"{rows[before]['NCC']:.3f} {before}" if "NCC" in rows[before] else ""))
    tiles.append(("Displacement", f"{np.median(seen.lengths):.2g} mm", f"median; {seen.lengths.max():.2g} mm at most"))
    if "folds, %" in row:
        tiles.append(("Folded", f"{float(row['folds, %']):.2g} %", f"SDlogJ {number(row['SDlogJ'])}" if "SDlogJ" in row else ""))
    return [*tiles, ("Time", duration(seconds), "")] if seconds else tiles


def _input(case: Pair, start: str) -> dict[str, str]:
    said = {name: f"{' × '.join(map(str, v.grid.shape))} voxels of {' × '.join(f'{s:.3g}' for s in v.grid.spacing)} mm"
            for name, v in (("fixed", case.fixed), ("moving", case.moving))}
    if case.mask is not None:
        said["mask"] = f"{int(case.inside.sum()):,} voxels"
    matrix, centre = case.start, case.grid.centre
    turn = np.linalg.svd(matrix[:3, :3])
    angle = np.degrees(np.arccos(np.clip((np.trace(turn[0] @ turn[2]) - 1) / 2, -1, 1)))
    shift = np.linalg.norm(_carried(matrix, centre) - centre)
    moved = f"moves the centre by {shift:.3g} mm, turns by {angle:.2g} degrees, volumes × {np.linalg.det(matrix[:3, :3]):.3g}"
    return {**said, "pre-alignment": ", ".join(filter(None, (start, moved if not np.allclose(matrix, np.eye(4)) else "none")))}


def _gray(values: np.ndarray, window: tuple[float, float], alt: str, plane: pictures.Plane) -> Picture:
    return Picture(pictures.png(pictures.gray(values, *window), 256), alt, plane)


def _triples(seen: _Seen) -> list[tuple[str, list[Picture]]]:
    """For each plane: fixed, moving before, and warped by our method."""
    case, (of_fixed, of_moving), rows = seen.case, seen.windows, []
    for cut in seen.cuts[seen.ours]:
        p = cut.plane
        rows.append((p.name, [_gray(pictures.read_plane(case.fixed, p), of_fixed, f"{p.name} plane of the fixed image", p),
                              _gray(pictures.read_plane(case.aligned, p), of_moving, f"{p.name} plane of the moving image, before", p),
                              _gray(pictures.read_plane(case.aligned, cut.moved), of_moving, f"{p.name} plane of the warped image", p)]))
    return rows


def _figures(seen: _Seen, distances: Mapping[str, np.ndarray], labels: tuple[Volume, Volume] | None) -> list[Figure]:
    figures = [_seams(seen)]
    if labels is not None:
        figures.append(_outlines(seen, *labels))
    if distances:
        before = "before" if not seen.started else "pre-aligned"
        shown = deformation.histogram({before: distances["before"], "after": distances[seen.ours]})
        alt = "; ".join(f"{name}: {deformation.said(d)}" for name, d in distances.items())
        picture = Picture(shown, f"histogram of the distances of landmarks; {alt}", None, letters=False)
        figures.append(Figure("Landmarks", LANDMARKS.format(len(distances["before"])), [""], [("", [picture])]))
    return [*figures, _grid(seen), _change(seen)]


def _images(seen: _Seen, triples: Sequence[tuple[str, list[Picture]]]) -> Figure:
    rivals = [name for name in seen.warps if name != seen.ours]
    rows = []
    for n, (plane, row) in enumerate(triples):
        cuts = {name: seen.cuts[name][n] for name in rivals}
        more = [_gray(pictures.read_plane(seen.case.aligned, cut.moved), seen.windows[1], f"{plane} plane, warped by {name}", cut.plane)
                for name, cut in cuts.items()]
        rows.append((plane, [*row, *more]))
    columns = ["fixed", f"moving, {_before(seen)}", f"warped by {seen.ours}" if rivals else "warped", *(f"warped by {name}" for name in rivals)]
    return Figure("Fixed, moving, warped", IMAGES, columns, rows)


def _seams(seen: _Seen) -> Figure:
    """Checkerboards, and where the intensities mean the same, differences, before and after."""
    case, before = seen.case, _before(seen)
    of_fixed, of_moving = seen.windows
    offset, slope = seen.line
    rows: list[tuple[str, list[Picture]]] = []
    differences: list[list[np.ndarray]] = []
    for cut in seen.cuts[seen.ours]:
        fixed = pictures.read_plane(case.fixed, cut.plane)
        read = [pictures.read_plane(case.aligned, p) for p in (cut.plane, cut.moved)]
        boards = [deformation.checkerboard(pictures.gray(fixed, *of_fixed), pictures.gray(moving, *of_moving)) for moving in read]
        rows.append((cut.plane.name, [Picture(pictures.png(b, 256), f"{cut.plane.name} checkerboard, {when}", cut.plane)
                                      for b, when in zip(boards, (before, "after"), strict=True)]))
        differences.append([offset + slope * moving - fixed for moving in read])
    columns = [f"checkerboard, {before}", "checkerboard, after"]
    if not seen.alike:
        return Figure("Do edges meet?", TILES, columns, rows)
    top = float(np.nanpercentile(np.abs(np.concatenate([d.ravel() for both in differences for d in both])), 99)) or 1e-12
    for (name, row), both in zip(rows, differences, strict=True):
        row += [Picture(pictures.png(pictures.diverging(d, top), 256), f"{name} difference, {when}", None, letters=False)
                for d, when in zip(both, (before, "after"), strict=True)]
    scale = (pictures.colour_bar(), f"−{number(top)}", f"+{number(top)}", case.fixed.unit or "(intensity of the fixed image)")
    return Figure("Do edges meet?", TILES + DIFFERENCE, [*columns, f"difference, {before}", "difference, after"], rows, scale)


def _outlines(seen: _Seen, fixed: Volume, moving: Volume) -> Figure:
    """Labels are read at the nearest voxel; those of the moving image in its own world."""
    case, rows = seen.case, []
    for cut in seen.cuts[seen.ours]:
        times = _times(cut)
        below = np.kron(pictures.gray(pictures.read_plane(case.fixed, cut.plane), *seen.windows[0]), np.ones((times, times), np.uint8))
        row = []
        for when, plane in ((_before(seen), cut.plane), ("after", cut.moved)):
            there = replace(plane, points=_carried(case.start, plane.points))
            drawn = below
            for volume, p, colour in ((fixed, cut.plane, GREEN), (moving, there, ORANGE)):
                found = np.nan_to_num(pictures.read_plane(volume, p, nearest=True))
                drawn = deformation.over(drawn, deformation.edges(np.kron(found, np.ones((times, times)))), colour)
            row.append(Picture(deformation.jpeg(drawn), f"{cut.plane.name} outlines of labels, {when}", cut.plane))
        rows.append((cut.plane.name, row))
    return Figure("Labels", LABELS, [_before(seen), "after"], rows)


def _times(cut: Cut) -> int:
    return -(-DRAWN // max(cut.det.shape))


def _grid(seen: _Seen) -> Figure:
    case, cuts = seen.case, seen.cuts[seen.ours]
    window = seen.windows[0]
    spacing = max(deformation.grid_spacing(cut) for cut in cuts)
    most = max(float(np.linalg.norm(cut.u, axis=-1).max()) for cut in cuts) or 1.0
    rows = []
    for cut in cuts:
        p, times = cut.plane, _times(cut)
        below = 0.7 * deformation.enlarged(pictures.gray(pictures.read_plane(case.fixed, p), *window), times)
        drawn = deformation.over(below.astype(np.uint8), 0.8 * deformation.grid_lines(cut, spacing, times), deformation.LINE)
        length = deformation.coloured(np.linalg.norm(cut.u, axis=-1) / most, deformation.LENGTHS)
        rows.append((p.name, [Picture(deformation.jpeg(drawn), f"{p.name} deformation grid", p),
                              Picture(pictures.png(length, 256), f"{p.name} length of the displacement", p)]))
    scale = (pictures.png(deformation.bar(deformation.LENGTHS)), "0", number(most), "mm")
    return Figure("The deformation", GRID.format(f"{spacing:g}"), ["deformation grid", "displacement"], rows, scale)


def _change(seen: _Seen) -> Figure:
    """Determinants of every method's warp, dimmed outside the mask."""
    factor = deformation.widest(np.concatenate([cut.det.ravel() for cut in seen.cuts[seen.ours]]))
    masks = [_inside(seen.case, cut.plane) for cut in seen.cuts[seen.ours]]
    shown = {seen.ours: seen.cuts[seen.ours], **seen.cuts}  # in the order of the images
    rows = []
    for n, inside in enumerate(masks):
        row = []
        for name, cuts in shown.items():
            pixels = deformation.volume_change(cuts[n].det, factor, inside)
            row.append(Picture(pictures.png(pixels, 256), f"{cuts[n].plane.name} volume change by {name}", cuts[n].plane))
        rows.append((cuts[n].plane.name, row))
    folded, points = _folded(seen)
    caption = CHANGE.format(f"{folded:,}", f"{points:,}", " inside the mask; outside it is dimmed" if seen.case.mask else "")
    colours = pictures.png(deformation.bar(deformation.SHRINKS_GROWS))
    scale = (colours, f"{1 / factor:.2g}", f"{factor:.3g}", "times the volume; white is 1, pure red folded")
    return Figure("Volume change", caption, list(shown), rows, scale)
