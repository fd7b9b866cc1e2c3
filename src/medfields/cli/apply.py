"""apply: a warp carries an image, labels, a dose, points or a surface; or is written in another format."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from ..errors import InputError, OutputError

if TYPE_CHECKING:
    import numpy as np

    from ..fields import Field
    from ..space import Grid, Volume

Interpolation = Literal["linear", "cubic", "nearest"]
Preserve = Literal["dose", "energy"]
Vectors = Literal["itk", "nifti"]
IMAGES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")
FAR = 0.1  # mm: an inverse that misses by more was not found


def apply(
    warp: Positional[str],
    what: Annotated[Positional[str], tyro.conf.arg(help_behavior_hint="")] = "",
    *,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE")],
    like: Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = "",
    inverse: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    labels: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    interpolation: Annotated[Interpolation | None, tyro.conf.arg(metavar="{linear,cubic,nearest}", help_behavior_hint="")] = None,
    dose: Annotated[Preserve | None, tyro.conf.arg(metavar="{dose,energy}", help_behavior_hint="")] = None,
    vectors: Annotated[Vectors, tyro.conf.arg(metavar="{itk,nifti}")] = "itk",
    threads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None,
) -> None:
    """Carry an image, points or a surface with a warp; without them, write the warp in another format.

    A warp goes from the fixed to the moving image: images of the moving world are pulled onto the fixed grid, and points and surfaces go from the
    fixed to the moving world. --inverse turns both round.

    Args:
        warp: a .field, a transform of ITK or ANTs (.h5, .mat, .txt, .tfm), or a displacement image (.nii.gz, .mha, .nrrd).
        what: an image or a DICOM folder; a .csv file with the header x,y,z and RAS+ millimetres below; or a surface (.stl, .ply, .obj, .off) in
            RAS+ millimetres. Without it the warp itself is written.
        output: of the kind of what is carried. A warp is written as .field, as a transform of ITK (.h5, .txt, .tfm, affine maps also .mat), or as a
            displacement image (.nii.gz, .mha, .nrrd).
        like: an image whose grid is used, the fixed one, or with --inverse the moving one; default the grid the warp was made on.
        inverse: carry the other way, by Newton's method; its error is said.
        labels: the image holds labels: nearest voxel, written as whole numbers.
        interpolation: between the voxels of the image; default linear.
        dose: the image is a dose: keep the dose of each piece of tissue, or the energy (the value times det J).
        vectors: of a displacement image as .nii.gz: LPS as ITK and ANTs have them (intent 1007), or RAS as the NIfTI standard has (intent 1006).
        threads: processor threads; default all.
    """
    from ..io.mesh import MESHES
    from .work import spare, use_threads

    use_threads(threads)
    spare([Path(output)], [warp, what, like])
    kind = Path(what).suffix.lower()
    if kind == ".csv" or kind in MESHES or not what:
        if labels or interpolation or dose:
            raise InputError("--labels, --interpolation and --dose are for images", "leave them out")
    elif (labels and (interpolation not in (None, "nearest") or dose)) or (dose and interpolation not in (None, "linear")):
        raise InputError("labels are read at the nearest voxel, doses linearly", "leave --interpolation out, and give one of --labels and --dose")
    carrier = read_warp(warp)
    if not what:
        _export(carrier, Path(output), like, inverse, vectors)
    elif kind == ".csv":
        _points(carrier, Path(what), Path(output), inverse)
    elif kind in MESHES:
        _mesh(carrier, Path(what), Path(output), inverse)
    else:
        _image(carrier, what, output, like, inverse, "nearest" if labels else interpolation or "linear", labels, dose)


def read_warp(path: str) -> Field:
    """A warp in any format.

    Raises:
        InputError: a field that is no displacement in mm.
        FileError, GeometryError, MissingExtra, UnknownName: as its reader.
    """
    from ..io.transforms import read_transform
    from .work import read_any_field

    if Path(path).suffix.lower() != ".field":
        return read_transform(path)
    field = read_any_field(path)
    if field.box.ndim != 3 or field.channels != 3 or field.unit != "mm":
        said = f"{field.channels} channel{'s' * (field.channels > 1)}{' in ' + field.unit if field.unit else ''} of {field.box.ndim} coordinates"
        raise InputError(f"{path} is no warp: it has {said}", "a warp has three channels in mm, as medfields register writes it")
    return field


def _export(warp: Field, output: Path, like: str, inverse: bool, vectors: Vectors) -> None:
    from ..io import check_writable, read_image, write_field
    from ..io.itk_parts import ENDINGS
    from ..io.transforms import write_composite, write_displacement

    image = output.name.lower().endswith(IMAGES)
    if not image and output.suffix.lower() not in (".field", *ENDINGS):
        raise OutputError(f"no known format of warps ends in '{output.suffix}'", "use .field, .h5, .txt, .tfm, .mat, .nii.gz, .mha or .nrrd")
    check_writable(output)
    grid = read_image(like, channels=True).grid if like else None
    said = ""
    if inverse:
        from ..solve.carry import backwards

        grid = _asked(warp, grid, inverse)
        warp, missed = backwards(warp, grid)
        said = _said_of(missed.data.numpy(), "voxels")
    if image:
        write_displacement(warp, grid, output, vectors)
    elif output.suffix.lower() == ".field":
        write_field(warp, output)
    else:
        write_composite(warp, grid, output)
    print(f"{output}  a warp{said}")


def _points(warp: Field, what: Path, output: Path, inverse: bool) -> None:
    import numpy as np

    from ..io import atomic, check_writable
    from ..solve.carry import carried_points
    from .query import read_points

    if output.suffix.lower() != ".csv":
        raise InputError(f"points are written as a table, not as {output.name}", "give -o points.csv")
    check_writable(output)
    given = np.array(read_points(what, ["x", "y", "z"]))
    moved, missed = carried_points(warp, given, inverse)
    with atomic(output) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["x", "y", "z", *(["missed"] if inverse else [])])
        table.writerows([*(f"{v:.10g}" for v in at), *([f"{off:.3g}"] if inverse else [])] for at, off in zip(moved, missed, strict=True))
    print(f"{output}  {len(given)} points{_beyond(warp, moved if inverse else given)}{_said_of(missed, 'points') if inverse else ''}")


def _mesh(warp: Field, what: Path, output: Path, inverse: bool) -> None:
    import numpy as np

    from ..io import check_writable
    from ..io.mesh import MESHES, read_mesh, write_mesh
    from ..solve.carry import carried_mesh

    if output.suffix.lower() not in MESHES:
        raise OutputError(f"no known surface ends in '{output.suffix}'", f"use one of {', '.join(MESHES)}")
    check_writable(output)
    mesh = read_mesh(what)
    moved, missed = carried_mesh(warp, mesh, inverse)
    write_mesh(moved, output)
    fixed = np.asarray((moved if inverse else mesh).vertices)
    print(f"{output}  {len(mesh.faces)} triangles{_beyond(warp, fixed)}{_said_of(missed, 'vertices') if inverse else ''}")


def _image(warp: Field, what: str, output: str, like: str, inverse: bool, interpolation: Interpolation, labels: bool, dose: Preserve | None) -> None:
    from ..fields import LinearBasis, from_lattice
    from ..io import check_finite, check_image_path, read_image, write_volume
    from ..solve.carry import backwards, carried_dose, carried_image
    from .query import evaluate

    check_image_path(output)
    image = read_image(what, channels=True)
    check_finite(image, what)
    if labels:
        _require_labels(image, what)
    elif dose is None:  # what no one measured looks like the emptiest voxel, -1000 HU in a CT; no label and no dose is 0
        image.fill = float(image.data.min())
    grid = _asked(warp, read_image(like, channels=True).grid if like else None, inverse)
    said = ""
    if inverse:
        warp, missed = backwards(warp, grid)
        said = _said_of(missed.data.numpy(), "voxels")
    if dose is not None:
        made = carried_dose(warp, image, grid, dose)
    else:  # a network is read with a progress bar; at the voxels its values are all that counts
        seen = warp if isinstance(warp.net, LinearBasis) else from_lattice(evaluate(warp, grid))
        made = carried_image(seen, image, grid, interpolation)
    write_volume(made, output, dtype=_whole(made) if labels else "float32")
    outside = made.about["outside"]
    if outside == 1:
        said += "; ALL of it points outside the image: do the warp and the image belong together?"
    elif outside:
        said += f", {100 * outside:.2g} % of them point outside the image and got {image.fill:g}"
    if made.about.get("folded"):
        said += f", {100 * made.about['folded']:.2g} % are folded and got no dose"
    print(f"{output}  {' x '.join(map(str, grid.shape))} voxels of {' x '.join(f'{s:.3g}' for s in grid.spacing)} mm{said}")


def _asked(warp: Field, grid: Grid | None, inverse: bool) -> Grid:
    """Where the result is asked for."""
    if grid is None and (inverse or warp.grid is None):
        raise InputError("the inverse is asked for on the grid of the moving image" if inverse else "this warp does not name a grid of its own",
                         f"give it: --like {'moving' if inverse else 'fixed'}.nii.gz")
    return grid or warp.grid  # type: ignore[return-value]


def _require_labels(image: Volume, what: str) -> None:
    if not bool((image.data == image.data.round()).all()) or float(image.data.abs().max()) >= 1 << 24:
        raise InputError(f"{what} holds values that are no labels: labels are whole numbers below 2^24", "leave --labels out")


def _whole(labels: Volume) -> str:
    return "int16" if float(labels.data.abs().max()) < 1 << 15 else "int32"


def _beyond(warp: Field, fixed: np.ndarray) -> str:
    """How many points of the fixed world lie where the warp was never fitted."""
    import torch

    beyond = int((~warp.box.contains(torch.as_tensor(fixed))).sum())
    return f", {beyond} of them outside the warp's box, where it is a guess" if beyond else ""


def _said_of(missed: np.ndarray, things: str) -> str:
    """What is said of an inverse that misses by so many mm."""
    lost_at = int((missed > FAR).sum())
    lost = f", but for {lost_at} {things} none was found within {FAR} mm: the warp folds there" if lost_at else ""
    return f"; the inverse misses by at most {missed.max():.2g} mm{lost}"
