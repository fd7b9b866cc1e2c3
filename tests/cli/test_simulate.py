"""simulate makes projections that ct reads, with the geometry that was asked for and values that are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfields.cli import simulate
from medfields.io import read_volume, write_volume
from medfields.io.projections import read_projections
from medfields.operators.materials import attenuation
from medfields.space import Grid, Volume
from medfields.space.orbit import field_of_view

WATER = float(attenuation("water", 70))


@pytest.fixture
def disc(tmp_path: Path) -> Volume:
    """Three slices of 20 x 16 voxels of 2 mm: a disc of water of 12 mm about (30, -10), in HU; only the middle slice has a hole."""
    grid = Grid.from_spacing((20, 16, 3), (2, 2, 4), (30 - 19, -10 - 15, 40))
    x = grid.points().numpy() - (30, -10, 44)
    hu = np.where(np.hypot(x[..., 0], x[..., 1]) < 12, 0.0, -1000.0)
    hu[8:10, 7:9, 1] = -1000
    volume = Volume(hu, grid, "HU")
    write_volume(volume, tmp_path / "v.nii.gz")
    return volume


def test_parallel_slice(medfields, disc: Volume) -> None:
    said = medfields("simulate", "ct", "v.nii.gz", "-o", "p.h5", "--views", 6, "--slice", 0)
    assert said.code == 0 and "6 views of 1 x" in said.out, said.err
    scan = read_projections("p.h5")
    assert scan.water == pytest.approx(WATER, rel=1e-4) and scan.photons == 0 and scan.geometry.beam == "parallel"
    assert scan.grid.same_as(disc.grid.crop((0, 0, 0), (20, 16, 1)))
    assert np.allclose(field_of_view(scan.geometry)[0], (30, -10, 40))
    mass = WATER * float((disc.data[0, :, :, 0] > -500).sum()) * 4
    assert np.allclose(scan.data.sum((1, 2)) * scan.geometry.pitch[0, 0], mass, rtol=0.02)  # every view sees all of the water
    assert medfields("simulate", "ct", "v.nii.gz", "-o", "q.h5", "--views", 6).code == 0
    hole = (scan.data - read_projections("q.h5").data).sum((1, 2)) * scan.geometry.pitch[0, 0]
    assert np.allclose(hole, WATER * 16, rtol=0.05)  # only the middle slice, which is the default, has one


def test_what_comes_out_is_what_went_in(medfields, disc: Volume, tmp_path: Path) -> None:
    assert medfields("simulate", "ct", "v.nii.gz", "-o", "p.h5", "--views", 40, "--noise", "1e6", "--slice", 0).code == 0
    assert medfields("ct", "p.h5", "-o", "r.nii.gz", "--method", "sirt").code == 0
    result, inside = read_volume("r.nii.gz"), disc.data[0, :, :, 0] > -500
    assert abs(float(result.data[0, :, :, 0][inside].mean())) < 60 and float(result.data[0, :, :, 0][~inside].mean()) < -850
    assert medfields("report", "r.run", "--truth", "v.nii.gz").code == 0
    assert "PSNR, dB" in (tmp_path / "r.run/report.html").read_text()


@pytest.mark.parametrize("words", [("--beam", "fan"), ("--beam", "fan", "--arc", "--offset", "10"), ("--rows", "9"), ("--beam", "cone")])
def test_diverging_beams_see_the_whole_image(medfields, disc: Volume, words: tuple[str, ...]) -> None:
    said = medfields("simulate", "ct", "v.nii.gz", "-o", "p.h5", "--views", 8, "--distances", 200, 300, *words)
    assert said.code == 0, said.err
    scan = read_projections("p.h5")
    assert scan.geometry.beam == "cone" and scan.geometry.arc == ("--arc" in words)
    assert np.allclose(np.linalg.norm(scan.geometry.source - (30, -10, 44), axis=1), 200)
    assert (scan.data[:, :, [0, -1]] < 1e-3).all() and scan.data.max() == pytest.approx(24 * WATER, rel=0.12)
    assert scan.geometry.shape[0] == (1 if "fan" in words else 9 if "--rows" in words else scan.data.shape[1]) and scan.grid.is_2d == ("fan" in words)


def test_noise_has_its_seed_and_its_size(medfields, disc: Volume) -> None:
    data = {}
    for name, more in {"clean": (), "one": ("--noise", "1e4"), "again": ("--noise", "1e4"), "two": ("--noise", "1e4", "--seed", 1)}.items():
        assert medfields("simulate", "ct", "v.nii.gz", "-o", f"{name}.h5", "--views", 30, "--slice", 0, *more).code == 0
        data[name] = read_projections(f"{name}.h5").data
    assert np.array_equal(data["one"], data["again"]) and not np.array_equal(data["one"], data["two"])
    air = data["clean"] == 0
    assert (data["one"] - data["clean"])[air].std() == pytest.approx(0.01, rel=0.15)
    assert read_projections("one.h5").photons == 1e4


def test_views_come_in_parts_and_tell_how_far_they_are(medfields, disc: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    told, seconds = [], iter(range(1000))
    monkeypatch.setattr("medfields.solve.Terminal.event", lambda self, event: told.append(event))
    monkeypatch.setattr(simulate.time, "monotonic", lambda: float(next(seconds)))
    for more in ((), ("--spectrum", 120)):
        told.clear()
        assert medfields("simulate", "ct", "v.nii.gz", "-o", "p.h5", "--views", 120, "--slice", 0, *more).code == 0
        assert [e.step for e in told][:3] == [1, 3, 5] and len(told) == 51
        assert told[0].steps == 120 and told[0].eta == 119 * told[0].seconds and [e.done for e in told] == [False] * 50 + [True]
        assert medfields("simulate", "ct", "v.nii.gz", "-o", "q.h5", "--views", 1, "--slice", 0, *more).code == 0 and told[-1].done
        assert np.array_equal(read_projections("p.h5").data[:1], read_projections("q.h5").data)


def test_spectrum_hardens_and_metal_absorbs(medfields, disc: Volume, tmp_path: Path) -> None:
    mask = torch.zeros(disc.data.shape)
    mask[0, 9:11, 7:9] = 1
    write_volume(disc.with_data(mask), tmp_path / "m.nii.gz")
    tops = {}
    for name, more in {"one": (), "metal": ("--metal", "m.nii.gz", "--material", "iron"),
                       "both": ("--metal", "m.nii.gz", "--material", "iron", "--spectrum", "120")}.items():
        assert medfields("simulate", "ct", "v.nii.gz", "-o", f"{name}.h5", "--views", 4, "--slice", 0, *more).code == 0
        tops[name] = read_projections(f"{name}.h5").data.max()
    assert tops["metal"] > tops["one"] + 1 and tops["one"] < tops["both"] < tops["metal"]
    assert read_projections("both.h5").spectrum is not None


def test_slices_stored_along_another_axis_are_found(medfields, tmp_path: Path) -> None:
    grid = Grid((6, 20, 16), np.array([[0, 2.0, 0, 0], [0, 0, 2.0, 0], [-4.0, 0, 0, 20], [0, 0, 0, 1]]))  # slices first, from the head down
    hu = np.full(grid.shape, -1000.0)
    hu[1, 5:15, 4:12] = 0
    write_volume(Volume(hu, grid, "HU"), tmp_path / "v.nii.gz")
    assert medfields("simulate", "ct", "v.nii.gz", "-o", "p.h5", "--views", 4, "--slice", 4).code == 0  # slice 1 from above is 4 from below
    scan = read_projections("p.h5")
    assert np.allclose(scan.data.sum((1, 2)) * scan.geometry.pitch[0, 0], 20 * 16 * WATER, rtol=0.02)
    assert scan.grid.centre[2] == pytest.approx(16)


BAD = [
    (("v.nii.gz", "-o", "p.png"), 2, "projections.h5"),
    (("none.nii.gz", "-o", "p.h5"), 4, "none.nii.gz"),
    (("v.nii.gz", "-o", "p.h5", "--slice", "3"), 2, "--slice 0 to 2"),
    (("v.nii.gz", "-o", "p.h5", "--beam", "fan", "--distances", "10", "20"), 3, "inside the image"),
    (("v.nii.gz", "-o", "p.h5", "--views", "0"), 2, "--views cannot be 0"),
    (("v.nii.gz", "-o", "p.h5", "--noise", "-5"), 2, "photons"),
    (("v.nii.gz", "-o", "p.h5", "--noise", "inf"), 2, "--noise cannot be inf"),
    (("v.nii.gz", "-o", "p.h5", "--noise", "1e20"), 2, "photons"),
    (("v.nii.gz", "-o", "p.h5", "--noise", "1e-3"), 2, "photons"),
    (("v.nii.gz", "-o", "p.h5", "--water", "0.2"), 2, "--water cannot be 0.2"),
    (("v.nii.gz", "-o", "p.h5", "--offset", "nan"), 2, "--offset cannot be nan"),
    (("v.nii.gz", "-o", "p.h5", "--beam", "fan", "--distances", "500", "inf"), 2, "--distances cannot be inf"),
    (("v.nii.gz", "-o", "p.h5", "--seed", "-1"), 2, "--seed cannot be -1"),
    (("v.nii.gz", "-o", "p.h5", "--columns", "0"), 2, "--columns cannot be 0"),
    (("v.nii.gz", "-o", "p.h5", "--rows", "0"), 2, "--rows cannot be 0"),
    (("v.nii.gz", "-o", "p.h5", "--rows", "4", "--beam", "fan"), 2, "one row, not 4"),
    (("v.nii.gz", "-o", "p.h5", "--rows", "4", "--beam", "parallel"), 2, "one row, not 4"),
    (("v.nii.gz", "-o", "p.h5", "--beam", "cone", "--slice", "1"), 2, "leave --slice out"),
    (("v.nii.gz", "-o", "p.h5", "--arc"), 2, "leave --arc out"),
    (("v.nii.gz", "-o", "p.h5", "--columns", "4", "--offset", "1e5"), 3, "no ray meets"),
    (("v.nii.gz", "-o", "p.h5", "--unit", "mm-1"), 2, "attenuates nowhere"),
    (("v.nii.gz", "-o", "p.h5", "--spectrum", "500"), 2, "30 to 150 kV"),
    (("v.nii.gz", "-o", "p.h5", "--metal", "v.nii.gz", "--material", "unobtainium"), 9, "unobtainium"),
    (("v.nii.gz", "-o", "p.h5", "--views", "1000000000"), 7, "--views"),
]


@pytest.mark.parametrize(("words", "code", "says"), BAD, ids=[" ".join(w) for w, _, _ in BAD])
def test_bad_words(medfields, disc: Volume, tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    if "--metal" in words:
        write_volume(disc.with_data((disc.data > -500).float()), tmp_path / "m.nii.gz")
        words = tuple(w if n == 0 or w != "v.nii.gz" else "m.nii.gz" for n, w in enumerate(words))
    said = medfields("simulate", "ct", *words)
    assert said.code == code and says in said.err, said.err
    assert "Traceback" not in said.err and not (tmp_path / "p.h5").exists()


def test_an_image_of_another_unit_is_not_projected(medfields, disc: Volume, tmp_path: Path) -> None:
    """HU whose air was cut away, a label map, an image with holes: each would make projections that look like some."""
    inside = disc.data > -500
    odd = {"cut": torch.where(inside, 40.0, 0.0), "labels": torch.where(inside, 3.0, 0.0), "nan": torch.where(inside, 0.02, torch.nan)}
    for name, data in odd.items():
        write_volume(disc.with_data(data), tmp_path / f"{name}.nii.gz")
        said = medfields("simulate", "ct", f"{name}.nii.gz", "-o", "p.h5", "--views", 2)
        assert said.code == 2 and ("not numbers" if name == "nan" else "HU are told by values below -100") in said.err, said.err
    said = medfields("simulate", "ct", "v.nii.gz", "-o", "p.h5", "--views", 2, "--metal", "v.nii.gz")
    assert said.code == 2 and "holds values down to -1000" in said.err and not (tmp_path / "p.h5").exists()
