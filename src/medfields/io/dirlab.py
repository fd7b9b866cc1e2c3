"""The ten DIR-Lab 4DCT cases (Castillo et al., Phys Med Biol 2009), from the user's own copy: www.dir-lab.com gives them on request.

A folder CaseNPack (case 8: Case8Deploy) holds raw voxels Images/caseN_T00*.img, little-endian int16, i fastest, and 300 landmarks of each extreme
phase in [Ee]xtremePhases/CaseN_300_T00_xyz.txt (cases 6 to 10: caseN_dirLab300_T00_xyz.txt), in voxels counted from 1. T00 is the end of
inhaling, T50 of exhaling. Files are found by their names in any folder below, in upper or lower case.

No file says how the patient lies or where the origin is. We take i towards the patient's left, j towards the back, k towards the feet, as others
who convert these files do, and voxel (0, 0, 0) at the world's origin. Distances, and so all TREs, do not depend on it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..errors import FileError, InputError
from ..space import Grid, Volume
from .landmarks import read_landmarks
from .source import provenance, unreadable

COUNT = 300
SIZES = ((256, 256, 94), (256, 256, 112), (256, 256, 104), (256, 256, 99), (256, 256, 106),
         (512, 512, 128), (512, 512, 136), (512, 512, 128), (512, 512, 128), (512, 512, 120))
IN_PLANE = (0.97, 1.16, 1.15, 1.13, 1.10, 0.97, 0.97, 0.97, 0.97, 0.97)  # mm
BETWEEN = 2.5  # mm, of all
IDENTITY = (3.89, 4.34, 6.94, 9.83, 7.48, 10.89, 11.03, 14.99, 7.92, 7.30)  # mm, mean over the 300 landmarks without registration, as published
_AIR = 1024  # is HU 0 - raw 0


@dataclass(frozen=True)
class DirLab:
    """One case.

    Attributes:
        inhale, exhale: T00 and T50, in HU; registration papers take T00 as the fixed image.
        inhale_points, exhale_points: RAS mm, row by row the same place.
    """

    number: int
    inhale: Volume
    exhale: Volume
    inhale_points: Float[np.ndarray, "N 3"]
    exhale_points: Float[np.ndarray, "N 3"]


def read_dirlab(folder: str | os.PathLike[str], number: int) -> DirLab:
    """Both extreme phases of a case and their landmarks.

    Args:
        folder: of the case, or one that holds the folders of several.
        number: 1 to 10.

    Raises:
        FileError: a file is missing, there twice, or of the wrong size or count.
        InputError: no such case, or landmarks beyond the image.
    """
    points = dirlab_points(folder, number)
    return DirLab(number, _image(folder, number, "T00"), _image(folder, number, "T50"), *points)


def dirlab_points(folder: str | os.PathLike[str], number: int) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N 3"]]:
    """The 300 landmarks of T00 and of T50, in RAS mm; raises as `read_dirlab`."""
    made = []
    for phase in ("T00", "T50"):
        path = _found(folder, rf"case{number}_(dirlab)?{COUNT}_{phase}_xyz\.txt", f"Case{number}_{COUNT}_{phase}_xyz.txt")
        made.append(read_landmarks(path, dirlab_grid(number)))
        if len(made[-1]) != COUNT:
            raise FileError(f"{path} holds {len(made[-1])} landmarks, DIR-Lab's hold {COUNT}", "unpack it again")
    return made[0], made[1]


def dirlab_grid(number: int) -> Grid:
    """Where the voxels of a case lie.

    Raises:
        InputError: unless it is one of the ten.
    """
    if not 1 <= number <= len(SIZES):
        raise InputError(f"there is no DIR-Lab 4DCT case {number}", "1 to 10")
    step = IN_PLANE[number - 1]
    return Grid(SIZES[number - 1], np.diag([-step, -step, -BETWEEN, 1.0]))


def _image(folder: str | os.PathLike[str], number: int, phase: str) -> Volume:
    """HU, not below -1024: outside the field of view some files hold less than nothing."""
    path, grid = _found(folder, rf"case{number}_{phase}([_-]\w+)?\.img", f"case{number}_{phase}_s.img"), dirlab_grid(number)
    if path.stat().st_size != 2 * grid.size:
        raise FileError(f"{path} holds {path.stat().st_size} bytes, case {number} has {2 * grid.size}", "unpack it again")
    try:
        raw = np.fromfile(path, "<i2").reshape(grid.shape, order="F")
    except OSError as error:
        raise unreadable(path, error) from error
    return Volume(np.maximum(raw.astype(np.float32) - _AIR, -_AIR), grid, "HU", fill=-_AIR, about=provenance("dirlab", path, phase=phase))


def _found(folder: str | os.PathLike[str], pattern: str, example: str) -> Path:
    """The one file below a folder whose name fits."""
    if not Path(folder).is_dir():
        raise FileError(f"there is no folder {folder}", "give the one that holds Case1Pack, Case2Pack, ...")
    found = sorted(p for p in Path(folder).rglob("*") if re.fullmatch(pattern, p.name, re.IGNORECASE) and p.is_file())
    if not found:
        raise FileError(f"there is no {example} below {folder}", "unpack the case's archive there; names in upper or lower case")
    if len(found) > 1:
        raise FileError(f"{found[0]} and {found[1]} are the same file of one case", "keep one of them")
    return found[0]
