"""Files of projections: our layout, the layouts of others against their own formulae, and what bad ones get."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfields.cases import Projections
from medfields.errors import FileError, GeometryError, InputError, MedfieldsError, UnknownName
from medfields.io import Scan, read_projections, write_projections
from medfields.io.matlab import read_mat5
from medfields.io.projections_foreign import from_astra, from_tigre
from medfields.space import Geometry, Grid

POINT = np.array([[7.0, -3.0, 2.0]])
DEGREES = np.linspace(0, 357, 20)


def toy() -> Scan:
    case = Projections.toy(size=16, views=9)
    good = np.ones(case.data.shape, bool)
    good[2, 0, 3] = False
    data = np.where(good, case.data.numpy(), 0).astype(np.float32)
    return Scan(data, case.geometry, case.grid, good, 0.02, 1e5, ((40.0, 60.0), (0.25, 0.75)))


def blob(geometry: Geometry, at: tuple[float, float] = (4.0, 1.0), wide: float = 5.0) -> np.ndarray:
    """Line integrals [V, R, C] of 0.02/mm exp(-|x - at|^2 / (2 wide^2)) in the plane, for any rays across z."""
    origin, ray = geometry.rays()
    apart = (ray[..., 0] * (origin[..., 1] - at[1]) - ray[..., 1] * (origin[..., 0] - at[0])) / np.hypot(ray[..., 0], ray[..., 1])
    return (0.02 * wide * np.sqrt(2 * np.pi) * np.exp(-0.5 * (apart / wide) ** 2)).astype(np.float32)


def ours(path: Path, data: np.ndarray, geometry: dict[str, Any], angles: tuple[Any, str | None] | None = None, **more: Any) -> Path:
    """Our layout by hand: attributes of `geometry`, `angles` with their unit; of `more`, arrays are datasets."""
    with h5py.File(path, "w") as file:
        file["projections"] = data
        file["projections"].attrs["unit"] = more.pop("unit", "1")
        group = file.create_group("geometry")
        group.attrs.update(geometry)
        if angles is not None:
            group["angles"] = angles[0]
            if angles[1]:
                group["angles"].attrs["unit"] = angles[1]
        for name, value in more.items():
            if np.ndim(value):
                file[name] = value
            else:
                file.attrs[name] = value
    return path


def refused(path: Path, kind: type[MedfieldsError], words: str, **options: Any) -> None:
    with pytest.raises(kind, match=words) as caught:
        read_projections(path, **options)
    assert type(caught.value) is kind and "\n" not in str(caught.value) and caught.value.hint


FAN = Geometry.fan(np.radians(DEGREES), 32, 1.0, 200.0, 300.0)
FAN_WORDS = {"kind": "fan", "pitch_mm": 1.0, "source_isocentre_mm": 200.0, "source_detector_mm": 300.0}


# ---- our layout


@pytest.mark.parametrize("beam", ["parallel", "cone", "arc"])
def test_what_is_written_is_read(tmp_path: Path, beam: str) -> None:
    made = toy()
    if beam != "parallel":
        geometry = Geometry.cone(np.linspace(0, 5, 9), (1, 24), (1.5, 1.0), 300, 500, offset=(1.0, 7.0), arc=beam == "arc", rise=3.0,
                                 tilt=0.0 if beam == "arc" else 0.02, isocentre=(1, 2, 3))
        made = Scan(made.data[:9, :1, :24], geometry, made.grid, None, 0.02, spectrum=None)
    write_projections(made, tmp_path / "a.h5")
    found = read_projections(tmp_path / "a.h5")
    np.testing.assert_array_equal(found.data, made.data)
    for name in ("source", "centre", "u", "v"):
        np.testing.assert_array_equal(getattr(found.geometry, name), getattr(made.geometry, name))
    assert (found.geometry.beam, found.geometry.arc, found.geometry.shape) == (made.geometry.beam, made.geometry.arc, made.geometry.shape)
    assert (found.water, found.photons, found.spectrum) == (made.water, made.photons, made.spectrum)
    assert found.grid is not None and made.grid is not None and found.grid.same_as(made.grid)
    assert (found.good is None) == (made.good is None) and (made.good is None or bool((found.good == made.good).all()))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.h5"]


def test_the_same_scan_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        write_projections(toy(), tmp_path / name)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("words", [
    {"pitch_mm": 1.0, "source_isocentre_cm": 20.0, "source_detector_m": 0.3},
    {"pitch": 0.1, "source_isocentre": 20.0, "source_detector": 30.0, "unit": "cm"},
    {"pitch_um": 1000.0, "source_isocentre": 0.2, "source_isocentre_unit": "m", "source_detector_mm": 300.0},
])
@pytest.mark.parametrize("unit", ["degree", "radian"])
def test_lengths_and_angles_of_any_unit(tmp_path: Path, words: dict[str, Any], unit: str) -> None:
    angles = (DEGREES if unit == "degree" else np.radians(DEGREES), unit)
    found = read_projections(ours(tmp_path / "a.h5", blob(FAN), {"kind": "fan", **words}, angles))
    np.testing.assert_allclose(found.geometry.source, FAN.source, atol=1e-9)
    np.testing.assert_allclose(found.geometry.u, FAN.u, atol=1e-9)
    assert found.notes == ()


def test_the_circular_form_knows_offset_roll_tilt_and_rise(tmp_path: Path) -> None:
    g = Geometry.cone(np.radians(DEGREES), (4, 32), (2.0, 1.0), 200, 300, offset=(1.0, 6.0), roll=0.01, tilt=-0.02, rise=4.0, isocentre=(1, 2, 3))
    words = {"kind": "cone", "pitch_mm": [2.0, 1.0], "source_isocentre_mm": 200.0, "source_detector_mm": 300.0, "offset_mm": [1.0, 6.0],
             "roll_radian": 0.01, "tilt_degree": np.degrees(-0.02), "rise_mm": 4.0, "isocentre_mm": [1.0, 2.0, 3.0], "rows": 4}
    found = read_projections(ours(tmp_path / "a.h5", blob(g), words, (DEGREES, "degree"))).geometry
    for name in ("source", "centre", "u", "v"):
        np.testing.assert_allclose(getattr(found, name), getattr(g, name), atol=1e-12)


def test_vectors_in_lps_are_flipped(tmp_path: Path) -> None:
    flip = np.diag([-1.0, -1.0, 1.0])
    vectors = {name: getattr(FAN, name) @ flip for name in ("source", "centre", "u", "v")}
    path = ours(tmp_path / "a.h5", blob(FAN), {"beam": "cone", "unit": "mm", "frame": "LPS"})
    with h5py.File(path, "a") as file:
        for name, value in vectors.items():
            file[f"geometry/{name}"] = value
    np.testing.assert_allclose(read_projections(path).geometry.project(POINT), FAN.project(POINT), atol=1e-9)
    with h5py.File(path, "a") as file:
        del file["geometry"].attrs["frame"]
    refused(path, GeometryError, "frame.*frame = 'RAS'")


def test_counts_become_line_integrals_and_bad_pixels_are_counted(tmp_path: Path) -> None:
    """Noise-free counts give the line integrals back; what has none is masked, with a count for each reason."""
    flat, dark = np.full((1, 32), 5000.0) + np.arange(32), np.full((3, 1, 32), 100.0)
    true = blob(FAN)
    counts = np.rint(np.exp(-true) * (flat - 100) + 100).astype(np.uint16)
    counts[0, 0, :2], counts[3, 0, 5], flat[0, 31] = 65535, 90, 100
    found = read_projections(ours(tmp_path / "a.h5", counts, FAN_WORDS, (DEGREES, "degree"), unit="counts", flat=flat, dark=dark))
    assert found.good is not None and int((~found.good).sum()) == 2 + 1 + 20
    np.testing.assert_allclose(found.data[found.good], true[found.good], atol=2e-4)
    assert (found.data[~found.good] == 0).all()
    told = " ".join(found.notes)
    assert "2 saturated" in told and "1 pixels without counts" in told and "1 detector pixels without a flat field" in told and "NaN" not in told
    found = read_projections(ours(tmp_path / "b.h5", np.exp(-true) * 1e4, FAN_WORDS, (DEGREES, "degree"), unit="counts", photons=1e4))
    np.testing.assert_allclose(found.data, true, atol=1e-5)
    assert found.photons == 1e4
    refused(ours(tmp_path / "c.h5", counts, FAN_WORDS, (DEGREES, "degree"), unit="counts"), InputError, "open beam")


def test_nan_and_the_files_own_mask(tmp_path: Path) -> None:
    data, mask = blob(FAN), np.ones((1, 32), np.uint8)
    data[1, 0, 4], data[2, 0, 5:7], mask[0, 9] = np.inf, np.nan, 0
    found = read_projections(ours(tmp_path / "a.h5", data, FAN_WORDS, (DEGREES, "degree"), mask=mask))
    assert found.good is not None and int((~found.good).sum()) == 3 + 20 and np.isfinite(found.data).all()
    assert "3 NaN or infinite pixels masked" in found.notes and "20 pixels masked by the file" in found.notes


@pytest.mark.parametrize("change, kind, words", [
    ({"angles": (DEGREES, None)}, GeometryError, "'angles' states no unit.*degree"),
    ({"angles": (DEGREES, "radian")}, GeometryError, "reach 357.*look like degrees"),
    ({"angles": (DEGREES[:-1], "degree")}, GeometryError, "19 angles for 20 projections"),
    ({"angles": (DEGREES * np.nan, "degree")}, GeometryError, "finite"),
    ({"angles": (DEGREES, "furlong")}, GeometryError, "no unit of an angle"),
    ({"angles": None}, GeometryError, "does not say 'angles'"),
    ({"geometry": {**FAN_WORDS, "kind": "helix"}}, GeometryError, "no kind of geometry"),
    ({"geometry": {**FAN_WORDS, "ofset_mm": 3.0}}, UnknownName, "ofset_mm.*did you mean 'offset'"),
    ({"geometry": {**FAN_WORDS, "source_detector_mm": 30.0}}, GeometryError, "swapped"),
    ({"geometry": {"kind": "fan", "pitch_mm": 1.0, "source_isocentre": 200.0, "source_detector": 300.0}}, GeometryError, "without a unit.*_mm"),
    ({"geometry": {**FAN_WORDS, "columns": 64}}, GeometryError, "says 64 columns"),
    ({"geometry": {**FAN_WORDS, "pitch_mm": -1.0}}, GeometryError, "'pitch' must be above 0, got -1"),  # it would mirror the slice
    ({"geometry": {**FAN_WORDS, "arc": "false"}}, GeometryError, "'arc' is neither true nor false: 'false'"),  # a text is true to Python
    ({"geometry": {**FAN_WORDS, "source_isocentre_mm": np.nan}}, GeometryError, "must be one finite number, got nan"),
    ({"geometry": {**FAN_WORDS, "pitch_mm": 100.0}}, GeometryError, "detector pixels of 100"),
    ({"geometry": {**FAN_WORDS, "source_isocentre_mm": 0.5, "source_detector_mm": 300.0}}, GeometryError, "magnifies 600 times"),
    ({"geometry": {**FAN_WORDS, "source_isocentre_mm": 5.0, "source_detector_mm": 7.0}}, GeometryError, "fan out by 133 degrees.*cm or m"),
    ({"data": -blob(FAN)}, InputError, "negative.*sign"),
    ({"data": blob(FAN) + 3000}, InputError, "look like counts"),
    ({"data": blob(FAN) * np.nan}, InputError, "no pixel can be trusted"),
    ({"data": blob(FAN) * 1j}, InputError, "complex"),
    ({"data": blob(FAN)[0, 0]}, InputError, "1 axes"),
    ({"data": np.array([b"text"])}, InputError, "axes"),
    ({"unit": "HU"}, InputError, "no unit of projections"),
    ({"mask": np.ones((3, 3))}, InputError, "mask is 3 x 3"),
    ({"mask": np.zeros((1, 32))}, InputError, "no pixel can be trusted"),
    ({"water_per_mm": -1.0}, InputError, "water_per_mm"),
    ({"spectrum": np.ones(3)}, InputError, "spectrum"),
    ({"version": 2}, FileError, "version 2.*newer"),
])
def test_what_cannot_be_meant_is_named(tmp_path: Path, change: dict[str, Any], kind: type[MedfieldsError], words: str) -> None:
    content: dict[str, Any] = {"data": blob(FAN), "geometry": FAN_WORDS, "angles": (DEGREES, "degree"), **change}
    refused(ours(tmp_path / "a.h5", **content), kind, words)


@pytest.mark.parametrize("angles, unit, words", [
    (np.linspace(0, 6.2, 20), "degree", "span only 6.2 degrees: are they radians"),
    (np.r_[DEGREES[10:], DEGREES[:10]], "degree", "not sorted"),
    (np.r_[DEGREES[:19], 360.0], "degree", "1 angles are repeated"),
])
def test_odd_angles_are_noted_and_kept_in_order(tmp_path: Path, angles: np.ndarray, unit: str, words: str) -> None:
    found = read_projections(ours(tmp_path / "a.h5", blob(FAN), FAN_WORDS, (angles, unit)))
    assert words in " ".join(found.notes) and len(found.notes) == 1
    np.testing.assert_allclose(found.geometry.source, Geometry.fan(np.radians(angles), 32, 1.0, 200.0, 300.0).source, atol=1e-9)


def test_doubts_that_are_no_errors(tmp_path: Path) -> None:
    def notes(**change: Any) -> str:
        content: dict[str, Any] = {"data": blob(FAN), "geometry": FAN_WORDS, "angles": (DEGREES, "degree"), **change}
        return " ".join(read_projections(ours(tmp_path / "a.h5", **content)).notes)

    assert notes() == ""
    assert "0.2/mm" in notes(water_per_mm=0.2) and notes(water_per_mm=0.02) == ""
    assert "-log(I / I0) forgotten" in notes(data=np.exp(-blob(FAN)))
    assert "fan out by only" in notes(geometry={**FAN_WORDS, "pitch_mm": 0.005})
    assert "magnifies 60 times" in notes(geometry={**FAN_WORDS, "source_isocentre_mm": 5.0})
    assert "no ray comes nearer than 16.28 mm to the axis" in notes(geometry={**FAN_WORDS, "offset_mm": 40.0})
    assert notes(geometry={**FAN_WORDS, "offset_mm": 15.0}) == ""  # a half-fan sees it


def test_one_row_may_lack_its_axis(tmp_path: Path) -> None:
    found = read_projections(ours(tmp_path / "a.h5", blob(FAN)[:, 0], FAN_WORDS, (DEGREES, "degree")))
    np.testing.assert_array_equal(found.data, blob(FAN))


# ---- files that are none


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    content = {"DSD": 1500.0, "train": Trap()}
    (tmp_path / "naf.pickle").write_bytes(pickle.dumps(content))
    (tmp_path / "naf.h5").write_bytes(pickle.dumps(content))
    np.save(tmp_path / "a.npy", np.array([content], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=np.array([content], dtype=object))
    for name in ("naf.pickle", "naf.h5", "a.npy"):
        refused(tmp_path / name, FileError, "is a pickle.*docs/projections.md")
    refused(tmp_path / "a.npz", FileError, "archive")
    assert not (tmp_path / "sprung").exists()


def test_other_and_damaged_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.h5", FileError, "no file")
    refused(tmp_path, FileError, "folder")
    (tmp_path / "a.txt").write_text("a,b\n")
    refused(tmp_path / "a.txt", FileError, "content is text")
    write_projections(toy(), tmp_path / "a.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:4000])
    refused(tmp_path / "cut.h5", FileError, "cannot read.*truncated")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["voxels"] = np.ones(3)
    refused(tmp_path / "b.h5", FileError, r"only \['voxels'\].*expected")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["projections"] = h5py.ExternalLink(str(tmp_path / "b.h5"), "voxels")
    refused(tmp_path / "c.h5", FileError, "in another file")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_dataset("projections", (10**6, 10**3, 10**3), "f4", chunks=(1, 100, 100))
    refused(tmp_path / "d.h5", FileError, "more than it can hold")
    refused(tmp_path / "a.h5", InputError, "pitch cannot be given", pitch=1.0)


H5 = b""


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 1 << 15), st.integers(0, 255)), min_size=1, max_size=12), st.sampled_from([0, 0, 0, 1, 500]))
def test_damaged_bytes_give_a_scan_or_one_line(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int) -> None:
    global H5
    path = tmp_path_factory.getbasetemp() / "fuzz.h5"
    if not H5:
        write_projections(toy(), path)
        H5 = path.read_bytes()
    made = bytearray(H5)
    for at, value in flips:
        made[at % len(made)] = value
    path.write_bytes(made[:len(made) - cut])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            read_projections(path)
        except MedfieldsError as error:
            assert "\n" not in str(error)


# ---- DXchange


def dxchange(path: Path, centre: float, degrees: np.ndarray, **leave_out: bool) -> tuple[Path, np.ndarray]:
    """Counts of a blob away from an axis that falls on column `centre`; rows brighter from the top."""
    geometry = Geometry.parallel(np.radians(degrees), 100, 0.5, rows=2, offset=(49.5 - centre) * 0.5)
    true = blob(geometry) * np.array([1.0, 0.5])[:, None]
    with h5py.File(path, "w") as file:
        content = {"data": (np.exp(-true) * 9900 + 100).astype(np.float32), "data_white": np.full((4, 2, 100), 1e4),
                   "data_dark": np.full((4, 2, 100), 100.0), "theta": degrees}
        for name, value in content.items():
            if not leave_out.get(name):
                file[f"exchange/{name}"] = value
        file["exchange/theta"].attrs["units"] = "degrees"
    return path, true


@pytest.mark.parametrize("degrees", [np.linspace(0, 180, 60, endpoint=False), np.linspace(0, 180, 61), np.linspace(0, 360, 90, endpoint=False)])
@pytest.mark.parametrize("centre", [49.5, 41.2, 60.75])
def test_the_axis_of_rotation_is_found(tmp_path: Path, degrees: np.ndarray, centre: float) -> None:
    path, true = dxchange(tmp_path / "a.h5", centre, degrees)
    found = read_projections(path, pitch=0.5)
    np.testing.assert_allclose(found.data, true, atol=1e-4)
    at = found.geometry.project(np.zeros((1, 3)))
    np.testing.assert_allclose(at[0], centre, atol=0.05)
    assert "found from" in " ".join(found.notes) and "do not mirror" not in " ".join(found.notes)
    given_ = read_projections(path, pitch=0.5, centre=centre).geometry
    np.testing.assert_allclose(given_.project(np.zeros((1, 3)))[0], centre, atol=1e-9)
    column, row = given_.project(np.array([[4.0, 1.0, 0.25]]))
    np.testing.assert_allclose(column[:, 0], found.data[:, 0].argmax(-1), atol=0.51)
    np.testing.assert_allclose(row, 0.0, atol=1e-9)  # the upper of two rows of 0.5 mm: rows run down


def test_dxchange_without_its_parts(tmp_path: Path) -> None:
    degrees = np.linspace(0, 90, 30)
    told = " ".join(read_projections(dxchange(tmp_path / "a.h5", 50, degrees)[0]).notes)
    assert "no views half a turn apart" in told and "1 mm is assumed" in told
    refused(dxchange(tmp_path / "b.h5", 50, degrees, data_white=True)[0], InputError, "no 'exchange/data_white'")
    path = dxchange(tmp_path / "c.h5", 50, degrees)[0]
    refused(path, GeometryError, "cannot fall on column 200", centre=200.0)
    with h5py.File(path, "a") as file:
        del file["exchange/data"]
    refused(path, FileError, "no 'exchange/data'")


@pytest.mark.data
def test_the_tooth(data: Path) -> None:
    found = read_projections(data / "i_projections/tomopy_tooth.h5")
    assert found.data.shape == (181, 2, 640) and found.good is None and found.geometry.beam == "parallel"
    column = found.geometry.project(np.zeros((1, 3)))[0]
    assert 295 < column.min() == column.max() < 297  # tomopy's own example says 296
    assert 1.5 < found.data.max() < 2.5 and abs(np.median(found.data[..., :20])) < 0.05


# ---- MATLAB


def htc(**change: Any) -> dict[str, Any]:
    degrees = np.arange(0, 30, 0.5)
    geometry = Geometry.fan(np.radians(degrees), 40, 0.2, 410.66, 553.74)
    parameters = {"distanceSourceOrigin": 410.66, "distanceSourceDetector": 553.74, "distanceUnit": "mm", "geometricMagnification": 1.3484,
                  "angles": degrees, "pixelSize": 0.05, "pixelSizePost": 0.2, "effectivePixelSizePost": 0.1483, "numDetectorsPost": 40,
                  "scanner": "made up", **change}
    return {"type": "2D", "sinogram": blob(geometry, (1.0, 0.5), 1.0)[:, 0].astype(np.float64),
            "parameters": {name: value for name, value in parameters.items() if value is not None}}


@pytest.mark.parametrize("name", ["CtDataFull", "CtDataLimited", "ct_data"])
@pytest.mark.parametrize("version", ["5", "7.3"])
def test_fips_and_htc(tmp_path: Path, name: str, version: str) -> None:
    path, content = tmp_path / "htc.mat", htc()
    if version == "5":
        scipy.io.savemat(path, {name: content})
    else:
        with h5py.File(path, "w", userblock_size=512) as file:
            group = file.create_group(name)
            group["sinogram"] = content["sinogram"].T
            for key, value in content["parameters"].items():
                text = isinstance(value, str)
                group[f"parameters/{key}"] = np.frombuffer(value.encode("utf-16-le"), np.uint16)[:, None] if text else np.atleast_2d(value).T
                group[f"parameters/{key}"].attrs["MATLAB_class"] = np.bytes_("char" if text else "double")
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file, Platform: none".ljust(512))
    found = read_projections(path)
    np.testing.assert_allclose(found.data[:, 0], content["sinogram"], atol=1e-6)
    np.testing.assert_allclose(found.geometry.project(POINT), Geometry.fan(np.radians(np.arange(0, 30, 0.5)), 40, 0.2, 410.66, 553.74).project(POINT))
    assert found.notes == (f"read '{name}'",)


@pytest.mark.parametrize("change, kind, words", [
    ({"pixelSizePost": None, "effectivePixelSizePost": 0.1483224}, None, ""),
    ({"pixelSizePost": None, "effectivePixelSizePost": None, "numDetectorsPost": None, "effectivePixelSize": 0.1483224}, None, ""),
    ({"distanceSourceOrigin": 41.066, "distanceSourceDetector": 55.374, "distanceUnit": "cm", "pixelSizePost": 0.02, "effectivePixelSizePost": None,
      "pixelSize": None}, None, ""),
    ({"pixelSizePost": -0.2}, GeometryError, "'pixelSizePost' must be above 0, got -0.2"),
    ({"numDetectorsPost": 560}, GeometryError, "40 columns, its parameters say 560"),
    ({"angles": np.arange(5)}, GeometryError, "5 angles for 60"),
    ({"distanceSourceOrigin": None}, GeometryError, "distanceSourceOrigin"),
    ({"distanceSourceOrigin": 600.0}, GeometryError, "not between"),
    ({"pixelSize": None, "pixelSizePost": None, "effectivePixelSizePost": None}, GeometryError, "no pixel size"),
])
def test_fips_parameters(tmp_path: Path, change: dict[str, Any], kind: type[MedfieldsError] | None, words: str) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"CtData": htc(**change)})
    if kind is None:
        assert read_projections(tmp_path / "a.mat").geometry.pitch[0, 0] == pytest.approx(0.2, rel=1e-4)
    else:
        with pytest.raises(kind, match=words):
            read_projections(tmp_path / "a.mat")


def test_a_mat_without_a_scan_or_cut_off(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"A": np.eye(3), "m": np.ones(3)})
    refused(tmp_path / "a.mat", FileError, r"no struct.*\['A', 'm'\]")
    scipy.io.savemat(tmp_path / "b.mat", {"CtDataFull": htc()})
    (tmp_path / "c.mat").write_bytes((tmp_path / "b.mat").read_bytes()[:3000])
    refused(tmp_path / "c.mat", FileError, "cannot read")
    scipy.io.savemat(tmp_path / "d.mat", {"A": np.eye(3)}, format="4")
    refused(tmp_path / "d.mat", FileError, "no MATLAB file of version 5")


NESTED = {"numbers": np.arange(24.0).reshape(2, 3, 4), "whole": np.arange(7, dtype=np.int16), "waves": np.array([1 + 2j, 3 - 1j]), "one": 2.5,
          "text": "Röntgen", "none": np.zeros((0, 0)), "struct": {"a": {"b": np.float32(3)}, "c": "d"}, "sparse": scipy.sparse.eye(3, format="csc"),
          "cell": np.array([1.0, "two", np.ones(3)], dtype=object), "rows": np.array([(1, 2.0), (3, 4.0)], dtype=[("x", "O"), ("y", "O")])}


@pytest.mark.parametrize("packed", [False, True])
def test_matlab_is_read_as_scipy_reads_it(tmp_path: Path, packed: bool) -> None:
    scipy.io.savemat(tmp_path / "a.mat", NESTED, do_compression=packed)
    ours, theirs = read_mat5(tmp_path / "a.mat"), scipy.io.loadmat(tmp_path / "a.mat", simplify_cells=True)
    assert list(ours) == list(NESTED) and ours["sparse"] is None
    for name in ("numbers", "whole", "waves", "one"):
        np.testing.assert_array_equal(ours[name], theirs[name])
        assert ours[name].dtype == np.asarray(theirs[name]).dtype and ours[name].shape == np.shape(theirs[name])
    assert ours["none"].size == 0 and ours["text"] == "Röntgen" and ours["struct"] == {"a": {"b": 3.0}, "c": "d"} == theirs["struct"]
    assert ours["rows"] == [{"x": 1, "y": 2.0}, {"x": 3, "y": 4.0}]
    assert [str(part) for part in ours["cell"]] == ["1.0", "two", "[1. 1. 1.]"]


def test_matlab_of_a_big_endian_machine(tmp_path: Path) -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    matrix = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 2, 2)) + struct.pack(">HH4s", 1, 1, b"m")
    content = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + element(14, matrix + element(9, struct.pack(">4d", 1, 2, 3, 4)))
    (tmp_path / "a.mat").write_bytes(content)
    np.testing.assert_array_equal(read_mat5(tmp_path / "a.mat")["m"], [[1, 3], [2, 4]])


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_mat_is_refused_in_one_line(tmp_path: Path, packed: bool) -> None:
    """Lengths that promise more than there is, an end that is missing, rubbish in the middle: at every place of a small file."""
    scipy.io.savemat(tmp_path / "a.mat", {"CtData": htc()}, do_compression=packed)
    whole, path = bytearray((tmp_path / "a.mat").read_bytes()), tmp_path / "b.mat"
    for at in range(0, 127, 9):
        path.write_bytes(whole[:at])
        refused(path, FileError, "is no MATLAB file|is empty")
    for at in [*range(128, len(whole) - 1, max(1, len(whole) // 40)), len(whole) - 1]:
        if at > 128:
            path.write_bytes(whole[:at])
            refused(path, FileError, "cannot read")
    for change in (struct.pack("<I", 0xFFFFFFFF), struct.pack("<I", 0x7FFFFFF0), bytes(range(200, 240)), b"\0" * 40):
        for at in range(128, min(len(whole), 1200), 4):
            made = bytearray(whole)
            made[at:at + len(change)] = change
            path.write_bytes(made[:len(whole)])
            try:
                read_projections(path)
            except MedfieldsError as error:
                assert "\n" not in str(error)
            else:
                assert not packed  # the checksum of a deflated file notices every change
    size = int.from_bytes(whole[132:136], "little")
    path.write_bytes(whole[:132] + (size + 1).to_bytes(4, "little") + whole[136:])
    refused(path, FileError, "cannot read.*promises")


# ---- ASTRA


def astra(kind: str, t: np.ndarray) -> np.ndarray:
    """The vectors that ASTRA's documentation gives for its circular geometries: DSO 200, DOD 100, pixels of 1.5 (u) x 2 (v)."""
    c, s, z = np.cos(t), np.sin(t), 0 * t
    if kind == "fanflat_vec":
        return np.stack([200 * s, -200 * c, -100 * s, 100 * c, 1.5 * c, 1.5 * s], 1)
    if kind == "parallel_vec":
        return np.stack([s, -c, z, z, 1.5 * c, 1.5 * s], 1)
    first = [200 * s, -200 * c, z, -100 * s, 100 * c, z] if kind == "cone_vec" else [s, -c, z, z, z, z]
    return np.stack([*first, 1.5 * c, 1.5 * s, z, z, z, z + 2.0], 1)


