"""The report: pictures the right way round, honest tables, and one file that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medfields import plugins
from medfields.cases import Stacks
from medfields.errors import FileError, InputError, OutputError
from medfields.report import Page, pictures, superres_page, write_report
from medfields.report.page import duration, number, table_cells
from medfields.report.run_folder import RunFolder
from medfields.solve import Run
from medfields.space import Grid, Volume

SHAPE = np.array([12, 10, 8])  # voxels along right, front, up


def decode(src: str) -> np.ndarray:
    assert src.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))))


def marked(orientation: str) -> Volume:
    """A dark block whose rightmost, frontmost, uppermost eighth is bright, stored in any axis order."""
    data = np.zeros(SHAPE)
    data[6:, 5:, 4:] = 1
    image = nibabel.Nifti1Image(data, np.diag([1.0, 1, 1, 1]))
    codes = nibabel.orientations.axcodes2ornt(tuple(orientation))
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(image.affine), codes))
    assert "".join(nibabel.aff2axcodes(turned.affine)) == orientation
    array = np.asarray(turned.dataobj)
    return Volume(array, Grid(array.shape, turned.affine))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRA", "ILP", "AIL"])
def test_planes_are_anatomical_however_the_voxels_are_stored(orientation: str) -> None:
    """Radiological: the patient's right is on the left, front is up in axial planes and left in sagittal ones, up is up."""
    volume = marked(orientation)
    centre = volume.grid.index(np.array([8.0, 7.0, 6.0]))  # inside the bright corner
    shown = {p.name: (p, pictures.read_plane(volume, p, nearest=True)) for p in pictures.planes(volume.grid, centre)}
    for name, (height, width), letters in (("axial", (10, 12), "RLAP"), ("coronal", (8, 12), "RLSI"), ("sagittal", (8, 10), "APSI")):
        plane, values = shown[name]
        expected = np.zeros((height, width))
        expected[: height // 2, : width // 2] = 1
        assert np.array_equal(values, expected), name
        assert plane.left + plane.right + plane.top + plane.bottom == letters


def test_pixels_are_square_and_thick_slices_stay_blocks() -> None:
    thick = Volume(np.arange(2 * 3 * 4, dtype=float).reshape(2, 3, 4), Grid.from_spacing((2, 3, 4), (1, 1, 5)))
    coronal = pictures.planes(thick.grid, np.array([0, 1, 2]))[1]
    assert coronal.points.shape == (20, 2, 3) and coronal.pixel == 1
    values = pictures.read_plane(thick, coronal, nearest=True)
    assert np.array_equal(values[:, 1], np.repeat(thick.data[0, 0, 1].numpy()[::-1], 5))


def test_outside_the_field_of_view_is_black() -> None:
    big, small = Grid.from_spacing((10, 10, 10), 1), Grid.from_spacing((4, 4, 4), 1, origin=(3, 3, 3))
    volume = Volume(np.ones((4, 4, 4)), small)
    axial = pictures.planes(big, np.array([5, 5, 5]))[0]
    for nearest in (True, False):
        values = pictures.read_plane(volume, axial, nearest=nearest)
        assert np.isnan(values).sum() == 100 - 16
    assert (pictures.gray(values, 0, 1) == 255).sum() == 16 and (pictures.gray(values, 0, 1) == 0).sum() == 84


def test_scale_bar_measures_millimetres() -> None:
    for width, mm in ((200, 50), (40, 10), (5, 1)):
        plane = pictures.planes(Grid.from_spacing((width, 9, 9), 1.0), np.zeros(3))[0]
        assert plane.bar == (mm, pytest.approx(100 * mm / width))


def test_png_keeps_every_pixel() -> None:
    rng = np.random.default_rng(0)
    for pixels in (rng.integers(0, 256, (13, 9), dtype=np.uint8), rng.integers(0, 256, (7, 11, 3), dtype=np.uint8)):
        assert np.array_equal(decode(pictures.png(pixels, least=1)), pixels)
        assert np.array_equal(decode(pictures.png(pixels, least=40))[::4, ::4][: pixels.shape[0], : pixels.shape[1]], pixels)


def test_error_colours_are_dark_at_zero_and_opposite_in_sign() -> None:
    blue, black, red, outside = pictures.diverging(np.array([[-2.0, 0, 2, np.nan]]), 1.0)[0].astype(int)
    assert black.max() < 40 and np.array_equal(outside, black)
    assert blue[2] > blue[0] + 80 and red[0] > red[2] + 80


def test_curves_leave_out_what_a_logarithm_cannot_show() -> None:
    assert pictures.curves({"a": [(0, -1.0), (1, float("nan"))]}) == ""
    svg = pictures.curves({"a": [(0, 100.0), (50, 1.0)], "b": [(0, 0.0), (50, 10.0)]})
    (line,) = re.findall(r'<polyline points="([^"]+)"', svg)
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in line.split())
    assert x1 > x0 and y1 > y0  # later is further right, smaller is further down
    assert svg.count("<circle") == 1 and ">100<" in svg and ">1<" in svg


def test_table_marks_the_best_in_the_right_direction() -> None:
    columns, rows = table_cells({"a": {"PSNR, dB": 26.0, "RMSE": 3.0, "time, s": 1.0}, "b": {"PSNR, dB": 27.5, "RMSE": 4.0, "note": "x"}})
    assert columns == ["PSNR, dB", "RMSE", "time, s", "note"]
    best = {(name, column) for name, cells in rows for column, cell in zip(columns, cells, strict=True) if cell.best}
    assert best == {("b", "PSNR, dB"), ("a", "RMSE")}
    assert [c.text for c in rows[0][1]] == ["26.00", "3.00", "1.00", "–"]


