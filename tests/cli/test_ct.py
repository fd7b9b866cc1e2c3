"""ct from file to file: what it writes and says, and what bad input gets."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medfields.cases import Projections
from medfields.cases.attenuation import told_in
from medfields.cli.ct import Options, case_of, parse
from medfields.errors import InputError, OutOfMemory
from medfields.io import read_field, read_volume, write_volume
from medfields.io.projections import write_projections
from medfields.io.scan import Scan
from medfields.operators.detector import Polychromatic
from medfields.operators.materials import attenuation
from medfields.operators.spectrum import Spectrum
from medfields.space import Geometry, Grid, Volume

SPREAD = '''"""Spread: a rough reconstruction and a made-up uncertainty.

Needs: projections.
Gives: attenuation in 1/mm, and its standard deviation.
Fidelity: ours
Use when: testing.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from medfields.cases import Projections
from medfields.solve import Method
from medfields.space import Volume


@dataclass(frozen=True)
class Spread(Method):
    """Nothing but a test."""

    paper: ClassVar[str] = ""
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict] = {}
    fidelity: ClassVar[str] = "ours"
    steps: int = 10

    def solve(self, case: Projections, run, prior=None):
        x = case.rough(10**9, 10**9, self.steps)
        return Volume(torch.stack([x.data[0], 0.1 * x.data[0]]), x.grid, x.unit, about={"names": ("attenuation", "std")})