@pytest.mark.parametrize("kind", ["cone_vec", "parallel3d_vec", "fanflat_vec", "parallel_vec"])
def test_astra_sees_a_point_where_its_formula_says(kind: str) -> None:
    t = np.radians(DEGREES)
    rows = 1 if kind in ("fanflat_vec", "parallel_vec") else 6
    column, row = from_astra(astra(kind, t), (rows, 30)).project(POINT)
    x, y, z = POINT[0]
    along, depth = x * np.cos(t) + y * np.sin(t), 200 + y * np.cos(t) - x * np.sin(t)
    enlarged = np.where(kind in ("cone_vec", "fanflat_vec"), 300 / depth, 1.0)
    np.testing.assert_allclose(column[:, 0], 14.5 + enlarged * along / 1.5, atol=1e-9)
    np.testing.assert_allclose(row[:, 0], (rows - 1) / 2 + enlarged * z / (2.0 if rows > 1 else 1.5), atol=1e-9)


@pytest.mark.parametrize("kind", ["cone_vec", "parallel3d_vec"])
@pytest.mark.parametrize("table", [".npy", ".csv", ".txt"])
@pytest.mark.parametrize("order", ["ours", "astra"])
def test_astra_vectors_beside_a_stack(tmp_path: Path, kind: str, table: str, order: str) -> None:
    vectors = astra(kind, np.radians(DEGREES))
    geometry = from_astra(vectors, (6, 30))
    data = blob(geometry)
    np.save(tmp_path / "a.npy", data if order == "ours" else data.swapaxes(0, 1))
    where = tmp_path / f"{'vec' if table == '.npy' else 'a'}{table}"
    if table == ".npy":
        np.save(where, vectors)
    else:
        np.savetxt(where, vectors, delimiter="," if table == ".csv" else " ", header=kind)
    found = read_projections(tmp_path / "a.npy", geometry=where if table == ".npy" else None)
    np.testing.assert_array_equal(found.data, data)
    np.testing.assert_allclose(found.geometry.project(POINT), geometry.project(POINT))
    assert ("ASTRA's order" in " ".join(found.notes)) == (order == "astra")


