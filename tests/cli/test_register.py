"""register from file to file: what it writes and says, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medfields.cases import Pair
from medfields.cli import work
from medfields.cli.register_input import likeness
from medfields.fields import Affine, displacement
from medfields.io import read_field, read_volume, write_field, write_volume
from medfields.io.landmarks import write_landmarks
from medfields.io.picture import read_image
from medfields.io.transforms import write_affine
from medfields.space import Grid, Volume

PUSH = '''"""Push: a displacement of so many mm.

Needs: two images.
Gives: displacement, mm.
Fidelity: ours
Use when: testing.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from medfields.cases import Pair
from medfields.fields import from_lattice
from medfields.solve import Method
from medfields.space import Volume


@dataclass(frozen=True)
class Push(Method):
    """Nothing but a test."""

    paper: ClassVar[str] = ""
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict] = {}
    fidelity: ClassVar[str] = "ours"
    uses: ClassVar[tuple] = ("first",)
    mm: float = 0.0
    fold: bool = False

    def solve(self, case: Pair, run, prior=None):
        x = case.grid.points()
        u = torch.zeros_like(x) if case.first is None else case.first(x)
        u[..., 1] += self.mm
        return from_lattice(Volume((u - 2 * x * self.fold).movedim(-1, 0), case.grid, "mm"))
