"""The report of slices that moved: its numbers are those of the motion, and what it shows is what slices would measure of the result."""

from __future__ import annotations

import base64
import html
import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medfields.cases import Slice, Slices
from medfields.errors import FileError, InputError
from medfields.report import pictures
from medfields.report.motion import _numbers, _seen, acquired, chosen, compounded, motion_page, simulated
from medfields.solve import Run
from medfields.solve.motion import Found
from medfields.space import Volume
from medfields.space.rigid import maps_of

CASE = Slices.toy()
N = len(CASE.slices)
ABOUT = CASE.middle + np.array([10.0, -20.0, 5.0])  # not the middle: the point that is noted counts
SIX = np.c_[np.radians(np.linspace(1, 3, N)), np.zeros((N, 3)), np.linspace(0.5, 2.5, N), np.zeros(N)]
LIKENESS = np.linspace(0.9, 0.99, N)


def motion(**given: Any) -> dict[str, Any]:
    return {"about": ABOUT.tolist(), "poses": SIX.tolist(), "gain": [1.5] * N, "worth": [1.0] * N, "likeness": LIKENESS.tolist(), **given}


def affine(x: np.ndarray) -> np.ndarray:
    """A function whose mean under any symmetric profile is its value in the middle."""
    return 40 + x @ [2.0, -3.0, 1.0]


RAMP = Volume(affine(CASE.grid.points().double().numpy()), CASE.grid)


def pixels(s: Slice) -> np.ndarray:
    """Where the pixels of a slice's mask lie, mm."""
    return s.image.grid.world(np.pad(s.mask.nonzero().numpy(), ((0, 0), (0, 1))))


def words(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.partition("<header>")[2])))


def images(page: str) -> dict[str, np.ndarray | str]:
    """Pictures as arrays, drawings as text, by what is said of them."""
    found: dict[str, np.ndarray | str] = {}
    for kind, data, told in re.findall(r'<img[^>]* src="data:image/([^;]+);base64,([^"]+)" alt="([^"]*)"', page):
        raw = base64.b64decode(data)
        found[html.unescape(told)] = raw.decode() if kind == "svg+xml" else np.asarray(Image.open(io.BytesIO(raw)))
    return found


def tile(page: str, label: str) -> tuple[str, str]:
    ((value, note),) = re.findall(rf'"label">{label}</div><div class="value">([^<]*)</div>(?:<div class="note">([^<]*)</div>)?', page)
    return html.unescape(value), html.unescape(note)


def test_a_simulated_slice_is_the_result_at_its_pose_times_its_gain() -> None:
    maps, gain = maps_of(SIX, ABOUT), np.linspace(0.5, 1.5, N)
    case = replace(CASE, slices=tuple(replace(s, mask=s.mask & (torch.arange(16)[:, None] > 2)) for s in CASE.slices))
    shown, offset = simulated(case, RAMP, Found(maps, gain, np.ones(N), np.ones(N))), case.level()[0]
    for n, s in enumerate(case.slices):
        x = pixels(s) @ maps[n, :3, :3].T + maps[n, :3, 3]
        index = CASE.grid.index(x)
        inner, outside = (np.abs(x) < 5.5).all(1), ((index < -0.6) | (index > 15.6)).any(1)
        wanted = offset + gain[n] * (affine(x) - offset)
        np.testing.assert_allclose(shown[n][s.mask].numpy()[inner], wanted[inner], atol=0.05)
        assert torch.isnan(shown[n][~s.mask]).all() and torch.isnan(shown[n][s.mask][torch.from_numpy(outside)]).all()
        assert inner.sum() >= 4 or s.order not in (2, 3)  # the outer slices have none so far in


