"""query: a .field read on any grid, or at any points; its values or its gradients."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from ..errors import FileError, GeometryError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ..fields import Field
    from ..space import Grid, Volume

Gradient = Literal["magnitude", "vector"]
Orientation = Literal["axial", "coronal", "sagittal"]
ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}  # the axis of the world across such slices
NODES = 32  # of a slice profile: 0.4 mm apart in slices of 5 mm


def query(
    field: Positional[str],
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE")],
    spacing: Annotated[float | None, tyro.conf.arg(metavar="MM", help_behavior_hint="")] = None,
    like: Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = "",
    points: Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = "",
    gradient: Annotated[Gradient | None, tyro.conf.arg(metavar="{magnitude,vector}", help_behavior_hint="")] = None,
    thickness: Annotated[float | None, tyro.conf.arg(metavar="MM", help_behavior_hint="")] = None,
    orientation: Annotated[Orientation | None, tyro.conf.arg(metavar="{axial,coronal,sagittal}", help_behavior_hint="")] = None,
    threads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None,
) -> None:
    """Read a .field on a grid, or at points.

    Without --spacing, --like and --points the grid is the one the field was made on. With --thickness every voxel is what a slice so thick
    would measure: the average of the field across the slices under a Gaussian whose full width at half maximum is the thickness.

    Args:
        field: a .field file.
        output: an image (.nii.gz, ...), a folder name ending in "/" for a DICOM series, or a .csv file with --points.
        spacing: mm of the isotropic voxels, over the field of view the field was made on.
        like: an image whose grid is used.
        points: a .csv file with the header x,y,z and RAS+ millimetres below.
        gradient: write the gradient per mm instead of the value: its magnitude, or its x, y, z as channels.
        thickness: mm of the slices to be simulated; with --like they are that image's, with --orientation they lie side by side.
        orientation: of such slices, along the axes of the field's own grid that are nearest; --spacing is then that of their pixels.
        threads: processor threads; default all.
    """
    from .work import read_any_field, spare, use_threads

    if sum(map(bool, (spacing is not None, like, points))) > 1:
        raise InputError("--spacing, --like and --points exclude one another", "give one of them")
    _check_slices(thickness, orientation, like, points, gradient)
    use_threads(threads)
    function = read_any_field(field)
    if points:
        _at_points(function, Path(points), Path(output), gradient)
        return
    from ..io import check_image_path, write_volume

    spare([Path(output)], [field, like])
    check_image_path(output)
    grid, axis = grid_of(function, spacing, like), 2
    if thickness is not None:
        grid, axis = _slices(grid, thickness, orientation) if orientation else (grid, _across(like))
    volume = evaluate(function, grid, gradient, thickness, axis)
    write_volume(volume, output)
    print(
        f"{output}  {' x '.join(map(str, grid.shape))} voxels of {' x '.join(f'{s:.3g}' for s in grid.spacing)} mm"
        + (f", {volume.unit}" if volume.unit else "")
    )


def grid_of(field: Field, spacing: float | None = None, like: str = "") -> Grid:
    """Where a field is to be read: on the grid it was made on, at a spacing in mm, or on an image's grid.

    Raises:
        InputError: for a field of other than three coordinates, or one without a grid of its own where none is asked for.
        GeometryError: for a spacing that is not positive.
    """
    from ..io import read_volume
    from ..space import Grid

    if field.box.ndim != 3:
        raise InputError(f"this field has {field.box.ndim} coordinates, a grid has three", f"use --points with {field.box.ndim} columns")
    if like:
        return read_volume(like).grid
    if spacing is None:
        if field.grid is None:
            raise InputError("this field does not name a grid of its own", "give --spacing or --like")
        return field.grid
    if not (math.isfinite(spacing) and spacing > 0):
        raise GeometryError(f"spacing must be positive, got {spacing:g} mm", "for instance --spacing 0.5")
    if field.grid is not None:
        return field.grid.with_spacing(spacing)
    half = field.box.sides / 2  # any lattice that fills the box
    return Grid.from_spacing((2, 2, 2), half.tolist(), (field.box.centre - half / 2).tolist()).with_spacing(spacing)


def _check_slices(thickness: float | None, orientation: Orientation | None, like: str, points: str, gradient: Gradient | None) -> None:
    """Slices are asked for in one way, and of a field's values."""
    if thickness is None:
        if orientation is not None:
            raise InputError("--orientation says how slices lie, but not how thick they are", "give --thickness MM too")
        return
    if not 0 < thickness <= 100:
        raise GeometryError(f"the slice thickness must be in (0, 100] mm, got {thickness:g}")
    if points or gradient:
        raise InputError(f"--thickness and {'--points' if points else '--gradient'} exclude one another", "slices are images of the field's values")
    if bool(like) == (orientation is not None):
        raise InputError("--thickness needs slices to simulate, stated once", "give --like STACK, or --orientation axial, coronal or sagittal")