'''
GRID = Grid.from_spacing((24, 22, 20), 2.0, [-23, -21, -19])
SPOTS = np.random.default_rng(1).normal(0, 9, (50, 3))
FAST = ("-o", "warped.nii.gz", "--method", "./push.py")
HERE = (*FAST, "--start", "header")


def blobs(grid: Grid, shift: tuple[float, float, float] = (0, 0, 0)) -> Volume:
    x = grid.points().double().numpy() - np.array(shift)
    return Volume(np.exp(-((x[..., None, :] - SPOTS) ** 2).sum(-1) / 32).sum(-1), grid)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Volume, Volume]:
    """fixed.nii.gz, the same moved by 4 mm to the front as moving.nii.gz, masks, and a method that knows."""
    fixed, moving = blobs(GRID), blobs(GRID, (0, 4, 0))
    write_volume(fixed, tmp_path / "fixed.nii.gz")
    write_volume(moving, tmp_path / "moving.nii.gz")
    ball = np.linalg.norm(GRID.points().numpy(), axis=-1)
    write_volume(Volume((ball < 14).astype(np.float32), GRID), tmp_path / "mask.nii.gz")
    (tmp_path / "push.py").write_text(PUSH)
    return fixed, moving


BOTH = ("register", "fixed.nii.gz", "moving.nii.gz")


def test_writes_the_image_the_warp_and_the_page(medfields, pair: tuple[Volume, Volume], tmp_path: Path) -> None:
    points = SPOTS[np.abs(SPOTS).max(1) < 12][:8]
    write_landmarks(np.vstack([points, [90, 0, 0]]), tmp_path / "f.csv")
    write_landmarks(np.vstack([points + np.array([0, 4, 0]), [90, 0, 0]]), tmp_path / "m.csv")
    for name, volume in zip(("lf", "lm"), pair, strict=True):
        write_volume(volume.with_data((volume.data > 0.5).float()), tmp_path / f"{name}.nii.gz", dtype=np.uint8)
    said = medfields(*BOTH, *HERE, "--mm", 4, "--mask", "mask.nii.gz", "--landmarks", "f.csv", "m.csv", "--labels", "lf.nii.gz", "lm.nii.gz")
    assert said.code == 0, said.err
    assert "1 of the 9 landmark pairs lie outside the images and are left out" in said.err
    assert "no folds (det J at least 1), SDlogJ 0.000" in said.out
    assert "landmarks: 4.00 mm as they are, 4.00 pre-aligned, 0.00 warped (median 0.00, at most 0.00; 8 pairs)" in said.out
    assert "medfields apply warped.field IMAGE" in said.out
    warp, warped = read_field(tmp_path / "warped.field"), read_volume(tmp_path / "warped.nii.gz")
    assert torch.allclose(warp(torch.zeros(1, 3)), torch.tensor([[0.0, 4.0, 0.0]]), atol=1e-5)
    assert warp.about["method"] == "./push.py" and warp.about["inputs"][0]["name"] == "fixed.nii.gz" and warp.grid is not None
    assert torch.allclose(warped.data[..., :18, :], pair[0].data[..., :18, :], atol=1e-4)  # two voxels of 2 mm
    found = json.loads((tmp_path / "warped.run/summary.json").read_text())["metrics"]
    assert found["ncc"] > 0.9999 > 0.95 > found["ncc_before"] and found["dice"] > 0.99 > found["dice_before"]
    assert (tmp_path / "warped.run/report.html").stat().st_size > 10_000


def test_the_warp_holds_the_pre_alignment_and_can_start_another(medfields, pair: tuple[Volume, Volume], tmp_path: Path) -> None:
    start = np.eye(4)
    start[:3, 3] = 1, 3, 0
    write_affine(start, tmp_path / "start.txt")
    assert medfields(*BOTH, *FAST, "--start", "start.txt", "--mm", 1, "--warp", "one.field").code == 0
    one = read_field(tmp_path / "one.field")
    assert torch.allclose(one(torch.zeros(1, 3)), torch.tensor([[1.0, 4.0, 0.0]]), atol=1e-4)
    said = medfields(*BOTH, "-o", "two.nii.gz", "--method", "./push.py", "--first", "one.field", "--mm", 2)
    assert said.code == 0, said.err
    assert torch.allclose(read_field(tmp_path / "two.field")(torch.zeros(1, 3)), torch.tensor([[1.0, 6.0, 0.0]]), atol=1e-4)
    assert json.loads((tmp_path / "two.run/summary.json").read_text())["start"] == "of the first warp"


def test_the_default_start_is_an_affine_one_and_says_so(medfields, pair: tuple[Volume, Volume], tmp_path: Path) -> None:
    said = medfields(*BOTH, *FAST)
    assert said.code == 0 and "pre-alignment: affine, moves the centre by 4" in said.err
    assert torch.allclose(read_field(tmp_path / "warped.field")(torch.zeros(1, 3)), torch.tensor([[0.0, 4.0, 0.0]]), atol=0.3)
    assert json.loads((tmp_path / "warped.run/summary.json").read_text())["metrics"]["ncc"] > 0.99


def test_a_folded_warp_is_never_silent(medfields, pair: tuple[Volume, Volume], tmp_path: Path) -> None:
    said = medfields(*BOTH, *HERE, "--fold", "--no-folds")
    assert said.code == 10 and "folds 88 % of space" in said.err and "warped.run/folded.field" in said.err
    assert not (tmp_path / "warped.nii.gz").exists() and not (tmp_path / "warped.field").exists()
    assert torch.allclose(read_field(tmp_path / "warped.run/folded.field")(torch.ones(1, 3)), -2 * torch.ones(1, 3), atol=1e-5)
    said = medfields(*BOTH, *HERE, "--fold")
    assert said.code == 0 and "FOLDED: 88 % of space" in said.out


def test_pictures_are_slices_of_1_mm(medfields, pair: tuple[Volume, Volume], tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(40.0), np.arange(30.0))
    for name, at in (("a.png", 12), ("b.jpg", 15)):
        Image.fromarray((255 * np.exp(-((x - at) ** 2 + (y - 14) ** 2) / 50)).astype(np.uint8)).save(tmp_path / name)
    image = read_image(tmp_path / "a.png")
    assert image.grid.shape == (40, 30, 1) and int(image.data.argmax()) == 12 * 30 + 14
    assert np.allclose(image.grid.world(np.array([12, 14, 0])), [-12, -14, 0])
    said = medfields("register", "a.png", "b.jpg", *FAST, "--start", "rigid")
    assert said.code == 0 and "a.png: no millimetres stated, pixels taken as 1 mm" in said.err
    assert torch.allclose(read_field(tmp_path / "warped.field")(torch.tensor([[-12.0, -14, 0]])), torch.tensor([[-3.0, 0, 0]]), atol=0.2)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "c.png")
    assert medfields("register", "a.png", "c.png", *FAST).code == 2
    (tmp_path / "d.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:300])
    assert medfields("register", "a.png", "d.jpg", *FAST).code == 4


def test_two_modalities_are_told_from_one(pair: tuple[Volume, Volume]) -> None:
    fixed, _ = pair
    noise = 0.02 * torch.randn(fixed.data.shape, generator=torch.Generator().manual_seed(0))
    other = fixed.with_data((2 * fixed.data / fixed.data.max() - 1).square() + noise)
    same, unlike = likeness(Pair(fixed, fixed.with_data(fixed.data + noise))), likeness(Pair(fixed, other))
    assert same[0] > 0.99 and abs(same[1] - same[0]) < 0.2
    assert unlike[1] - unlike[0] > 0.5
    strange = fixed.with_data(torch.rand(fixed.data.shape, generator=torch.Generator().manual_seed(1)))
    assert max(likeness(Pair(fixed, strange))) < 0.15


def noted(here: Path, fixed: Volume) -> None:
    """A mask on another grid, a lung whose mask is too small, an image in other units, and the fixed image once more."""
    coarse = Grid.from_spacing((12, 11, 10), 4.0, [-22, -20, -18])
    write_volume(Volume((coarse.points().norm(dim=-1) < 14).float(), coarse), here / "coarse.nii.gz")
    write_volume(fixed.with_data(torch.where(fixed.data > 0.8, -700.0, -900.0) + 1000 * (fixed.data < 0.01)), here / "lung.nii.gz")
    write_volume(Volume(fixed.data, Grid(GRID.shape, GRID.affine @ np.diag([4, 4, 4, 1]))), here / "large.nii.gz")
    bare = torch.where(GRID.points().norm(dim=-1) < 9, fixed.data + 0.1, torch.zeros(()))
    write_volume(fixed.with_data(bare), here / "bare.nii.gz")
    write_volume(fixed.with_data((fixed.data - 0.6 * fixed.data.max()).abs()), here / "t2.nii.gz")


NOTES = [
    (("fixed.nii.gz", "moving.nii.gz", "--mask", "coarse.nii.gz"), "the mask lies on another grid than its image (12 x 11 x 10 voxels)"),
    (("fixed.nii.gz", "fixed.nii.gz"), "the same file"),
    (("fixed.nii.gz", "large.nii.gz"), "the fixed image is 4.0 times smaller than the other"),
    (("lung.nii.gz", "lung.nii.gz", "--mask", "mask.nii.gz"), "of what lies just outside the mask is air"),
    (("fixed.nii.gz", "t2.nii.gz"), "two modalities?"),
    (("fixed.nii.gz", "bare.nii.gz"), "of what the fixed image shows lies where the moving one is empty"),
    (("bare.nii.gz", "fixed.nii.gz"), "of what the moving image shows lies where the fixed one is empty"),
    (("fixed.nii.gz", "moving.nii.gz", "--centreline", "line.csv", "--tube-radius", "5"), "makes no use of --centreline"),
]


@pytest.mark.parametrize(("words", "text"), NOTES, ids=[text for _, text in NOTES])
def test_doubts_are_noted(medfields, pair: tuple[Volume, Volume], tmp_path: Path, monkeypatch, words: tuple[str, ...], text: str) -> None:
    noted(tmp_path, pair[0])
    write_landmarks(np.array([[0, 0, z] for z in range(-8, 9, 4)], dtype=float), tmp_path / "line.csv")
    monkeypatch.setattr("medfields.cli.register._page", lambda *rest: Path("report.html"))  # the slow part
    said = medfields("register", *words, *HERE)
    assert said.code == 0, said.err
    assert text in said.err and said.err.count(text) == 1


def broken(here: Path, fixed: Volume) -> None:
    far = GRID.affine.copy()
    far[:3, 3] += 500
    write_volume(Volume(fixed.data, Grid(GRID.shape, far)), here / "far.nii.gz")
    write_volume(fixed.with_data(0 * fixed.data), here / "zero.nii.gz")
    write_volume(fixed.with_data(torch.where(fixed.data > 1, float("nan"), fixed.data)), here / "nan.nii.gz")
    write_volume(fixed.with_data(fixed.data - 1), here / "signed.nii.gz")
    (here / "cut.nii.gz").write_bytes((here / "fixed.nii.gz").read_bytes()[:2000])
    write_landmarks(np.full((3, 3), 20.0) + np.eye(3), here / "voxels.csv")
    write_landmarks(np.zeros((2, 3)), here / "two.csv")
    write_affine(np.diag([-1.0, 1, 1, 1]), here / "mirror.txt")
    write_volume(Volume(fixed.data[..., :1], GRID.crop((0, 0, 0), (24, 22, 1))), here / "slice.nii.gz")
    scalar = displacement(Affine(), GRID.box())
    scalar.unit = "HU"
    write_field(scalar, here / "image.field")


FIXED = ("fixed.nii.gz", "moving.nii.gz")
BAD = [
    (("fixed.nii.gz",), 2, "only one image"),
    (("fixed.nii.gz", "none.nii.gz"), 4, "there is no file"),
    (("fixed.nii.gz", "far.nii.gz"), 3, "866 mm apart"),
    (("fixed.nii.gz", "zero.nii.gz"), 2, "constant"),
    (("fixed.nii.gz", "nan.nii.gz"), 2, "not numbers"),
    (("fixed.nii.gz", "cut.nii.gz"), 4, "cut off"),
    (("fixed.nii.gz", "slice.nii.gz"), 3, "a slice"),
    ((*FIXED, "--mask", "zero.nii.gz"), 2, "is empty"),
    ((*FIXED, "--mask", "signed.nii.gz"), 2, "it is an image"),
    ((*FIXED, "--moving-mask", "far.nii.gz"), 3, "holds nothing inside its image"),
    ((*FIXED, "--start", "center"), 9, "did you mean 'centres'"),
    ((*FIXED, "--start", "mirror.txt"), 3, "mirrors the world"),
    ((*FIXED, "--first", "image.field"), 2, "is no warp"),
    ((*FIXED, "--labels", "fixed.nii.gz", "moving.nii.gz"), 4, "other values than labels"),
    ((*FIXED, "--landmarks", "two.csv"), 2, "takes two files"),
    ((*FIXED, "--landmarks", "two.csv", "voxels.csv"), 2, "3"),
    ((*FIXED, "--warp", "warp.nii.gz"), 2, "medfields apply"),
    ((*FIXED, "-o", "fixed.nii.gz"), 5, "would be overwritten"),
    ((*FIXED, "--method", "siren"), 2, "is for superres"),
]


@pytest.mark.parametrize(("words", "code", "text"), BAD, ids=[" ".join(w) for w, _, _ in BAD])
def test_bad_input_is_one_line_and_a_hint(
    medfields, pair: tuple[Volume, Volume], tmp_path: Path, words: tuple[str, ...], code: int, text: str
) -> None:
    broken(tmp_path, pair[0])
    start = () if "--start" in words or "far.nii.gz" in words[:2] else ("--start", "header")
    said = medfields("register", *FAST, *start, *words)
    lines = [line for line in said.err.splitlines() if not line.startswith("medfields: note: ")]
    assert said.code == code and text in said.err, said.err
    assert lines[0].startswith("medfields: error: ") and len(lines) <= 2
    assert not (tmp_path / "warped.nii.gz").exists() and not (tmp_path / "warped.run").exists()


def test_images_that_do_not_overlap_can_be_started_from_their_centres(medfields, pair: tuple[Volume, Volume], tmp_path: Path) -> None:
    broken(tmp_path, pair[0])
    said = medfields("register", "fixed.nii.gz", "far.nii.gz", *FAST)
    assert said.code == 3 and "hint: --start centres" in said.err
    assert medfields("register", "fixed.nii.gz", "far.nii.gz", *FAST, "--start", "centres").code == 0
    assert torch.allclose(read_field(tmp_path / "warped.field")(torch.zeros(1, 3)), torch.full((1, 3), 500.0), atol=1e-3)


def test_memory_is_asked_for_before_it_is_needed(medfields, pair: tuple[Volume, Volume], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work.os, "sysconf", lambda name: 100)
    said = medfields(*BOTH, *HERE)
    assert said.code == 7 and "24 x 22 x 20 voxels needs" in said.err and "larger voxels" in said.err
