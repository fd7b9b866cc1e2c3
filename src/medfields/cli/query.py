"""query: a .field read on any grid, or at any points; its values or its gradients."""

from __future__ import annotations

import csv
import math
import time
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


def query(
    field: Positional[str],
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE")],
    spacing: Annotated[float | None, tyro.conf.arg(metavar="MM", help_behavior_hint="")] = None,
    like: Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = "",
    points: Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = "",
    gradient: Annotated[Gradient | None, tyro.conf.arg(metavar="{magnitude,vector}", help_behavior_hint="")] = None,
    threads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None,
) -> None:
    """Read a .field on a grid, or at points.

    Without --spacing, --like and --points the grid is the one the field was made on.

    Args:
        field: a .field file.
        output: an image (.nii.gz, ...), a folder name ending in "/" for a DICOM series, or a .csv file with --points.
        spacing: mm of the isotropic voxels, over the field of view the field was made on.
        like: an image whose grid is used.
        points: a .csv file with the header x,y,z and RAS+ millimetres below.
        gradient: write the gradient per mm instead of the value: its magnitude, or its x, y, z as channels.
        threads: processor threads; default all.
    """
    from .work import read_any_field, spare, use_threads

    if sum(map(bool, (spacing is not None, like, points))) > 1:
        raise InputError("--spacing, --like and --points exclude one another", "give one of them")
    use_threads(threads)
    function = read_any_field(field)
    if points:
        _at_points(function, Path(points), Path(output), gradient)
        return
    from ..io import check_image_path, write_volume

    spare([Path(output)], [field, like])
    check_image_path(output)
    grid = _grid(function, spacing, like)
    volume = evaluate(function, grid, gradient)
    write_volume(volume, output)
    print(
        f"{output}  {' x '.join(map(str, grid.shape))} voxels of {' x '.join(f'{s:.3g}' for s in grid.spacing)} mm"
        + (f", {volume.unit}" if volume.unit else "")
    )


def _grid(field: Field, spacing: float | None, like: str) -> Grid:
    """Where a field is to be read."""
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


def evaluate(field: Field, grid: Grid, gradient: Gradient | None = None) -> Volume:
    """Values, or gradients per mm, of a field on a grid, in chunks, with a progress bar where it takes a while."""
    from ..fields import LazyVolume
    from ..solve import Event, Terminal
    from .work import Slope, require_memory

    function = field if gradient is None else Slope(field, gradient)
    channels = function.channels
    require_memory(4 * channels * grid.size, f"a grid of {' x '.join(map(str, grid.shape))} voxels", "choose a larger --spacing")
    terminal, start = Terminal(), time.monotonic()

    def tell(done: int, total: int) -> None:
        seconds = time.monotonic() - start
        terminal.event(Event("query", done, total, seconds, {}, seconds * (total - done) / done, done == total))

    try:
        return LazyVolume(function, grid, 1 << 18).volume(on_slab=tell)
    finally:
        terminal.close()


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
