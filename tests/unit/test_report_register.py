"""The report of register: its figures are those of the pair and the warp, folds are red, and its drawings measure millimetres."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medfields.cases import Pair
from medfields.cases.pair import toy_motion
from medfields.errors import InputError
from medfields.fields import Field
from medfields.fields.warp import Affine, displacement, from_lattice
from medfields.losses.similarity import ncc
from medfields.report import deformation, pictures
from medfields.report.deformation import Cut
from medfields.report.register import register_page
from medfields.space import Grid, Volume

SIZE = 20


def moved(pair: Pair, factor: float = 1.0) -> Field:
    """`toy_motion` times a factor, on the lattice of the fixed image."""
    u = toy_motion(pair.grid.points().numpy().astype(np.float64), SIZE)
    return from_lattice(Volume(factor * np.moveaxis(u, -1, 0), pair.grid))


def mirrored(grid: Grid) -> Field:
    """x -> -x for |x| < 6 mm: a fold there, and nowhere else."""
    x = grid.points().numpy()[..., 0]
    u = np.zeros((3, *grid.shape))
    u[0] = np.where(np.abs(x) < 6, -2 * x, np.where(np.abs(x) < 14, 3 * np.sign(x) * (np.abs(x) - 14), 0))
    return from_lattice(Volume(u, grid))


def flat(pair: Pair) -> Pair:
    """The middle slices of a pair, as 2-D images."""
    grid = pair.grid.crop((0, 0, SIZE // 2), (SIZE, SIZE, 1))
    fixed, moving = (Volume(v.data[..., SIZE // 2 : SIZE // 2 + 1], grid) for v in (pair.fixed, pair.moving))
    return Pair(fixed, moving)


def images(page: str, alt: str) -> list[np.ndarray]:
    found = re.findall(r'<img[^>]* src="data:image/(?:png|jpeg);base64,([^"]+)" alt="([^"]*)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(s)))) for s, told in found if alt in told]


def words(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.partition("<header>")[2])))


def row_of(page: str, method: str) -> list[str]:
    (cells,) = re.findall(rf"<tr[^>]*><th>{method}</th>(.*?)</tr>", page)
    return re.findall(r">([^<]*)</td>", cells)


def is_red(pixels: np.ndarray) -> np.ndarray:
    return (pixels == np.array(deformation.FOLDED)).all(-1)


def test_figures_are_those_of_the_pair_and_the_warp(tmp_path: Path) -> None:
    pair = Pair.toy()
    page = register_page(pair, moved(pair), tmp_path, metrics={"result": {"folds, %": 0.0, "SDlogJ": 0.031, "seconds": 7.0}}).read_text()
    fixed = pair.fixed.data[0][pair.inside]
    assert row_of(page, "before")[0] == f"{float(ncc(fixed, pair.moving.data[0][pair.inside])):.4f}"
    assert float(row_of(page, "result")[0]) > 0.999 > float(row_of(page, "before")[0])
    length = np.linalg.norm(toy_motion(pair.points().numpy().astype(float), SIZE), axis=-1)
    text = words(page)
    assert f"Half of all points moved by more than {np.median(length):.2g} mm, the farthest by {length.max():.2g} mm" in text
    for told in ("axial", "coronal", "sagittal", "Space is folded nowhere.", "No landmarks are known", "0 of 768 points shown inside the mask",
                 "time, s", "SDlogJ 0.0310", "pre-alignment none"):
        assert told in text, told
    assert not is_red(np.concatenate(images(page, "volume change"))).any()
    before, after = (np.abs(np.stack(images(page, f"difference, {when}")).astype(int) - pictures.DIVERGING[2].astype(int)).mean()
                     for when in ("before", "after"))
    assert after < 0.2 * before


def test_folds_are_red_where_they_are_and_counted(tmp_path: Path) -> None:
    pair = Pair.toy().replaced(mask=None)
    warp = mirrored(pair.grid)
    page = register_page(pair, warp, tmp_path, rivals={"good": moved(pair)}).read_text()
    shown = 3 * SIZE**2
    with torch.no_grad():
        det = torch.linalg.det(torch.eye(3) + warp.value_and_jacobian(pair.grid.points()[:, SIZE // 2, SIZE // 2])[1]).numpy()
    times = len(images(page, "axial volume change by result")[0]) // SIZE
    red = is_red(images(page, "axial volume change by result")[0])
    assert np.array_equal(red[times // 2 :: times, times // 2 :: times], np.tile(det[::-1] <= 0, (SIZE, 1)))  # the patient's right is at the left
    assert 0 < (det <= 0).sum() < SIZE // 2 and not is_red(images(page, "volume change by good")[0]).any()
    counted = int(re.search(r"\(det ≤ 0\): (\d+) of (\d+)", page)[1])  # type: ignore[index]
    across = is_red(images(page, "sagittal volume change by result")[0])[times // 2 :: times, times // 2 :: times]
    assert counted == 2 * SIZE * int((det <= 0).sum()) + int(across.sum())
    assert f"{counted} of the {shown:,} points shown are folded: there the warp has no inverse" in words(page)
    told = words(register_page(pair, warp, tmp_path, metrics={"result": {"folds, %": 12.5}}).read_text())
    assert "12 % of space is folded" in told


def test_landmarks_before_after_the_start_and_after(tmp_path: Path) -> None:
    pair = Pair.toy()
    start = np.eye(4)
    start[:3, 3] = (3.0, 0, 0)
    placed = Grid(pair.moving.grid.shape, start @ pair.moving.grid.affine)
    case = dataclasses.replace(pair, moving=Volume(pair.moving.data, placed), start=start)
    x = np.random.default_rng(0).uniform(-12, 12, (30, 3))
    y = x + toy_motion(x, SIZE) + (3.0, 0, 0)
    page = register_page(case, moved(pair), tmp_path, start="moments", landmarks=(x, y), rivals={"half": moved(pair, 0.5)}).read_text()
    distances = {"as they are": y - x, "after the pre-alignment": toy_motion(x, SIZE), "half": 0.5 * toy_motion(x, SIZE)}
    columns = re.findall(r"<th>([^<]*)</th>", page.partition("<thead>")[2].partition("</thead>")[0])[1:]
    for name, off in distances.items():
        row = dict(zip(columns, row_of(page, name), strict=True))
        d = np.linalg.norm(off, axis=-1)
        for what, value in (("mean", d.mean()), ("median", np.median(d)), ("max", d.max())):
            assert float(row[f"TRE {what}, mm"]) == pytest.approx(value, abs=0.03), (name, what)
    far = torch.as_tensor(pair.points().numpy() - (3, 0, 0), dtype=torch.float32)
    apart = Volume(pair.moving.data, pair.grid, fill=float("nan"))(far)[:, 0]
    seen = torch.isfinite(apart)
    likeness = dict(zip(columns, row_of(page, "as they are"), strict=True))["NCC"]
    assert float(likeness) == pytest.approx(float(ncc(pair.fixed(pair.points())[seen, 0], apart[seen])), abs=1e-4)
    ours = dict(zip(columns, row_of(page, "result"), strict=True))
    assert float(ours["TRE max, mm"]) < 0.1
    text = words(page)
    assert "moments, moves the centre by 3 mm, turns by 0 degrees" in text and "mean of 30; " in text
    svg = base64.b64decode(re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)[0]).decode()
    assert "pre-aligned: mean" in svg and "after: mean 0.0" in svg
    with pytest.raises(InputError, match="no pairs"):
        register_page(case, moved(pair), tmp_path, landmarks=(x, y[:-1]))


def test_a_slice_shows_one_plane(tmp_path: Path) -> None:
    pair = flat(Pair.toy())
    u = toy_motion(pair.grid.points().numpy().astype(np.float64), SIZE)
    u[..., 2] = 0
    page = register_page(pair, from_lattice(Volume(np.moveaxis(u, -1, 0), pair.grid)), tmp_path, notes=["no orientation stated"]).read_text()
    text = words(page)
    assert "One slice laid on another" in text and "coronal" not in text and "no orientation stated" in text
    assert "0 of 400 points shown." in text and len(images(page, "deformation grid")) == 1 and "Landmarks" not in text


def test_labels_meet_after_the_right_warp(tmp_path: Path) -> None:
    pair = Pair.toy()
    points = pair.grid.points().numpy().astype(np.float64)
    ball = (np.linalg.norm(points, axis=-1) < 11).astype(np.float32)
    there = (np.linalg.norm(points + toy_motion(points, SIZE), axis=-1) < 11).astype(np.float32)
    page = register_page(pair, moved(pair), tmp_path, labels=(Volume(there, pair.grid), Volume(ball, pair.grid))).read_text()
    green = [sum(int((np.abs(i.astype(int) - (99, 207, 197)).sum(-1) < 60).sum()) for i in images(page, f"outlines of labels, {when}"))
             for when in ("before", "after")]
    assert green[0] > 1.3 * green[1]  # the moving outline is drawn last: where both meet no green is left


def test_other_intensities_are_not_subtracted(tmp_path: Path) -> None:
    pair = Pair.toy()
    other = dataclasses.replace(pair, moving=pair.moving.with_data(-pair.moving.data))
    page = register_page(other, moved(pair), tmp_path).read_text()
    assert not images(page, "difference") and images(page, "checkerboard") and "correlate" not in words(page)


def test_grid_lines_lie_where_the_moving_grid_comes_from() -> None:
    """phi = 2 x: lines of every 4 mm of the moving image lie 2 mm apart in the fixed one; across the plane nothing shows."""
    grid = Grid.from_spacing((32, 32, 32), 1.0, [-15.5] * 3)
    plane = pictures.planes(grid, np.array([15.5] * 3))[0]
    for scale, apart in ((1.0, 4.0), (2.0, 2.0)):
        cut = Cut.of(displacement(Affine.of(np.diag([scale, scale, 1, 1])), grid.box()), plane)
        lines = deformation.grid_lines(cut, 4.0, 4)
        assert lines.shape == (128, 128) and cut.det == pytest.approx(np.full((32, 32), scale**2), rel=1e-5)
        row = lines[lines.sum(1).argmin()]  # between horizontal lines
        at = np.flatnonzero((row[1:-1] >= row[:-2]) & (row[1:-1] > row[2:]) & (row[1:-1] > 0.5)) + 1
        assert len(at) >= 32 / apart - 1 and np.diff(at) == pytest.approx(np.full(len(at) - 1, 4 * apart), abs=1.01)
        assert abs((at + 0.5) / 4 - 16).min() < 0.3  # one of them through the middle


def test_volume_change_is_white_at_one_and_symmetric_in_the_logarithm() -> None:
    det = np.array([[1.0, 2, 0.5, 4, 0.25, 0, -3, 1.0]])
    pixels = deformation.volume_change(det, 2.0, np.array([[1, 1, 1, 1, 1, 1, 1, 0]], dtype=bool))[0].astype(int)
    assert pixels[0].min() > 235 and (pixels[1] == deformation.SHRINKS_GROWS[-1]).all() and (pixels[2] == deformation.SHRINKS_GROWS[0]).all()
    assert (pixels[3] == pixels[1]).all() and (pixels[4] == pixels[2]).all() and pixels[2][2] > pixels[2][0] and pixels[1][0] > pixels[1][2]
    assert (pixels[5:7] == deformation.FOLDED).all() and (pixels[7] < 100).all()
    assert deformation.widest(np.array([1.3, 1 / 1.4, -5.0])) == 1.5 and deformation.widest(np.array([-1.0])) == deformation.FACTORS[0]


def test_checkerboard_takes_turns() -> None:
    board = deformation.checkerboard(np.zeros((16, 24)), np.ones((16, 24)), tiles=4)
    assert board[0, 0] == 0 and board[0, 4] == 1 and board[4, 0] == 1 and board[4, 4] == 0 and board.sum() == board.size / 2


def test_histogram_counts_every_distance() -> None:
    before, after = np.array([0.5, 1.5, 1.6, 9.99]), np.array([0.1, 0.2, 0.3, 0.4])
    svg = base64.b64decode(deformation.histogram({"before": before, "after": after}).partition(",")[2]).decode()
    heights = {n: [float(h) for h in re.findall(rf'class="s{n}"[^>]* height="([\d.]+)"', svg)] for n in (0, 1)}
    assert len(heights[0]) == 3 and len(heights[1]) == 1  # bins of half a millimetre
    assert sum(heights[0]) == pytest.approx(heights[1][0], abs=0.3) and max(heights[0]) == pytest.approx(heights[1][0] / 2, abs=0.2)
    assert "before: mean 3.40, median 1.55, max 9.99 mm" in svg
    assert deformation.histogram({"before": np.zeros(3), "after": np.zeros(3)})  # landmarks that lie on one another
