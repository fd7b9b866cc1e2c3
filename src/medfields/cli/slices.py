"""slices: what a volume or a field says that slices should have measured, beside what they did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from tyro.conf import Positional

from ..errors import FileError, GeometryError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ..cases import Slice
    from ..solve.quality import Fit
    from ..space import Volume

WORST = 5  # slices that are shown


def slices(
    what: Annotated[Positional[str], tyro.conf.arg(metavar="FIELD_OR_VOLUME")],
    folder: Annotated[Positional[str], tyro.conf.arg(metavar="FOLDER")],
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="")] = "",
    write: Annotated[str, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = "",
    profile: Literal["gauss", "box", "none"] = "gauss",
    threads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None,
) -> None:
    """Compare slices with what a volume shows in their places, through their profiles.

    For each slice, in its mask: ncc, the correlation; gain, the factor that lays the simulated slice on the measured one; psnr in dB of what is
    left with that gain, against the range of the slice (1st to 99th percentile). Slices that the reconstruction left out are compared too.

    Args:
        what: a volume, or a .field, which is read on its own grid first.
        folder: slices whose affines are their poses, as superres --motion writes them.
        output: a .csv file with a row for each slice.
        write: a folder for the simulated slices, simulated-NNN.nii.gz; it may be the folder of the slices.
        profile: shape of the slice profile.
        threads: processor threads; default all.
    """
    from ..solve.quality import fit, simulated
    from .tables import check_table, write_table
    from .work import progress, use_threads

    use_threads(threads)
    at = Path(folder)
    if not at.is_dir():
        raise FileError(f"{folder} is no folder", "superres --motion writes its slices to OUTPUT_slices")
    check_table(output, [what, *(str(p) for p in at.iterdir())])
    cut = _read(at)
    targets = _targets(cut, write, what)
    volume = _volume(what)
    rows: list[dict[str, object]] = []
    with progress("slices") as tell:
        for done, (path, (one, row)) in enumerate(cut.items(), 1):
            shown, inside = simulated(one, volume, profile)
            rows.append(_row(path, one, row, fit(one, shown, inside)))
            if write:
                _write(one, shown, targets[done - 1], path)
            tell(done, len(cut))
    _say(rows)
    if output:
        write_table(rows, Path(output))
        print(output)
    if write:
        print(f"{write}  {len(rows)} simulated slices")


def _read(folder: Path) -> dict[Path, tuple[Slice, Mapping[str, str]]]:
    """The slices of a folder by their files, each with its row of the table."""
    import torch

    from ..cases import Slice
    from ..io.slices import read_slices, slice_files

    images, masks, rows = read_slices(folder)
    files = slice_files(folder)
    found: dict[Path, tuple[Slice, Mapping[str, str]]] = {}
    for n, (number, image, mask, row) in enumerate(zip(sorted(files), images, masks, rows, strict=True)):
        shape = image.grid.shape[:2]
        inside = torch.ones(shape, dtype=torch.bool) if mask is None else mask.data[0, :, :, 0] > 0.5
        if inside.shape != shape:
            raise GeometryError(f"the mask of {files[number]} is {tuple(inside.shape)}, the slice {shape}", "write them on one grid")
        thick = _number(row, "thickness_mm", float(image.grid.spacing[2]), files[number])
        stack, order = (int(_number(row, name, default, files[number])) for name, default in (("stack", 0), ("order", n)))
        found[files[number]] = Slice(image, thick, inside, stack, order), row
    return found


def _number(row: Mapping[str, str], name: str, default: float, path: Path) -> float:
    """A number of the table."""
    text = row.get(name) or ""
    try:
        return float(text) if text else default
    except ValueError as error:
        raise FileError(f"the table says that {name} of {path.name} is {text!r}, not a number", "mend slices.csv, or take it away") from error


def _targets(cut: Mapping[Path, object], write: str, what: str) -> list[Path]:
    """Where the simulated slices go, by the numbers of those that were measured."""
    from ..io import check_writable
    from ..io.slices import slice_files
    from .work import spare

    if not write:
        return []
    numbers = {path: number for number, path in slice_files(next(iter(cut)).parent).items()}
    targets = [Path(write) / f"simulated-{numbers[path]:03d}.nii.gz" for path in cut]
    spare(targets, [what, *map(str, cut)])
    check_writable(targets[0])
    return targets


def _volume(what: str) -> Volume:
    """A volume as it is, a field on its own grid."""
    from ..io import read_volume
    from .query import evaluate, grid_of
    from .work import read_any_field

    if not what.lower().endswith(".field"):
        return read_volume(what)
    field = read_any_field(what)
    if field.channels != 1:
        raise InputError(f"{what} has {field.channels} channels, a slice measures one", "read one of them first: medfields query")
    return evaluate(field, grid_of(field))


def _row(path: Path, one: Slice, row: Mapping[str, str], found: Fit) -> dict[str, object]:
    """What the table says of one slice."""
    def told(value: float, digits: int) -> str:
        return f"{value:.{digits}f}" if np.isfinite(value) else ""

    return {"file": path.name, "stack": one.stack, "order": one.order, "thickness_mm": f"{one.thickness:g}", "pixels": found.pixels,
            "ncc": told(found.alike, 4), "psnr_db": told(found.psnr, 2), "gain": told(found.gain, 4), "worth": row.get("worth", "")}


def _say(rows: Sequence[Mapping[str, object]]) -> None:
    """The medians, and the slices that are explained worst."""
    from .tables import aligned

    judged = sorted((r for r in rows if r["ncc"]), key=lambda r: float(str(r["ncc"])))
    if not judged:
        raise GeometryError("no slice shows anything of the volume", "do they lie in one world? A volume goes with the slices of its own run")
    ncc, psnr = (np.median([float(str(r[name])) for r in judged]) for name in ("ncc", "psnr_db"))
    beside = f", {len(rows) - len(judged)} beside the volume or empty" if len(judged) < len(rows) else ""
    print(f"{len(judged)} slices{beside}: median ncc {ncc:.3f}, psnr {psnr:.1f} dB; the worst:")
    print(aligned(judged[:WORST]))


def _write(one: Slice, shown: Tensor, target: Path, like: Path) -> None:
    """A simulated slice with the header of the measured one."""
    from ..io import write_volume

    write_volume(one.image.with_data(shown[:, :, None]), target, like=like)