def test_numbers_and_durations() -> None:
    assert [number(v) for v in (1234.5, 123.45, 26.581, 0.93123, 1.2e-5, 0.0, 7, "x")] == [
        "1234",
        "123.5",
        "26.58",
        "0.9312",
        "1.2e-05",
        "0",
        "7",
        "x",
    ]
    assert [duration(s) for s in (0.42, 41.3, 59.7, 200, 7500)] == ["0.4 s", "41 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a plain run, and of one with truth, rivals and two contrasts whose names try to be markup."""
    made = {}
    for name, contrasts in (("plain", 1), ("full", 2)):
        case = Stacks.toy(0, contrasts=contrasts)
        if contrasts == 2:
            case = replace(
                case, stacks=tuple(replace(s, name="<script>alert(1)</script>", contrast=f"<b>{s.contrast}") for s in case.stacks)
            )
        folder = tmp_path_factory.mktemp("report") / f"{name}.run"
        method = plugins.load("srr-cg")(steps=6)
        with Run(folder, config={"task": "superres", "method": "srr-cg", "hyper": method.config()}) as run:
            result = method.solve(case, run)
            run.note(**{"held out error": 0.0123})
            run.finish()
        truth = result.with_data(result.data + 1) if contrasts == 2 else None
        rivals = {"cubic-mean": plugins.load("cubic-mean")().solve(case, Run())} if contrasts == 2 else None
        metrics = (
            {"cubic-mean": {"psnr": 22.56, "ssim": 0.81}, "srr-cg": {"psnr": 26.58, "ssim": 0.91, "seconds": 2.1}}
            if contrasts == 2
            else None
        )
        made[name] = superres_page(case, result, run, truth=truth, rivals=rivals, metrics=metrics)
    return made


def test_page_says_what_was_done(pages: dict[str, Path]) -> None:
    text = pages["full"].read_text()
    for words in (
        "One sharp volume from two thick stacks",
        "26.58 dB",
        "4.02 dB above cubic-mean",
        "+4.02 dB against cubic-mean",
        "Error against the truth",
        "held out error",
        "0.0123",
        "conjugate gradients",
        "10.1109/TMI.2010.2051680",
        "Use when",
        "Intended use: research",
        "steps = 6",
        "torch",
        "5 mm",
    ):
        assert words in text, words
    plain = pages["plain"].read_text()
    assert "No truth is known" in plain and "Error against" not in plain and "<table" not in plain


def test_page_needs_nothing_else_and_names_are_not_markup(pages: dict[str, Path]) -> None:
    for page in pages.values():
        text = page.read_text()
        assert {s.partition(":")[0] for s in re.findall(r'(?:src|href)="([^"]*)"', text)} == {"data"}
        assert "url(" not in text and "@import" not in text and 'http-equiv="Content-Security-Policy"' in text
        assert text.count("<script>") == 1 and "<script>alert" not in text and "<b>c0" not in text
        assert page.stat().st_size < 3_000_000


def test_every_picture_decodes(pages: dict[str, Path]) -> None:
    sources = re.findall(r'<img[^>]* src="([^"]+)"', pages["full"].read_text())
    # per contrast: 3 planes of (1 stack, rival, result, truth), 3 of 2 error maps and a colour bar; and 3 pairs before and after
    assert len(sources) == 2 * (3 * 4 + 3 * 2 + 1) + 6
    assert all(min(decode(s).shape[:2]) > 1 for s in sources)


def test_mistakes(tmp_path: Path, pages: dict[str, Path]) -> None:
    case = Stacks.toy(0)
    result = Volume(np.ones((20, 20, 20)), case.grid)
    with pytest.raises(InputError, match="folder"):
        superres_page(case, result, Run())
    with pytest.raises(InputError, match="2 channels"):
        superres_page(case, result, pages["plain"].parent, truth=Volume(np.ones((2, 20, 20, 20)), case.grid))
    with pytest.raises(FileError, match="no run folder"):
        superres_page(case, result, tmp_path / "none.run")
    (tmp_path / "bad.run").mkdir()
    (tmp_path / "bad.run/config.toml").write_text("= 1")
    with pytest.raises(FileError, match="damaged"):
        RunFolder.read(tmp_path / "bad.run")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_report(tmp_path / "file/report.html", Page("x"))


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable") if (path := shutil.which(name))), None
)
PROBE = """<script>addEventListener("load", () => {
  const cut = () => getComputedStyle(document.querySelector(".compare .view")).getPropertyValue("--cut");
  const said = {
    images: [...document.images].map(i => i.naturalWidth * i.naturalHeight),
    loaded: performance.getEntriesByType("resource").map(r => r.name.slice(0, 40)),
    wide: document.documentElement.scrollWidth - innerWidth,
    cut: cut() };
  const slider = document.querySelector(".slider");
  slider.value = 20;
  slider.dispatchEvent(new Event("input"));
  said.moved = cut();
  document.body.dataset.said = JSON.stringify(said); });</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the page is not looked at in a browser")
@pytest.mark.parametrize("width", [1300, 500])
def test_page_in_a_browser(pages: dict[str, Path], tmp_path: Path, width: int) -> None:
    """All pictures load, nothing is asked of the network, the console stays empty, nothing sticks out, and the slider slides."""
    assert BROWSER is not None
    page = tmp_path / "page.html"
    page.write_text(pages["full"].read_text().replace("</body>", PROBE + "</body>"))
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'data-said="([^"]+)"', done.stdout)
    assert found, done.stderr[-2000:]
    said = json.loads(found.group(1).replace("&quot;", '"'))
    assert len(said["images"]) > 30 and min(said["images"]) > 0
    assert all(name.startswith("data:") for name in said["loaded"])
    assert said["wide"] <= 0 and (said["cut"], said["moved"]) == ("42%", "20%")