def test_the_page_shows_the_simulated_slice_and_its_difference(tmp_path: Path) -> None:
    """Slice 2 of toy2, an axial one, as anatomy is shown: front up, right on the left."""
    n, gain = 2, 1.4
    page = motion_page(CASE, RAMP, tmp_path, motion(gain=[gain] * N, likeness=[0.7 if i == n else 0.9 for i in range(N)])).read_text()
    s, (offset, scale), pose = CASE.slices[n], CASE.level(), maps_of(SIX, ABOUT)[n]
    x = s.image.grid.world(np.stack(np.meshgrid(np.arange(16), np.arange(16), [0], indexing="ij"), -1))[:, :, 0]
    wanted = offset + gain * (affine(x @ pose[:3, :3].T + pose[:3, 3]) - offset)

    def upright(values: np.ndarray) -> np.ndarray:
        assert s.image.grid.affine[0, 0] > 0 and s.image.grid.affine[1, 1] > 0
        return values.T[::-1, ::-1][5:11, 5:11]  # no profile reaches beyond the result from there

    of = {what: images(page)[f"toy2, slice 2, correlation 0.700: {what}"][10::20, 10::20][5:11, 5:11].astype(int)
          for what in ("acquired", "simulated", "difference")}
    for what, values in (("acquired", s.values.numpy()), ("simulated", wanted)):
        expected = np.clip(255 * (upright(values) - offset) / scale, 0, 255)
        np.testing.assert_allclose(of[what], expected, atol=1, err_msg=what)
        assert np.ptp(expected) > 50
    error = upright(wanted - s.values.numpy())
    red = of["difference"][..., 0] - of["difference"][..., 2]
    plain = np.abs(error) > 12
    assert plain.sum() > 10 and (np.sign(red[plain]) == np.sign(error[plain])).all()


def test_before_is_the_mean_of_slices_where_the_headers_put_them() -> None:
    """One stack of slices that show their own number: along it, the mean of the numbers under the Gaussian profile."""
    one = CASE.only(CASE.stack == 0)
    one = replace(one, slices=tuple(replace(s, image=s.image.with_data(torch.full_like(s.image.data, s.order))) for s in one.slices))
    z, at = RAMP.grid.points()[0, 0, :, 2].numpy(), 4.0 * (np.arange(6) - 2.5)
    weight = np.exp(-4 * np.log(2) * ((z[:, None] - at) / 4) ** 2)
    line = compounded(one, RAMP).data[0, 8, 8].numpy()
    np.testing.assert_allclose(line, weight @ np.arange(6) / weight.sum(1), atol=0.25)
    ends = replace(one, slices=tuple(replace(one.slices[k], image=one.slices[k].image.with_data(torch.full((1, 16, 16, 1), value)))
                                     for k, value in ((0, 5.0), (5, 1.0))))
    line = compounded(ends, RAMP).data[0, 8, 8].numpy()
    assert line[3] == pytest.approx(5, abs=0.01) and line[12] == pytest.approx(1, abs=0.01)  # 3.25 mm from the slices of 5 and of 1
    assert line[6] == line[8] == 1  # where there is none: as dark as the darkest


def test_a_stack_as_acquired_is_its_nearest_pixels() -> None:
    own = np.flatnonzero(CASE.stack == 0)
    number = torch.arange(256.0).reshape(16, 16)
    case = replace(CASE, slices=tuple(replace(s, image=s.image.with_data((1000 * s.order + number)[None, :, :, None])) for s in CASE.slices))
    z, i, j = np.array([-13.0, -11.9, -8.1, -7.9, 0.1, 11.9, 12.1]), 3, 12
    x = np.stack([np.full(7, (i - 7.5) * 1.5 + 0.7), np.full(7, (j - 7.5) * 1.5 - 0.7), z], -1)[None]
    expected = [np.nan, *(1000 * k + 16 * i + j for k in (0, 0, 1, 3, 5)), np.nan]
    np.testing.assert_array_equal(acquired(case, own, x)[0], expected)
    thick = replace(case, slices=tuple(replace(s, thickness=8.0) for s in case.slices))  # they overlap, and the nearest is shown
    np.testing.assert_array_equal(acquired(thick, own, x)[0, 1:6], expected[1:6])
    np.testing.assert_array_equal(acquired(thick, own[::-1], x)[0, 1:6], expected[1:6])
    assert np.isnan(acquired(case, own, x + np.array([12.1 - x[0, 0, 0], 0, 0]))).all()  # beside the slices


