"""simulate: test data from an image; for CT, projections of any CT, by another sampler than the one that reconstructs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Float
from tyro.conf import Positional

from ..errors import GeometryError, InputError
from .task import QUIET, Number, attenuation, mask

if TYPE_CHECKING:
    from ..space import Geometry, Volume

PHOTONS = 1.0, 1e12  # in a pixel of the open beam: with fewer there is no image, with more no noise
KEV = 70.0  # the energy that the HU of the image are taken to belong to
PARTS = 50  # of the views, after each of which the progress is told: few, because a spectrum decomposes the image anew for each


def simulate(
    task: Positional[Literal["ct"]],
    volume: Positional[str],
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE")],
    views: int = 180,
    noise: Number = None,
    beam: Annotated[Literal["parallel", "fan", "cone"] | None, tyro.conf.arg(metavar="{parallel,fan,cone}", help_behavior_hint=QUIET)] = None,
    arc: bool = False,
    distances: Annotated[tuple[float, float], tyro.conf.arg(metavar="MM MM")] = (500.0, 1000.0),
    arc_degrees: Number = None,
    pitch: Number = None,
    columns: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=QUIET)] = None,
    rows: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=QUIET)] = None,
    offset: float = 0.0,
    slice: Annotated[int | None, tyro.conf.arg(metavar="K", help_behavior_hint=QUIET)] = None,
    unit: Annotated[Literal["HU", "mm-1", "cm-1"] | None, tyro.conf.arg(metavar="{HU,mm-1,cm-1}", help_behavior_hint=QUIET)] = None,
    water: Number = None,
    spectrum: Number = None,
    metal: str = "",
    material: str = "titanium",
    subrays: int = 4,
    seed: int = 0,
) -> None:
    """Projections of a CT image, in our HDF5 layout: medfields ct reads them, and --truth of medfields report compares.

    Args:
        task: ct.
        volume: an image in HU or 1/mm.
        output: the file to write, ending in .h5.
        views: evenly spread over the arc.
        noise: photons in a pixel of the open beam, for instance 1e5; default: no noise.
        beam: parallel and fan project one slice, cone the volume; default: parallel, or cone with --rows.
        arc: the columns of a fan or cone beam lie on a circle about the source.
        distances: mm from the source to the isocentre and to the detector.
        arc_degrees: that the views cover; default: 180 for a parallel beam, else 360.
        pitch: mm from pixel to pixel at the detector; default: the voxel size, magnified.
        columns, rows: of the detector; default: as many as see the whole image.
        offset: mm by which the detector is shifted along its columns (half-fan).
        slice: number of the slice, counted from 0 at the feet; default: the middle.
        unit: of the image; default: HU if values reach below -100, else 1/mm.
        water: its attenuation in 1/mm; default: 0.0193, at 70 keV.
        spectrum: peak voltage in kV of a tube whose whole spectrum is used, for instance 120; default: one energy.
        metal: a mask of metal that is put into the image.
        material: of the metal: titanium, iron, gold, ...
        subrays: rays averaged over each pixel.
        seed: of the noise.
    """
    from ..evaluate.simulate_ct import add_noise, polychromatic, project
    from ..io import check_writable
    from ..io.projections import write_projections
    from ..io.scan import Scan
    from ..operators.materials import attenuation as of_material
    from ..operators.spectrum import Spectrum
    from .work import spare

    if not output.endswith((".h5", ".hdf5")):
        raise InputError(f"projections are written as HDF5, not as '{Path(output).name}'", "give -o projections.h5")
    spare([Path(output)], [volume, metal])
    check_writable(output)
    _require(views, noise, water, (rows, columns), pitch, arc_degrees, offset, distances, seed)
    water = float(of_material("water", KEV)) if water is None else water
    beam = beam or ("parallel" if rows is None else "cone")
    _fits(beam, rows, arc, slice)
    image, inserted = _image(volume, unit, water, metal, None if beam == "cone" else slice if slice is not None else -1)
    geometry = _geometry(image, beam, views, arc_degrees, distances, pitch, (rows, columns), offset, arc)
    tube = None if spectrum is None else Spectrum.tube(spectrum)
    print(f"projecting {geometry.views} views of {geometry.shape[0]} x {geometry.shape[1]} pixels", file=sys.stderr)
    if tube is not None:
        metals = None if inserted is None else {material: inserted}
        data = _projected(geometry, lambda part: polychromatic(image, part, tube, metal=metals, reference_kev=KEV, subrays=subrays))
        water = float(of_material("water", tube.mean))
    else:
        if inserted is not None:
            share = inserted.data.clamp(0, 1)
            image = image.with_data((1 - share) * image.data + share * float(of_material(material, KEV)))
        data = _projected(geometry, lambda part: project(image, part, subrays=subrays))
    if not data.any():
        raise GeometryError("no ray meets anything that attenuates", "check --offset, --columns, --rows and --pitch")
    data = np.asarray(add_noise(data, noise, seed), dtype=np.float32)
    scan = Scan(data, geometry, image.grid, water=water, photons=noise or 0.0, name=Path(output).name,
                spectrum=None if tube is None else (tube.energies, tube.shares))
    write_projections(scan, output)
    print(f"{output}  {geometry.views} views of {geometry.shape[0]} x {geometry.shape[1]} pixels, line integrals up to {data.max():.3g}")
    print(f"reconstruct:  medfields ct {output} -o volume.nii.gz\nand compare:  medfields report volume.run --truth {volume}")


def _require(views: int, noise: float | None, water: float | None, detector: tuple[int | None, int | None], pitch: float | None,
             arc_degrees: float | None, offset: float, distances: tuple[float, float], seed: int) -> None:
    """Raise InputError, before anything is computed, for numbers that cannot be meant."""
    rows, columns = detector
    for name, value, sound, hint in (
        ("views", views, views >= 1, "at least 1"),
        ("noise", noise, noise is None or PHOTONS[0] <= noise <= PHOTONS[1], "photons in a pixel of the open beam, for instance 1e5"),
        ("water", water, water is None or 0 < water < 0.15, "1/mm: about 0.0193 at 70 keV (0.193 per cm)"),
        ("rows", rows, rows is None or rows >= 1, "at least 1"),
        ("columns", columns, columns is None or columns >= 1, "at least 1"),
        ("pitch", pitch, pitch is None or 0 < pitch < np.inf, "positive, mm"),
        ("arc-degrees", arc_degrees, arc_degrees is None or 0 < arc_degrees < np.inf, "positive, degrees"),
        ("offset", offset, np.isfinite(offset), "mm"),
        ("distances", max(distances, key=abs), np.isfinite(distances).all(), "mm from the source to the isocentre and to the detector"),
        ("seed", seed, seed >= 0, "0 or more"),
    ):
        if not sound:
            raise InputError(f"--{name} cannot be {value:g}", hint)


def _fits(beam: str, rows: int | None, arc: bool, number: int | None) -> None:
    """Raise InputError for options that this beam has no use for."""
    if beam != "cone" and (rows or 1) > 1:
        raise InputError(f"a {beam} beam projects one slice, onto one row, not {rows}", "--beam cone projects the volume")
    if beam == "cone" and number is not None:
        raise InputError("a cone beam projects the volume, not one slice of it", "leave --slice out, or give --beam fan")
    if beam == "parallel" and arc:
        raise InputError("a parallel beam has no source for a detector to curve about", "leave --arc out, or give --beam fan")


def _projected(geometry: Geometry, project: Callable[[Geometry], Float[np.ndarray, "P R C"]]) -> Float[np.ndarray, "V R C"]:
    """What `project` gives of all views, one part after the other, with a progress bar where it takes a while; the first part is one view."""
    from ..solve import Event, Terminal

    views, terminal, start = geometry.views, Terminal(), time.monotonic()
    data = np.empty((views, *geometry.shape), dtype=np.float32)
    ends = sorted({1, *(-(-views * k // PARTS) for k in range(1, PARTS + 1))})
    try:
        for first, end in zip([0, *ends], ends, strict=False):
            data[first:end] = project(geometry.subset(slice(first, end)))
            seconds = time.monotonic() - start
            terminal.event(Event("project", end, views, seconds, {}, seconds * (views - end) / end, end == views))
    finally:
        terminal.close()
    return data


def _image(path: str, unit: str | None, water: float, metal: str, number: int | None) -> tuple[Volume, Volume | None]:
    """The image in 1/mm, its third axis towards the head, and the mask on its grid; one slice of both if `number` is given (-1: the middle)."""
    from ..space import Volume

    image = _upright(attenuation(path, unit, water)[0])  # type: ignore[arg-type]
    if number is not None:
        n = image.grid.shape[2]
        if not -1 <= number < n:
            raise InputError(f"there is no slice {number}: the image has {n}", f"--slice 0 to {n - 1}")
        k = n // 2 if number < 0 else number
        grid = image.grid.crop((0, 0, k), (*image.grid.shape[:2], 1))
        image = Volume(image.data[..., k : k + 1], grid, image.unit)
    if not metal:
        return image, None
    inserted = mask(metal).on(image.grid)
    if float(inserted.data.max()) <= 0.5:
        raise InputError(f"the metal mask {metal} holds nothing inside the image", "a mask is 1 where metal is, in the same mm")
    return image, inserted.with_data((inserted.data > 0.5).float())


def _upright(image: Volume) -> Volume:
    """The same voxels with the axis that runs best along the body as the third, pointing to the head."""
    from ..space import Grid, Volume

    k = int(np.abs(image.grid.directions[2]).argmax())
    order = [*(a for a in range(3) if a != k), k]
    data, affine, n = image.data.permute(0, *(1 + a for a in order)), image.grid.affine[:, [*order, 3]].copy(), image.grid.shape[k]
    if affine[2, 2] < 0:
        data = data.flip(3)
        affine[:3, 3] += (n - 1) * affine[:3, 2]
        affine[:3, 2] *= -1
    return Volume(data.contiguous(), Grid((data.shape[1], data.shape[2], data.shape[3]), affine), image.unit)


def _geometry(image: Volume, beam: str, views: int, arc_degrees: float | None, distances: tuple[float, float], pitch: float | None,
              detector: tuple[int | None, int | None], offset: float, arc: bool) -> Geometry:
    """Views about the axis of the image's slices through its middle, with a detector that sees all of it."""
    from ..space import Geometry
    from .work import require_memory

    grid = image.grid
    side, extent = grid.spacing, grid.spacing * grid.shape
    radius, half = float(np.linalg.norm(extent[:2])) / 2, float(extent[2]) / 2
    turn = np.radians(arc_degrees or (180 if beam == "parallel" else 360))
    near, far = distances
    if beam != "parallel" and not radius < near < far:
        raise GeometryError(f"the source at {near:g} mm would be inside the image, which reaches {radius:.0f} mm from the axis, or behind the "
                            f"detector at {far:g} mm", "--distances 500 1000: mm from the source to the isocentre and to the detector")
    scale = 1.0 if beam == "parallel" else far / near
    pitch = pitch or float(side[:2].min()) * scale
    width = radius if beam == "parallel" else far * (np.arcsin(radius / near) if arc else np.tan(np.arcsin(radius / near)))
    columns = detector[1] or int(np.ceil(2 * (width + abs(offset)) / pitch))
    rows = detector[0] or (1 if beam != "cone" else int(np.ceil(2 * half * far / (near - radius) / pitch)))
    require_memory(16 * views * (rows * columns + 100) + 256 * rows * columns + 16 * grid.size, f"{views} views of {rows} x {columns} pixels",
                   "fewer --views, or a larger --pitch")
    angles, middle = np.linspace(0, turn, views, endpoint=False), grid.centre.tolist()
    if beam == "parallel":
        made = Geometry.parallel(angles, columns, pitch, rows=rows, row_pitch=pitch if rows > 1 else float(side[2]), offset=offset,
                                 isocentre=middle)
    else:
        row_pitch = pitch if rows > 1 else float(side[2]) * scale
        made = Geometry.cone(angles, (rows, columns), (row_pitch, pitch), near, far, offset=(0.0, offset), arc=arc, isocentre=middle)
    up = grid.normal(2)
    if up[2] > 1 - 1e-6:
        return made
    first = grid.directions[:, 0] - (grid.directions[:, 0] @ up) * up  # a tilted gantry: it turns about the normal of the slices
    first = first / np.linalg.norm(first)
    return made.moved(np.stack([first, np.cross(up, first), up], 1), np.zeros(3), about=middle)
