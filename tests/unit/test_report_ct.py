"""The report of ct: what it shows, that its figures are those of the data, and the drawing of a geometry."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medfields.cases import Projections
from medfields.cases.lattice import lattice
from medfields.errors import InputError
from medfields.report import ct_page
from medfields.report.geometry import describe, draw
from medfields.space import Geometry, Grid, Volume

GREEN, ORANGE = (11, 110, 105), (194, 84, 45)


def cone() -> Projections:
    grid = Grid.from_spacing((12, 12, 8), 3.0, (-16.5, -16.5, -10.5))
    geometry = Geometry.cone(np.linspace(0, 2 * np.pi, 10, endpoint=False), (14, 20), 4.0, 200, 300)
    ball = (grid.points().norm(dim=-1) < 9).float() * 0.02
    case = Projections(torch.ones(10, 14, 20), geometry, grid)
    return dataclasses.replace(case, data=case.projector().apply(ball))


def images(page: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(s)))) for s in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]


def test_slice_with_everything(tmp_path: Path) -> None:
    whole = Projections.toy(0)
    case, held_out = whole.split(0.25)
    volume, rival = case.rough(10**9, 10**9, 60), case.rough(10**9, 10**9, 3)
    truth = volume.with_data(volume.data * 1.05)
    page = ct_page(case, volume, tmp_path, held_out=held_out, truth=truth, rivals={"three steps": rival},
                   metrics={"result": {"psnr": 31.5}, "three steps": {"psnr": 20.25}}, uncertainty=volume, notes=["4 pixels masked"]).read_text()
    for words in ("A slice from 9 parallel-beam views", "Reconstruction, in HU", "Error against the truth", "Uncertainty", "4 pixels masked",
                  "Views that were held out", "Where the rays ran", "31.50", "three steps", "parallel beam", "PSNR, dB"):
        assert words in page, words
    error = 100 * held_out.misfit(volume)[1]
    assert f"{error:.2g} %" in page and f"{100 * held_out.misfit(rival)[1]:.2g} %" in page
    assert error < 100 * held_out.misfit(rival)[1]
    assert "https://" not in re.sub(r"doi|arXiv", "", page.replace("http-equiv", ""))
    assert [i.shape for i in images(page)].count((560, 560, 3)) <= 1


def test_volume_shows_three_planes_a_row_and_a_view(tmp_path: Path) -> None:
    case = cone()
    page = ct_page(case, case.rough(10**9, 10**9, 40), tmp_path).read_text()
    for words in ("A volume from 10 cone-beam views", "Reconstruction, in 1/mm", "axial", "coronal", "sagittal", "row 8", "view 6",
                  "Neither truth nor held-out views", "source to isocentre 200 mm"):
        assert words in page, words
    assert "Uncertainty" not in page and "held out" not in page.partition("Everything needed")[0].replace("Neither truth nor held-out", "")


def test_misfit_is_the_share_of_what_is_not_explained(tmp_path: Path) -> None:
    case = cone()
    exact = Volume((case.grid.points().norm(dim=-1) < 9).float() * 0.02, case.grid)
    assert case.misfit(exact)[1] < 1e-5
    rms, share = case.misfit(exact.with_data(0.9 * exact.data))
    assert share == pytest.approx(0.1, rel=1e-3) and rms == pytest.approx(0.1 * float(case.data.square().mean().sqrt()), rel=1e-3)
    dead = (torch.arange(20) == 3).expand(case.data.shape)
    bad = dataclasses.replace(case, data=torch.where(dead, torch.nan, case.data), good=~dead)
    assert bad.misfit(exact)[1] < 1e-5


def test_another_grid_is_refused(tmp_path: Path) -> None:
    case = Projections.toy(0)
    with pytest.raises(InputError, match="grid of the case"):
        ct_page(case, Volume(torch.zeros(5, 5, 1), case.grid.crop((0, 0, 0), (5, 5, 1))), tmp_path)


def near(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """[N, 2] rows and columns of the pixels of a colour."""
    body = np.asarray(image).astype(int).copy()
    body[:34] = 255  # the legend
    return np.argwhere(np.abs(body - colour).sum(-1) < 40)


def test_drawing_puts_source_and_detector_where_they_are() -> None:
    geometry = Geometry.fan(np.radians([0.0, 45, 90]), 40, 2.0, 300, 400)  # first beam towards the front, the last towards the left
    image, = draw(geometry, lattice(geometry))
    first, last = near(image, GREEN), near(image, ORANGE)
    assert np.ptp(first[:, 0]) > 2 * np.ptp(first[:, 1]) and np.ptp(last[:, 1]) > 2 * np.ptp(last[:, 0])
    wide = [np.ptp(first[np.abs(first[:, 0] - row) < 4][:, 1]) for row in (first[:, 0].min(), first[:, 0].max())]
    assert wide[0] > 4 * wide[1]  # the detector is above, in front of the patient; the source below, behind
    wide = [np.ptp(last[np.abs(last[:, 1] - column) < 4][:, 0]) for column in (last[:, 1].max(), last[:, 1].min())]
    assert wide[0] > 4 * wide[1]  # detector at the reader's right: the patient's left


def test_a_cone_has_a_side_view_and_a_slice_has_none() -> None:
    assert len(draw(cone().geometry, cone().grid)) == 2 and len(draw(Projections.toy(0).geometry, Projections.toy(0).grid)) == 1
    side = draw(cone().geometry, cone().grid)[1]
    first = near(side, GREEN)
    assert np.ptp(first[first[:, 1] < first[:, 1].min() + 6][:, 0]) < np.ptp(first[first[:, 1] > first[:, 1].max() - 3][:, 0])


def test_few_rows_are_drawn_high_enough_to_be_seen(tmp_path: Path) -> None:
    whole = cone()
    geometry = dataclasses.replace(whole.geometry, shape=(2, 128), u=whole.geometry.u / 6)
    case = dataclasses.replace(whole, data=torch.ones(10, 2, 128), geometry=geometry)
    shapes = [i.shape for i in images(ct_page(case, case.rough(10**9, 10**9, 2), tmp_path).read_text())]
    assert len(shapes) > 5 and all(8 * high >= wide for high, wide, *_ in shapes if (high, wide) != (8, 256)), shapes  # but for the colour bar


def test_views_in_no_order_are_described_by_what_they_cover() -> None:
    turn = np.radians([90, 0, 135, 45])
    said = describe(Geometry.parallel(turn, 9, 1.0), Projections.toy(0).grid)
    assert said["views"] == "4, 45 degrees apart, not in this order" and said["angles"].startswith("0 to 135 degrees, an arc of 135")


def test_description() -> None:
    said = describe(cone().geometry, cone().grid)
    assert said["beam"] == "cone beam, flat detector" and said["views"] == "10, 36 degrees apart" and said["magnification"].startswith("1.5,")
    uneven = Geometry.parallel(np.radians([0, 10, 30, 40]), 8, 1.0)
    assert describe(uneven, lattice(uneven))["views"] == "4, 10 degrees apart (10 to 20)"
    assert "z (feet to head)" in describe(uneven, lattice(uneven))["angles"]