def _across(like: str) -> int:
    """The axis across the slices of an image, as `superres` would take it."""
    from ..cases.stacks import slice_axis
    from ..io import read_volume

    image = read_volume(like)
    return int(image.about.get("slice_axis", slice_axis(image.grid)))


def _slices(grid: Grid, thickness: float, orientation: Orientation) -> tuple[Grid, int]:
    """Slices side by side in a grid's field of view, and the axis across them, the last one."""
    import numpy as np

    from ..space import Grid

    across = int(np.abs(grid.directions[ACROSS[orientation]]).argmax())
    spacing = grid.spacing.copy()
    spacing[across] = thickness
    wide, axes = grid.with_spacing(spacing.tolist()), [*(d for d in range(3) if d != across), across]
    i, j, k = (wide.shape[d] for d in axes)
    return Grid((i, j, k), wide.affine[:, [*axes, 3]], wide.frame), 2


def evaluate(field: Field, grid: Grid, gradient: Gradient | None = None, thickness: float | None = None, axis: int = 2) -> Volume:
    """Values, or gradients per mm, of a field on a grid, in chunks, with a progress bar where it takes a while.

    Args:
        field: with three coordinates.
        grid: where it is read.
        gradient: per mm, instead of the values.
        thickness: mm of the slices that measure the field; None reads it at points.
        axis: of the grid, across the slices.
    """
    from ..fields import LazyVolume
    from .work import Slope, Thick, progress, require_memory

    function = Slope(field, gradient) if gradient else field if thickness is None else Thick(field, grid.normal(axis), thickness, NODES)
    channels = function.channels
    require_memory(4 * channels * grid.size, f"a grid of {' x '.join(map(str, grid.shape))} voxels", "choose a larger --spacing")
    with progress("query") as tell:
        return LazyVolume(function, grid, 1 << 18 if thickness is None else 1 << 15).volume(on_slab=tell)


def _at_points(field: Field, points: Path, output: Path, gradient: Gradient | None) -> None:
    """Values at the rows of a table, written beside their coordinates."""
    import torch

    from ..io import atomic, check_writable
    from .work import Slope, spare

    if output.suffix != ".csv":
        raise InputError(f"values at points are written as a table, not as {output.name}", "give -o values.csv")
    spare([output], [points])
    check_writable(output)
    axes = ["x", "y", "z", "t"][: field.box.ndim]
    rows = read_points(points, axes)
    function = field if gradient is None else Slope(field, gradient)
    at_points = torch.tensor(rows, dtype=torch.float32)
    with torch.inference_mode():
        values = torch.cat([function(part) for part in at_points.split(1 << 18)])
    outside = ~field.box.contains(at_points)
    values = values.masked_fill(outside[:, None], float("nan"))  # whatever the field continues with there was never measured
    with atomic(output) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*axes, *_names(field, gradient)])
        table.writerows(
            [*(f"{v:.10g}" for v in at), *(f"{v:.7g}" for v in value)] for at, value in zip(rows, _numbers(values), strict=True)
        )
    print(f"{output}  {len(rows)} points{f', {int(outside.sum())} of them outside the field: nan' if outside.any() else ''}")


def _numbers(values: Tensor) -> list[list[float]]:
    return values.cpu().tolist()


def _names(field: Field, gradient: Gradient | None) -> list[str]:
    """Column names of what a query gives."""
    names = list(field.names) or (["value"] if field.channels == 1 else [f"value{c}" for c in range(field.channels)])
    if gradient == "vector":
        return [f"d{name}/d{axis}" for name in names for axis in "xyzt"[: field.box.ndim]]
    return [f"|grad {name}|" for name in names] if gradient else names


def read_points(path: Path, axes: list[str]) -> list[list[float]]:
    """The named columns of a .csv file.

    Raises:
        FileError: if it cannot be read, lacks a column, holds no row, or holds something that is not a finite number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if not set(axes) <= {name.strip() for name in table.fieldnames or ()}:
                raise FileError(f"{path} has no header {','.join(axes)}", "the first line names the columns; below are RAS+ millimetres")
            rows = [[_coordinate(path, n, row, axis) for axis in axes] for n, row in enumerate(table, start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", "give a .csv file") from error
    if not rows:
        raise FileError(f"{path} holds no points")
    return rows


def _coordinate(path: Path, line: int, row: dict[str, str], axis: str) -> float:
    text = next((v for k, v in row.items() if k is not None and k.strip() == axis), None)
    try:
        value = float(text or "")
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise FileError(f"{path}, line {line}: {axis} is {text!r}, not a number")
    return value