def test_astra_that_does_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", blob(FAN))
    np.savetxt(tmp_path / "a.csv", astra("fanflat_vec", np.radians(DEGREES))[:7], delimiter=",")
    refused(tmp_path / "a.npy", GeometryError, "20 x 1 x 32 projections do not fit a geometry of 7 x 1 x 32")
    np.savetxt(tmp_path / "a.csv", np.ones((20, 5)), delimiter=",")
    refused(tmp_path / "a.npy", GeometryError, "12 or 6")
    (tmp_path / "a.csv").write_text("one,two\n")
    refused(tmp_path / "a.npy", FileError, "cannot read")
    (tmp_path / "a.csv").unlink()
    refused(tmp_path / "a.npy", GeometryError, "no geometry beside")
    with pytest.raises(GeometryError, match="one row"):
        from_astra(astra("fanflat_vec", np.radians(DEGREES)), (2, 32))


# ---- TIGRE


def tigre(**change: Any) -> dict[str, Any]:
    made = {"DSD": 300.0, "DSO": 200.0, "nDetector": [6, 30], "dDetector": [2.0, 1.5], "offDetector": [3.0, -4.0], "offOrigin": [1.0, 2.0, 5.0],
            "nVoxel": [4, 8, 10], "sVoxel": [8.0, 8.0, 20.0], "angles": np.radians(DEGREES).tolist(), "mode": "cone", **change}
    return {name: value for name, value in made.items() if value is not None}


