"""A folder of slices: one NIfTI file for each, whose affine is its pose, beside files of their masks and a table.

This is how programs for slice-to-volume reconstruction hand slices on. The third column of an affine points across its slice and is as
long as the slice is thick. Names hold a number, and "mask" if they are masks.
"""

from __future__ import annotations

import csv
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import FileError, GeometryError, OutputError
from ..space import Grid, Volume
from .nifti import read_nifti, write_nifti

TABLE = "slices.csv"
ENDINGS = (".nii", ".nii.gz")


def write_slices(folder: Path, images: Sequence[Volume], thickness: Sequence[float], masks: Sequence[Volume | None],
                 rows: Sequence[Mapping[str, Any]]) -> None:
    """Write slices, whole or not at all; a folder of the same kind is replaced.

    Args:
        folder: to be made.
        images: one voxel along k each.
        thickness: mm.
        masks: where a slice shows the subject, or None.
        rows: what the table says of each slice.

    Raises:
        OutputError: if the folder holds something else, or cannot be written.
    """
    if folder.exists() and any(not _ours(p) for p in folder.iterdir()):
        raise OutputError(f"{folder} holds other files than slices", "choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for n, (image, mm, mask) in enumerate(zip(images, thickness, masks, strict=True)):
                affine = image.grid.affine.copy()
                affine[:3, 2] *= mm / image.grid.spacing[2]
                grid = Grid(image.grid.shape, affine)
                write_nifti(Volume(image.data, grid), made / f"slice-{n:03d}.nii.gz")
                if mask is not None:
                    write_nifti(Volume(mask.data, grid), made / f"mask-{n:03d}.nii.gz", dtype="uint8")
            with (made / TABLE).open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, ["file", *(rows[0] if rows else ())])
                table.writeheader()
                table.writerows({"file": f"slice-{n:03d}.nii.gz", **row} for n, row in enumerate(rows))
            made.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write the slices to {folder}: {error.strerror or error}") from error


def read_slices(folder: Path) -> tuple[list[Volume], list[Volume | None], list[dict[str, str]]]:
    """Slices in the order of their numbers, their masks, and what the table says of each ({} without one).

    Raises:
        FileError: if there is no slice, or two have one number.
        GeometryError: if an image has more than one slice.
    """
    images, masks = slice_files(folder, masks=False), slice_files(folder, masks=True)
    if not images:
        raise FileError(f"{folder} holds no slices", "a folder of slices has one .nii.gz with a number in its name for each")
    read = {n: read_nifti(path) for n, path in images.items()}
    for n, volume in read.items():
        if not volume.grid.is_2d:
            raise GeometryError(f"{images[n]} has {volume.grid.shape[2]} slices", "in a folder of slices each file holds one; give stacks as files")
    rows: dict[str, dict[str, str]] = {}
    if (folder / TABLE).is_file():
        with (folder / TABLE).open(newline="", encoding="utf-8") as file:
            rows = {row["file"]: row for row in csv.DictReader(file) if row.get("file")}
    order = sorted(read)
    return ([read[n] for n in order], [read_nifti(masks[n]) if n in masks else None for n in order],
            [rows.get(images[n].name, {}) for n in order])


def holds_slices(path: Path) -> bool:
    """Whether this is a folder with NIfTI files in it."""
    return path.is_dir() and any(p.name.endswith(ENDINGS) for p in path.iterdir())


def slice_files(folder: Path, masks: bool = False) -> dict[int, Path]:
    """The files of the slices in a folder, or of their masks, by the number in their names; raises FileError if two have one number."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        number = re.findall(r"\d+", path.name.split(".nii")[0])
        if path.name.endswith(ENDINGS) and number and ("mask" in path.name) == masks and "simulated" not in path.name:
            if int(number[-1]) in found:
                raise FileError(f"{path.name} and {found[int(number[-1])].name} have the same number", f"of which slice is which? ({folder})")
            found[int(number[-1])] = path
    return found


def _ours(path: Path) -> bool:
    return path.name == TABLE or bool(re.fullmatch(r"(slice|mask|simulated)-\d+\.nii\.gz", path.name))