def test_the_page_says_how_far_slices_moved_and_which_are_left_out(tmp_path: Path) -> None:
    """What was left out counts in nothing: its pose is not believed."""
    lost, six, likeness = [7, 17], SIX.copy(), LIKENESS.copy()
    six[lost] = [1.5, 0, 0, 0, 0, 40.0]
    likeness[lost] = 0.312, 0.801
    worth = np.ones(N)
    worth[lost] = 0
    given = motion(poses=six.tolist(), worth=worth.tolist(), likeness=likeness.tolist())
    page = motion_page(CASE, RAMP, tmp_path, given, notes=["two masks were found"]).read_text()
    text, kept = words(page), np.setdiff1d(np.arange(N), lost)
    turn, shift = np.linspace(1, 3, N)[kept], np.linspace(0.5, 2.5, N)[kept]
    middle, most = f"{np.median(turn):.1f} degrees and {np.median(shift):.1f} mm", f"{turn.max():.1f} degrees and {shift.max():.1f} mm"
    assert f"18 slices of 3 stacks became one volume of 1.5 mm voxels. Slices moved by {middle} in the median, by {most} at most." in text
    assert "2 were left out" in text and "two masks were found" in text
    assert tile(page, "Slices in") == ("18", "4 mm thick") and tile(page, "Voxels out") == ("1.5 mm", "16 × 16 × 16")
    assert tile(page, "Motion")[0] == f"{np.median(turn):.1f}°, {np.median(shift):.1f} mm" and tile(page, "Left out") == ("2", "of 18 slices")
    before, operator = compounded(CASE, RAMP), CASE.operator(CASE.grid, nodes=10)
    shown = operator.apply(before.data[0]).split([256] * N)
    was = [np.corrcoef(a.numpy(), s.values[s.mask].numpy())[0, 1] for a, s in zip(shown, CASE.slices, strict=True)]
    assert tile(page, "Correlation") == (f"{np.median(likeness):.3f}", f"median of the slices; {np.median(was):.3f} before")
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page))
    assert facts["toy0, slice 1"] == "unlike the subject: correlation 0.31, below 0.5"
    assert facts["toy1, slice 5"] == "worth nothing, at a correlation of 0.80"
    assert {name.partition(",")[0] for name in facts if ", slice" in name} == {"toy0", "toy1"}
    assert facts["toy2"].endswith("0 left out") and facts["toy0"].endswith("1 left out")
    assert facts["toy0"].startswith("6 slices of 4 mm, pixels of 1.5 × 1.5 mm; moved by ")
    assert "slice 1 · left out: unlike the subject: correlation 0.31, below 0.5" in text
    text = words(motion_page(CASE, RAMP, tmp_path, motion()).read_text())
    assert "None was left out" in text and "Slices that were left out" not in text


def test_every_stack_has_its_pictures_and_its_curves(tmp_path: Path) -> None:
    worth = np.ones(N)
    worth[[8, 9]] = 0
    page = motion_page(CASE, RAMP, tmp_path, motion(worth=worth.tolist())).read_text()
    shown = images(page)
    for name, stack in zip(CASE.names, range(3), strict=True):
        for plane in ("axial", "coronal", "sagittal"):
            assert np.ptp(shown[f"{plane} plane, {name} as acquired"]) > 50
        rows = {told.rpartition(":")[0] for told in shown if told.startswith(f"{name}, slice")}
        assert len(rows) == (5 if stack == 1 else 3) and all(f"{row}: {kind}" in shown for row in rows for kind in ("simulated", "difference"))
        for what, lines in (("turns in degrees", 3), ("shifts in mm", 3), ("correlations", 3)):
            drawing = str(shown[f"{what} of the slices of {name}"])
            ET.fromstring(drawing)
            assert drawing.count("<polyline") == lines and drawing.count("<circle") == (2 if stack == 1 else 0)
    headings = ("Before and after", "Three planes", "Slices of toy2", "Slices of toy1", "How the slices moved")
    order = [page.index(f">{heading}<") for heading in headings]
    assert order == sorted(order) and page.count('class="after"') == 3