@pytest.mark.parametrize("mode", ["cone", "parallel"])
def test_tigre_sees_a_point_where_its_formula_says(mode: str) -> None:
    """Source at DSO (cos a, sin a, 0); detector beyond the origin, its axes (-sin a, cos a, 0) and z, shifted by offDetector (V, U)."""
    geometry, grid, notes = from_tigre(tigre(mode=mode, COR=0.5), (20, 6, 30))
    a, (x, y, z) = np.radians(DEGREES), POINT[0]
    turned, side = x * np.cos(a) + y * np.sin(a), y * np.cos(a) - x * np.sin(a) - 0.5
    enlarged = 300 / (200 - turned) if mode == "cone" else 1.0
    column, row = geometry.project(POINT)
    np.testing.assert_allclose(column[:, 0], 14.5 + (enlarged * side + 4.0) / 1.5, atol=1e-9)
    np.testing.assert_allclose(row[:, 0], 2.5 + (enlarged * z - 3.0) / 2.0, atol=1e-9)
    assert grid is not None and grid.shape == (10, 8, 4) and notes == []
    np.testing.assert_allclose(grid.centre, [5.0, 2.0, 1.0])
    np.testing.assert_allclose(grid.spacing, [2.0, 1.0, 2.0])


def test_a_tigre_image_that_moves_is_a_gantry_that_moves_back() -> None:
    shifts = np.zeros((20, 3))
    shifts[:, 0] = np.arange(20)
    helix = from_tigre(tigre(offOrigin=shifts), (20, 6, 30))[0]
    still = from_tigre(tigre(offOrigin=None), (20, 6, 30))[0]
    for n in (0, 7, 19):
        np.testing.assert_allclose(helix.project(POINT)[1][n], still.project(POINT + np.array([0, 0, n]))[1][n], atol=1e-9)


