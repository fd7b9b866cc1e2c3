"""DIR-Lab: a miniature with every name its archives use; and the ten published distances, on your own copy.

    MEDFIELDS_DIRLAB=/folder/with/Case1Pack pytest tests/unit/test_dirlab.py

Distances cannot tell whether landmarks are counted from 0 or 1: the miniature does.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from medfields.errors import FileError, InputError
from medfields.io import dirlab
from medfields.io.dirlab import IDENTITY, dirlab_grid, dirlab_points, read_dirlab

OWN = os.environ.get("MEDFIELDS_DIRLAB", "")
SHAPE = (7, 6, 5)
NAMES = [  # number, folder, image, folder of landmarks, their file
    (1, "Case1Pack", "case1_{}_s.img", "ExtremePhases", "Case1_300_{}_xyz.txt"),
    (1, "Case1Pack", "case1_{}.img", "ExtremePhases", "case1_300_{}_xyz.txt"),
    (2, "Case2Pack", "case2_{}-ssm.img", "ExtremePhases", "Case2_300_{}_xyz.txt"),
    (6, "Case6Pack", "case6_{}.img", "extremePhases", "case6_dirLab300_{}_xyz.txt"),
    (8, "Case8Deploy", "CASE8_{}.IMG", "extremePhases", "case8_dirLab300_{}_xyz.txt"),
    (10, "case10pack", "case10_{}.img", "extremephases", "case10_300_{}_xyz.TXT")]


@pytest.fixture(autouse=True)
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "own_copy" not in request.node.name:
        monkeypatch.setattr(dirlab, "SIZES", (SHAPE,) * 10)


def voxels(phase: str) -> np.ndarray:
    """300 voxel indices from 0; the exhaled ones one slice on."""
    index = np.stack(np.meshgrid(range(7), range(6), range(4), indexing="ij"), -1).reshape(-1, 3)
    return np.resize(index, (300, 3)) + np.array([0, 0, int(phase == "T50")])


def miniature(root: Path, number: int, folder: str, image: str, points: str, file: str) -> Path:
    """Raw voxels that say where they are: 100 k + 10 j + i."""
    i, j, k = np.meshgrid(*map(range, SHAPE), indexing="ij")
    for phase in ("T00", "T50"):
        for part in ("Images", points):
            (root / folder / part).mkdir(parents=True, exist_ok=True)
        raw = 100 * k + 10 * j + i + (1000 if phase == "T50" else 0)
        raw[6, 5, 4] = -2000  # outside the field of view
        (root / folder / "Images" / image.format(phase)).write_bytes(raw.astype("<i2").tobytes(order="F"))
        lines = ["\t".join(map(str, v + 1)) + "\t" for v in voxels(phase)]  # counted from 1, with a tab at the end
        (root / folder / points / file.format(phase)).write_text("\r\n".join(lines) + "\r\n")
    return root / folder


@pytest.mark.parametrize("names", NAMES)
def test_landmarks_fall_on_the_voxels_they_name(tmp_path: Path, names: tuple[int, str, str, str, str]) -> None:
    number = names[0]
    folder = miniature(tmp_path, *names)
    (folder / "Images" / names[2].format("T10")).write_bytes(b"another phase")
    (folder / "Masks").mkdir()
    (folder / "Masks" / f"case{number}_T00_s.raw").write_bytes(b"of someone else")
    for where in (folder, tmp_path):
        case = read_dirlab(where, number)
        for volume, points, phase in ((case.inhale, case.inhale_points, "T00"), (case.exhale, case.exhale_points, "T50")):
            index = voxels(phase)
            np.testing.assert_allclose(volume.grid.index(points), index, atol=1e-9)
            hu = index @ [1, 10, 100] + (1000 if phase == "T50" else 0) - 1024
            at = volume.data[0].numpy()[tuple(index.T)]
            np.testing.assert_array_equal(at, np.where((index == [6, 5, 4]).all(1), -1024, hu))
            assert volume.unit == "HU" and volume.about["phase"] == phase
        np.testing.assert_allclose(np.linalg.norm(case.exhale_points - case.inhale_points, axis=1), 2.5)


def test_orientation_is_as_documented() -> None:
    """i to the patient's left, j to the back, k to the feet, from the origin."""
    grid = dirlab_grid(3)
    np.testing.assert_allclose(grid.world(np.array([1, 2, 3])), [-1.15, -2.30, -7.5])


def test_numbers_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [dirlab_grid(n).shape[2] for n in range(1, 11)] == [94, 112, 104, 99, 106, 128, 136, 128, 128, 120]
    assert [dirlab_grid(n).shape[0] for n in range(1, 11)] == [256] * 5 + [512] * 5
    assert np.mean(IDENTITY) == pytest.approx(8.46, abs=0.005)


def test_bad_copies(tmp_path: Path) -> None:
    folder = miniature(tmp_path, *NAMES[0])
    image, points = folder / "Images/case1_T50_s.img", folder / "ExtremePhases/Case1_300_T50_xyz.txt"
    whole = image.read_bytes()
    image.write_bytes(whole[:-2])
    with pytest.raises(FileError, match="holds 418 bytes, case 1 has 420"):
        read_dirlab(tmp_path, 1)
    image.write_bytes(whole)
    text = points.read_text()
    points.write_text("\n".join(text.splitlines()[:299]))
    with pytest.raises(FileError, match="holds 299 landmarks"):
        read_dirlab(tmp_path, 1)
    points.write_text(text.replace("7\t6\t5", "7\t6\t6", 1))
    with pytest.raises(InputError, match="voxel 7, 6, 6, beyond"):
        dirlab_points(tmp_path, 1)
    points.write_text(text)
    (folder / "copy").mkdir()
    (folder / "copy/case1_T50.img").write_bytes(whole)
    with pytest.raises(FileError, match="are the same file"):
        read_dirlab(tmp_path, 1)
    with pytest.raises(FileError, match=r"there is no Case2_300_T00_xyz\.txt"):
        read_dirlab(tmp_path, 2)
    with pytest.raises(FileError, match="there is no folder"):
        read_dirlab(tmp_path / "gone", 1)
    for number in (0, 11):
        with pytest.raises(InputError, match="there is no DIR-Lab 4DCT case"):
            dirlab_grid(number)


@pytest.mark.data
@pytest.mark.skipif(not OWN, reason="set MEDFIELDS_DIRLAB to your folder with Case1Pack, Case2Pack, ...: DIR-Lab's images are given on request")
@pytest.mark.parametrize("number", range(1, 11))
def test_identity_on_your_own_copy(number: int) -> None:
    case = read_dirlab(OWN, number)
    distance = np.linalg.norm(case.inhale_points - case.exhale_points, axis=1).mean()
    assert distance == pytest.approx(IDENTITY[number - 1], abs=0.05)
    for volume in (case.inhale, case.exhale):
        assert float(volume.data.min()) < -900 and float(volume.data.max()) > 0  # air and bone, in HU