'''


def written(path: Path, case: Projections, **changes: object) -> Path:
    good = None if case.good is None else case.good.numpy()
    scan = Scan(case.data.numpy(), case.geometry, case.grid, good, case.water, case.photons)
    write_projections(dataclasses.replace(scan, **changes), path)
    return path


@pytest.fixture
def toy(tmp_path: Path) -> Projections:
    """A case whose file is toy.h5, and a method that takes no time."""
    case = Projections.toy(0)
    written(tmp_path / "toy.h5", case)
    (tmp_path / "spread.py").write_text(SPREAD)
    return case


FAST = ("--method", "./spread.py")


def test_writes_volume_deviation_field_and_report_in_hu(medfields, toy: Projections, tmp_path: Path) -> None:
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", *FAST)
    assert said.code == 0, said.err
    assert {"v.nii.gz", "v_std.nii.gz", "v.field", "v.run"} <= {p.name for p in tmp_path.iterdir()}
    hu, std, field = read_volume("v.nii.gz"), read_volume("v_std.nii.gz"), read_field("v.field")
    mu = toy.rough(10**9, 10**9, 10)
    assert torch.allclose(hu.data, 1000 * (mu.data / 0.02 - 1), atol=0.1) and torch.allclose(std.data, 100 * mu.data / 0.02, atol=0.1)
    assert field.channels == 2 and field.unit == "1/mm" and field.about["water_per_mm"] == pytest.approx(0.02)
    assert torch.allclose(field.on(toy.grid).volume().data[0], mu.data[0], atol=1e-6)
    page = (tmp_path / "v.run/report.html").read_text()
    assert "Reconstruction, in HU" in page and "Uncertainty" in page and "Where the rays ran" in page
    for word in ("v.nii.gz", "HU", "standard deviation", "v.field", "spread:"):
        assert word in said.out


@pytest.mark.parametrize(("unit", "factor"), [("mm-1", 1.0), ("cm-1", 10.0)])
def test_other_units(medfields, toy: Projections, unit: str, factor: float) -> None:
    assert medfields("ct", "toy.h5", "-o", "v.nii.gz", "--unit", unit, *FAST).code == 0
    mu = toy.rough(10**9, 10**9, 10).data
    assert torch.allclose(read_volume("v.nii.gz").data, factor * mu, atol=1e-5)
    assert torch.allclose(read_volume("v_std.nii.gz").data, factor * 0.1 * mu, atol=1e-5)


def test_the_default_method_runs(medfields, toy: Projections, tmp_path: Path) -> None:
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--seconds", 20)
    assert said.code == 0, said.err
    assert read_volume("v.nii.gz").grid.same_as(toy.grid) and not (tmp_path / "v_std.nii.gz").exists()


def test_views_that_are_not_used_judge_the_result(medfields, toy: Projections, tmp_path: Path) -> None:
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--use", "::3", *FAST)
    assert said.code == 0, said.err
    used, rest = toy.subset(slice(0, 12, 3)), toy.subset([1, 2, 4, 5, 7, 8, 10, 11])
    expected = 100 * rest.misfit(used.rough(10**9, 10**9, 10))[1]
    assert float(re.search(r"held out error percent ([\d.]+)", said.out)[1]) == pytest.approx(expected, rel=1e-3)
    page = (tmp_path / "v.run/report.html").read_text()
    assert "Views that were held out" in page and "A slice from 4 parallel-beam views" in page and "SIRT, 100 steps" in page


def test_resolved_configuration_does_the_same_again_and_the_report_too(medfields, toy: Projections, tmp_path: Path) -> None:
    assert medfields("ct", "toy.h5", "-o", "a.nii.gz", "--use", "::2", "--spacing", 3, *FAST, "--steps", 4).code == 0
    config = tomllib.loads((tmp_path / "a.run/config.toml").read_text())
    assert (config["task"], config["use"], config["spacing"], config["hyper"]["steps"]) == ("ct", "::2", 3, 4)
    assert medfields("ct", "--config", "a.run/config.toml", "-o", "b.nii.gz").code == 0
    assert Path("a.nii.gz").read_bytes() == Path("b.nii.gz").read_bytes()
    page = tmp_path / "a.run/report.html"
    first = page.read_text()
    page.unlink()
    said = medfields("report", "a.run")
    assert said.code == 0, said.err
    assert page.read_text() == first
    assert medfields("report", "a.run", "--truth", "a.nii.gz").code == 0 and "Error against the truth" in page.read_text()


def test_check_says_and_draws_and_runs_nothing(medfields, toy: Projections, tmp_path: Path) -> None:
    said = medfields("ct", "toy.h5", "--check", "--use", "::3")
    assert said.code == 0, said.err
    for words in ("parallel beam", "4, 45 degrees apart; 8 more are held out", "0 to 135 degrees, an arc of 135", "36 columns x 1 row",
                  "24 x 24 x 1", "0.02/mm", "photons"):
        assert words in said.out, words
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spread.py", "toy.h5", "toy.h5.check.png"]
    image = np.asarray(Image.open("toy.h5.check.png").convert("RGB")).astype(int)
    green, orange = (np.abs(image - colour).sum(-1) < 30 for colour in ((11, 110, 105), (194, 84, 45)))
    assert green.sum() > 300 and orange.sum() > 300
    assert medfields("ct", "toy.h5", "--check", "-o", "v.nii.gz").code == 0 and (tmp_path / "v.run/check.png").is_file()
    assert not (tmp_path / "v.nii.gz").exists()


def test_check_of_a_cone_beam_has_two_drawings_and_the_distances(medfields, tmp_path: Path) -> None:
    geometry = Geometry.cone(np.radians(np.arange(0, 360, 30)), (8, 16), (6.0, 5.0), 500, 1000)
    rays = geometry.rays()
    miss = np.linalg.norm(np.cross(rays[0], rays[1]), axis=-1)
    written(tmp_path / "c.h5", dataclasses.replace(Projections.toy(0), data=torch.zeros(12, 1, 36) + 1), geometry=geometry, grid=None,
            data=(2 * 0.02 * np.sqrt(np.maximum(0, 10**2 - miss**2))).astype(np.float32))
    said = medfields("ct", "c.h5", "--check")
    assert said.code == 0, said.err
    for words in ("cone beam, flat detector", "source to isocentre 500 mm, source to detector 1000 mm", "magnification    2", "16 x 16 x 8",
                  "5 mm between columns, 6 mm between rows"):
        assert words in said.out, words
    width, height = Image.open("c.h5.check.png").size
    assert height > 1.2 * width


def test_prior_is_laid_on_the_new_scan(medfields, toy: Projections, tmp_path: Path) -> None:
    affine = toy.grid.affine.copy()
    affine[:2, 3] += (6.0, -4.0)
    moved = Volume(toy.prior.data, Grid(toy.grid.shape, affine))
    write_volume(told_in(moved, "HU", 0.02), tmp_path / "earlier.nii.gz")
    cases = {}
    for register in (True, False):
        options = Options(projections="toy.h5", prior="earlier.nii.gz", register=register)
        case, _, notes = case_of(options)
        cases[register] = float((case.prior.data - toy.prior.data).abs().mean() / toy.prior.data.abs().mean())
        assert any("shifted by" in n for n in notes) == register
    assert cases[True] < 0.12 < 0.3 < cases[False], cases
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--prior", "earlier.nii.gz", *FAST)
    assert said.code == 0 and "another patient" not in said.err


def test_what_the_method_has_no_use_for_is_said(medfields, toy: Projections, tmp_path: Path) -> None:
    write_volume(told_in(Volume(toy.prior.data, toy.grid), "HU", 0.02), tmp_path / "earlier.nii.gz")
    told = {}
    for name in ("fbp", "nerp"):
        said = medfields("ct", "toy.h5", "--check", "--prior", "earlier.nii.gz", "--no-register", "--method", name)
        assert said.code == 0, said.err
        told[name] = "makes no use of --prior; --method nerp does" in said.out + said.err
    assert told == {"fbp": True, "nerp": False}


def test_prior_of_another_patient_is_named(medfields, toy: Projections, tmp_path: Path) -> None:
    other = np.zeros(toy.grid.shape)
    other[4:9, 3:20] = 0.03
    write_volume(Volume(other, toy.grid), tmp_path / "other.nii.gz")
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--prior", "other.nii.gz", *FAST)
    assert said.code == 0 and re.search(r"the prior explains the data [\d.]+ times worse than a quick reconstruction", said.err)
    far = Volume(other, Grid.from_spacing(toy.grid.shape, 2.0, (5000, 0, 0)))
    write_volume(far, tmp_path / "far.nii.gz")
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--prior", "far.nii.gz", "--no-register", *FAST)
    assert said.code == 3 and "does not overlap" in said.err
    thick = Volume(np.repeat(other, 3, 2), Grid.from_spacing((24, 24, 3), 2.0, (*toy.grid.affine[:2, 3], 5000)))
    write_volume(thick, tmp_path / "above.nii.gz")
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--prior", "above.nii.gz", *FAST)
    assert said.code == 3 and "within the plane of the slice only, z = 0 mm" in said.err


def test_metal_mask_must_meet_the_metal(medfields, tmp_path: Path) -> None:
    toy = Projections.toy(0)
    steel = torch.zeros(toy.grid.shape)
    steel[14:17, 10:13] = 0.2
    case = dataclasses.replace(toy, data=toy.data + toy.projector().apply(steel))
    written(tmp_path / "m.h5", case)
    (tmp_path / "spread.py").write_text(SPREAD)
    for name, shift, code in (("good", 0, 0), ("wrong", -9, 2), ("out", 200, 2)):
        affine = toy.grid.affine.copy()
        affine[0, 3] += 2 * shift
        write_volume(Volume((steel > 0).float(), Grid(toy.grid.shape, affine)), tmp_path / f"{name}.nii.gz")
        said = medfields("ct", "m.h5", "-o", "v.nii.gz", "--metal", f"{name}.nii.gz", *FAST)
        assert said.code == code, said.err
        assert {"good": "", "wrong": "misses the metal", "out": "nothing inside the grid"}[name] in said.err
    assert case_of(Options(projections="m.h5", metal="good.nii.gz"))[0].metal.data.sum() == 9


def test_a_prior_of_another_unit_or_with_holes_is_named(medfields, toy: Projections, tmp_path: Path) -> None:
    """Not as another patient's, nor as one that lies elsewhere."""
    for name, data, says in (("cut", 1000 * (toy.prior.data > 0), "HU are told by values below -100"),
                             ("nan", torch.where(toy.prior.data > 0, toy.prior.data, torch.nan), "not numbers"),
                             ("air", 0 * toy.prior.data, "attenuates nowhere")):
        write_volume(Volume(data.float(), toy.grid), tmp_path / f"{name}.nii.gz")
        said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--prior", f"{name}.nii.gz", "--no-register", *FAST)
        assert said.code == 2 and says in said.err, said.err


def test_an_image_is_no_mask_of_metal(medfields, toy: Projections, tmp_path: Path) -> None:
    write_volume(told_in(toy.prior, "HU", 0.02), tmp_path / "image.nii.gz")
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--metal", "image.nii.gz", *FAST)
    assert said.code == 2 and "holds values down to -1000" in said.err


def test_what_was_not_measured_is_said(medfields, toy: Projections, tmp_path: Path) -> None:
    """Slices beside the one that the rays cross, which a method that knows bodies would fill; and the depth in a single view."""
    grid = Grid.from_spacing((24, 24, 5), 2.0, (*toy.grid.affine[:2, 3], -4.0))
    write_volume(Volume(np.zeros(grid.shape), grid), tmp_path / "thick.nii.gz")
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--like", "thick.nii.gz", *FAST)
    assert said.code == 0 and "no ray meets 4 of the 5 slices" in said.err, said.err
    assert not medfields("ct", "toy.h5", "-o", "v.nii.gz", *FAST).err.count("note")
    assert "one view tells nothing of the depth" in medfields("ct", "toy.h5", "-o", "v.nii.gz", "--use", ":1", *FAST).err


def test_check_leaves_the_folder_of_the_data_alone(medfields, toy: Projections, tmp_path: Path) -> None:
    """It may be one where nobody writes: the drawing lies where the command was given."""
    (tmp_path / "data").mkdir()
    (tmp_path / "toy.h5").rename(tmp_path / "data/toy.h5")
    assert medfields("ct", "data/toy.h5", "--check").code == 0
    assert (tmp_path / "toy.h5.check.png").is_file() and [p.name for p in (tmp_path / "data").iterdir()] == ["toy.h5"]


BAD = [
    (("nowhere.h5", "-o", "v.nii.gz"), 4, "nowhere.h5"),
    (("toy.h5",), 2, "-o"),
    (("toy.h5", "-o", "v.png"), 2, "format"),
    (("toy.h5", "-o", "v.nii.gz", "--use", "20:"), 2, "none of the 12 views"),
    (("toy.h5", "-o", "v.nii.gz", "--use", "three"), 2, "Python slice"),
    (("toy.h5", "-o", "v.nii.gz", "--use", "::0"), 2, "Python slice"),
    (("toy.h5", "-o", "v.nii.gz", "--spacing", "1", "--size", "9"), 2, "exclude one another"),
    (("toy.h5", "-o", "v.nii.gz", "--spacing", "0"), 3, "positive"),
    (("toy.h5", "-o", "v.nii.gz", "--spacing", "1e-5"), 7, "--spacing"),
    (("toy.h5", "-o", "v.nii.gz", "--size", "1"), 2, "--size"),
    (("toy.h5", "-o", "v.nii.gz", "--water", "0.2"), 2, "0.2/mm"),
    (("toy.h5", "-o", "v.nii.gz", "--unit", "Hu"), 2, "HU, mm-1, cm-1"),
    (("toy.h5", "-o", "v.nii.gz", "--beam", "wide"), 2, "parallel, cone"),
    (("toy.h5", "-o", "v.nii.gz", "--method", "srr-cg"), 2, "is for superres"),
    (("toy.h5", "-o", "v.nii.gz", "--method", "pnp", "--finer", "100"), 2, "finer at most 8"),
    (("toy.h5", "-o", "v.nii.gz", "--method", "tv"), 9, "did you mean 'pdhg-tv'?"),
    (("toy.h5", "-o", "v.nii.gz", "--spacing", "inf"), 3, "--spacing must be positive"),
    (("toy.h5", "-o", "v.nii.gz", "--spacing", "500"), 2, "as large as the field of view"),
    (("toy.h5", "-o", "v.nii.gz", "--water", "1e-9"), 2, "1e-09/mm"),
    (("-o", "v.nii.gz"), 2, "nothing to work on"),
    (("toy.h5", "-o", "v.nii.gz", "--prior", "none.nii.gz"), 4, "none.nii.gz"),
    (("spread.py", "-o", "v.nii.gz"), 4, "text"),
]


@pytest.mark.parametrize(("words", "code", "says"), BAD, ids=[" ".join(w) for w, _, _ in BAD])
def test_bad_words(medfields, toy: Projections, tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    said = medfields("ct", *words, *(() if "--method" in words else FAST))
    assert said.code == code, said.err
    assert says in said.err and said.err.startswith("medfields: error: ") and len(said.err.splitlines()) <= 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spread.py", "toy.h5"]


def short(case: Projections, angles: np.ndarray) -> Geometry:
    return Geometry.parallel(angles, case.geometry.shape[1], 2.0)


DATA = [
    ("degrees as radians", lambda c: {"geometry": short(c, np.arange(12.0))}, 0, "degrees taken for radians"),
    ("radians as degrees", lambda c: {"geometry": short(c, np.radians(np.linspace(0, np.pi, 12)))}, 0, "radians taken for degrees"),
    ("repeated", lambda c: {"geometry": short(c, np.radians([0, 15, 30, 30, 30, 75, 90, 105, 120, 135, 150, 165]))}, 0, "2 of 12 views repeat"),
    ("cm", lambda c: {"geometry": dataclasses.replace(c.geometry, u=c.geometry.u / 10, v=c.geometry.v / 10), "grid": None}, 0, "lengths in cm"),
    ("negative", lambda c: {"data": -c.data.numpy()}, 2, "negative"),
    ("elsewhere", lambda c: {"grid": Grid.from_spacing((24, 24, 1), 2.0, (900, 0, 0))}, 3, "look past the Grid"),
    ("all masked", lambda c: {"good": np.zeros(c.data.shape, dtype=bool)}, 2, "no pixel can be trusted"),
    ("no water", lambda c: {"water": 0.0}, 0, "1/mm"),
]


@pytest.mark.parametrize(("change", "code", "says"), [d[1:] for d in DATA], ids=[d[0] for d in DATA])
def test_odd_data(medfields, toy: Projections, tmp_path: Path, change, code: int, says: str) -> None:
    written(tmp_path / "toy.h5", toy, **change(toy))
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", *FAST)
    assert said.code == code, said.err
    assert says in said.out + said.err and "Traceback" not in said.err


def test_nan_is_masked_with_a_count(medfields, toy: Projections, tmp_path: Path) -> None:
    data = toy.data.numpy().copy()
    data[3, 0, 5:9] = np.nan
    written(tmp_path / "toy.h5", toy, data=data)
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", *FAST)
    assert said.code == 0 and "4 NaN or infinite pixels masked" in said.err
    assert torch.isfinite(read_volume("v.nii.gz").data).all()


def test_hu_without_water_asks_for_it(medfields, toy: Projections, tmp_path: Path) -> None:
    written(tmp_path / "toy.h5", toy, water=0.0)
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--unit", "HU", *FAST)
    assert said.code == 2 and "--water" in said.err
    assert medfields("ct", "toy.h5", "-o", "v.nii.gz", "--water", "0.0193", *FAST).code == 0
    assert float(read_volume("v.nii.gz").data.min()) < -900


def test_grid_is_another_name_for_like_and_memory_is_counted_first(medfields, toy: Projections, tmp_path: Path) -> None:
    assert parse(["a.h5", "--grid", "x.nii.gz"])[0].like == parse(["a.h5", "--like=x.nii.gz"])[0].like == "x.nii.gz"
    write_volume(Volume(np.zeros((10, 12, 1)), toy.grid.crop((7, 6, 0), (10, 12, 1))), tmp_path / "ref.nii.gz")
    assert case_of(Options(projections="toy.h5", like="ref.nii.gz"))[0].grid.shape == (10, 12, 1)
    assert case_of(Options(projections="toy.h5", size=30))[0].grid.shape == (30, 30, 1)
    with pytest.raises(OutOfMemory, match="--size"):
        case_of(Options(projections="toy.h5", size=1_000_000))
    with pytest.raises(InputError, match="cannot be 'HUU'"):
        case_of(Options(projections="toy.h5", unit="HUU"))


def test_precorrection_makes_water_look_like_one_energy(medfields, toy: Projections, tmp_path: Path) -> None:
    spectrum = Spectrum.tube(120)
    chord = torch.linspace(0, 300, toy.data.numel()).reshape(toy.data.shape)  # mm of water
    seen = Polychromatic(spectrum)(chord[..., None] * torch.tensor(attenuation("water", spectrum.energies)).float())
    scan = Scan(seen.numpy(), toy.geometry, toy.grid, water=0.0193, spectrum=(spectrum.energies, spectrum.shares))
    write_projections(scan, tmp_path / "hard.h5")
    raw, corrected = (case_of(Options(projections=str(tmp_path / "hard.h5"), precorrect=p)) for p in (False, True))
    water = float(attenuation("water", spectrum.mean))
    assert corrected[0].water == pytest.approx(water) and any("hardens" in note for note in raw[2])
    assert torch.allclose(corrected[0].data, water * chord, atol=2e-3 * water * 300)
    assert float((raw[0].data - water * chord).abs().max()) > 0.01 * water * 300
    said = medfields("ct", "toy.h5", "-o", "v.nii.gz", "--precorrect")
    assert said.code == 2 and "does not state the spectrum" in said.err