@pytest.mark.parametrize("kind", ["json", "toml"])
def test_tigre_beside_a_stack(tmp_path: Path, kind: str) -> None:
    entries = tigre()
    geometry = from_tigre(entries, (20, 6, 30))[0]
    np.save(tmp_path / "a.npy", blob(geometry).astype(np.float64))
    text = json.dumps(entries) if kind == "json" else "\n".join(f"{k} = {json.dumps(v)}" for k, v in entries.items())
    (tmp_path / f"a.{kind}").write_text(text)
    found = read_projections(tmp_path / "a.npy")
    np.testing.assert_allclose(found.data, blob(geometry))
    np.testing.assert_allclose(found.geometry.project(POINT), geometry.project(POINT))
    assert found.grid is not None and found.grid.shape == (10, 8, 4)


@pytest.mark.parametrize("change, words", [
    ({"DSD": None}, "needs DSD"), ({"angles": DEGREES.tolist()}, "look like degrees"), ({"nDetector": [30, 6]}, "order is rows, columns"),
    ({"DSO": 400.0}, "smaller than DSD"), ({"rotDetector": [0.1, 0, 0]}, "turned detector"), ({"mode": "spiral"}, "no mode"),
    ({"offDetector": [1, 2, 3]}, "two"), ({"DSD": float("nan")}, "finite"), ({"angles": [[0.0, 0.1, 0.0]] * 20}, "other axes"),
    ({"nVoxel": [4, 0, 10]}, "positive numbers"), ({"dDetector": [1.0, -1.0]}, "'dDetector' must be above 0"),
])
def test_tigre_that_cannot_be_meant(change: dict[str, Any], words: str) -> None:
    with pytest.raises(GeometryError, match=words):
        from_tigre(tigre(**change), (20, 6, 30))