def test_curves_are_degrees_and_mm_in_the_order_of_the_slices() -> None:
    turned = replace(CASE, slices=CASE.slices[::-1])
    worth = np.ones(N)
    worth[-2] = 0  # slice 1 of toy2
    seen = _seen(turned, RAMP, motion(poses=SIX[::-1].tolist(), worth=worth.tolist()))
    own = seen.stacks()["toy2"]
    turns, shifts = _numbers(seen, own, "xyz", 0), _numbers(seen, own, "xyz", 3)
    kept = [0, 2, 3, 4, 5]
    assert [k for k, _ in turns["x"]] == kept and [v for _, v in turns["x"]] == pytest.approx(np.linspace(1, 3, N)[kept])
    assert [v for _, v in shifts["y"]] == pytest.approx(np.linspace(0.5, 2.5, N)[kept]) and [v for _, v in shifts["z"]] == [0.0] * 5
    assert turns["left out"] == [(1.0, 0.0)]  # at the foot


def test_best_median_worst_and_some_that_were_left_out_are_shown() -> None:
    likeness = np.array([0.1, 0.9, 0.7, 0.8, 0.6, 0.95, 0.2, 0.2, 0.3, 0.3, 0.99])
    lost, own = likeness < 0.5, np.arange(10)  # the last is of another stack
    assert list(chosen(likeness, lost, own).items())[:3] == [(5, "best"), (3, "median"), (4, "worst")]
    assert list(chosen(likeness, lost, own).items())[3:] == [(n, "left out") for n in (0, 6, 7, 8)]
    assert chosen(likeness, lost, np.array([1, 2])) == {1: "best", 2: "worst"} and chosen(likeness, lost, np.array([1])) == {1: "best"}
    assert chosen(likeness, lost, np.array([0])) == {0: "left out"}


def test_names_are_not_markup_and_stacks_without_one_are_numbered(tmp_path: Path) -> None:
    page = motion_page(replace(CASE, names=("<b>x", "same", "same")), RAMP, tmp_path, motion(worth=[0.0] * N)).read_text()
    assert "<b>x" not in page and "Slices of <b>x" in html.unescape(page) and "Slices of same (2)" in page and "Slices of same (3)" in page
    assert page.count("6 left out, 4 of them shown.") == 3
    page = motion_page(replace(CASE, names=()), RAMP, tmp_path, motion()).read_text()
    assert "Slices of stack 1" in page and "Slices of stack 3" in page
    assert {s.partition(":")[0] for s in re.findall(r'(?:src|href)="([^"]*)"', page)} == {"data"}


def test_dots_are_no_line_and_ticks_lie_where_they_say() -> None:
    series = {"a": [(0.0, 1.0), (5.0, -2.0)], "b": [(1.0, 0.0), (2.0, 0.0)]}
    svg = pictures.curves(series, log=False, dots=("b",))
    assert svg.count("<polyline") == 1 and svg.count("<circle") == 2
    ((left, _), (right, _)) = (map(float, p.split(",")) for p in re.findall(r'<polyline points="([^"]+)"', svg)[0].split())
    ((x, label),) = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="middle">(\d+)<', svg)
    assert float(x) == pytest.approx(left + (right - left) * int(label) / 5, abs=0.1)


def test_what_the_run_found_is_told_and_its_poses_are_drawn_instead(tmp_path: Path) -> None:
    with Run(tmp_path / "a.run", config={"task": "motion"}) as run:
        run.note(motion=motion(), **{"held out error": 0.0123})
        run.finish()
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", motion_page(CASE, RAMP, tmp_path / "a.run", motion()).read_text()))
    assert facts["held out error"] == "0.0123" and "motion" not in facts


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no run folder"):
        motion_page(CASE, RAMP, tmp_path / "none", motion())
    with pytest.raises(InputError, match="motion of 17 slices, and there are 18"):
        motion_page(CASE, RAMP, tmp_path, motion(poses=SIX[:-1].tolist()))