# ---- NIfTI


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("counts", [False, True])
def test_nifti_sinograms(tmp_path: Path, rows: int, counts: bool) -> None:
    nibabel = pytest.importorskip("nibabel")
    geometry = Geometry.cone(np.radians(DEGREES), (rows, 32), 1.0, 200, 300)
    true = blob(geometry)
    stored = (np.exp(-true) * 1e5 if counts else true).astype(np.float32)
    lying = stored[:, 0].T if rows == 1 else stored.transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(lying, np.eye(4)), tmp_path / "sino.nii.gz")
    words = {**FAN_WORDS, "kind": "cone", "angles_degree": DEGREES.tolist(), "water_per_mm": 0.02}
    (tmp_path / "sino.json").write_text(json.dumps(words | ({"data_unit": "counts", "photons": 1e5} if counts else {})))
    found = read_projections(tmp_path / "sino.nii.gz")
    np.testing.assert_allclose(found.data, true, atol=1e-4 if counts else 0)
    np.testing.assert_allclose(found.geometry.source, geometry.source)
    assert found.water == 0.02 and found.photons == (1e5 if counts else 0)


@pytest.mark.parametrize("text, kind, words", [
    ("{", FileError, "cannot read"), ("[1]", FileError, "no named entries"), ("{}", GeometryError, "does not say its kind"),
    ('{"kind": "fan", "angles": [1, [2]]}', InputError, "no regular array"), ('{"kind": "fan", "angles": [0, 1]}', GeometryError, "states no unit"),
    ('{"kind": "fan", "data_unit": "counts"}', InputError, "open beam"),
])
def test_bad_sidecars(tmp_path: Path, text: str, kind: type[MedfieldsError], words: str) -> None:
    np.save(tmp_path / "a.npy", blob(FAN))
    (tmp_path / "a.json").write_text(text)
    refused(tmp_path / "a.npy", kind, words)


def from_the_docs(start: str) -> str:
    """The Python block of docs/projections.md that begins with `start`."""
    text = (Path(__file__).resolve().parents[2] / "docs/projections.md").read_text(encoding="utf-8")
    return next(block.split("```")[0] for block in text.split("```python\n")[1:] if block.startswith(start))


def test_the_converter_and_the_example_of_the_docs_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    placed = from_tigre(tigre(offDetector=None), (20, 6, 30))[0]
    names = ("nDetector", "dDetector", "nVoxel", "sVoxel", "offOrigin")
    naf = tigre() | {name: tigre()[name][::-1] for name in names} | {"offDetector": [0, 0], "dVoxel": [2.0, 1.0, 2.0]}
    naf["train"] = {"projections": blob(placed)[:, ::-1] * np.arange(6, 0, -1)[:, None], "angles": naf["angles"]}
    Path("chest_50.pickle").write_bytes(pickle.dumps(naf))
    exec(from_the_docs("import json, pickle"), {})
    found = read_projections("chest.npy")
    np.testing.assert_allclose(found.data, blob(placed) * np.arange(1, 7)[:, None], rtol=1e-6)
    np.testing.assert_allclose(found.geometry.project(POINT), placed.project(POINT))
    assert found.grid is not None and found.grid.shape == (10, 8, 4) and found.grid.spacing.tolist() == [2.0, 1.0, 2.0]
    example = Geometry.cone(np.radians(np.arange(0, 360, 2.0)), (2, 16), 0.8, 1000, 1536)
    exec(from_the_docs("import h5py"), {"line_integrals": blob(example)})
    np.testing.assert_allclose(read_projections("scan.h5").geometry.project(POINT), example.project(POINT))


def test_a_scan_makes_a_case(tmp_path: Path) -> None:
    """What a reader gives is what the task takes."""
    import torch

    write_projections(toy(), tmp_path / "a.h5")
    scan = read_projections(tmp_path / "a.h5")
    assert scan.grid is not None and scan.good is not None
    case = Projections(torch.from_numpy(scan.data), scan.geometry, scan.grid, torch.from_numpy(scan.good), water=scan.water)
    assert case.data.shape == (9, 1, 24) and float(case.weight.sum()) == scan.good.sum()
    assert Grid.same_as(case.grid, scan.grid)
