"""ct: X-ray projections in, a slice or a volume out."""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from .. import plugins
from ..errors import GeometryError, InputError
from . import task
from .task import QUIET, File, Outputs, TaskOptions, absolute

if TYPE_CHECKING:
    from ..cases import Projections
    from ..io.projections import Scan
    from ..solve import Method
    from ..space import Grid, Volume

TASK = "ct"
UNITS = ("HU", "mm-1", "cm-1")
STRANGER = 4.0  # the prior of another patient explains the data 7 to 23 times worse than a quick SIRT does, an earlier scan 0.3 to 1.4 times


@dataclass(frozen=True)
class Asked:
    """What is measured and what is wanted."""

    projections: Annotated[Positional[str], tyro.conf.arg(metavar="FILE", help_behavior_hint=QUIET)] = ""
    """Projections: our HDF5 layout, DXchange HDF5, FIPS or HTC .mat, or a stack (.nii.gz, .npy) with its geometry; see docs/projections.md."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(required)")] = ""
    """The volume to write (.nii.gz, .nii, .nrrd, .mha), or a folder name ending in "/" for a DICOM series."""
    check: bool = False
    """Say and draw what is understood of the geometry, and stop."""
    geometry: File = ""
    """Of a stack: a .json, .toml, .npy, .csv or .txt file; default: the one beside it with its name."""
    beam: Annotated[str, tyro.conf.arg(metavar="{parallel,cone}", help_behavior_hint=QUIET)] = ""
    """Of ASTRA vectors, which do not say it."""
    pitch: Annotated[float | None, tyro.conf.arg(metavar="MM", help_behavior_hint=QUIET)] = None
    """mm from pixel to pixel, for DXchange files, which do not say it."""
    centre: Annotated[float | None, tyro.conf.arg(metavar="COLUMN", help_behavior_hint=QUIET)] = None
    """The column on which the axis of rotation falls, for DXchange files; default: found from opposite views."""
    spacing: Annotated[float | None, tyro.conf.arg(metavar="MM", help_behavior_hint=QUIET)] = None
    """mm of the output voxels over the field of view; default: the pixel size at the isocentre."""
    size: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=QUIET)] = None
    """Voxels across the field of view, instead of --spacing."""
    like: Annotated[str, tyro.conf.arg(aliases=["--grid"], metavar="FILE", help_behavior_hint=QUIET)] = ""
    """An image whose grid the output takes, instead of --spacing."""
    use: Annotated[str, tyro.conf.arg(metavar="START:STOP:STEP", help_behavior_hint=QUIET)] = ""
    """Views to use, as a Python slice (::4 is every fourth); how well the others are predicted stands in the report. Default: all."""
    prior: File = ""
    """An earlier scan of the same patient, in HU (if values reach below -100) or 1/mm, for methods that use one."""
    register: bool = True
    """Lay the earlier scan on a quick reconstruction first, rigidly."""
    metal: File = ""
    """A mask of the metal, for methods that use one."""
    precorrect: bool = False
    """Undo what the hardening of the beam does to water first, if the file states the tube's spectrum; not for methods that model it."""
    water: Annotated[float | None, tyro.conf.arg(metavar="1/MM", help_behavior_hint=QUIET)] = None
    """Attenuation of water in 1/mm (0.02 at about 65 keV), for HU; default: what the file says."""
    unit: Annotated[str, tyro.conf.arg(metavar="{HU,mm-1,cm-1}", help_behavior_hint=QUIET)] = ""
    """Of the output; default: HU if the attenuation of water is known, else 1/mm."""


@dataclass(frozen=True)
class Options(TaskOptions, Asked):
    """X-ray projections in, a slice or a volume out."""


def ct(words: list[str]) -> None:
    """Run the command; `words` are what follows its name."""
    options, method = parse(words)
    if not options.projections:
        raise InputError("there is nothing to work on", "medfields ct projections.h5 -o volume.nii.gz")
    outputs = Outputs.of(options.output, options.run, "volume.nii.gz") if options.output or not options.check else None
    from ..solve import Run, Terminal
    from .work import use_threads

    use_threads(options.threads)
    start = time.monotonic()
    case, held_out, notes = case_of(options)
    notes += _idle(options, method)
    if options.check:
        from .ct_check import show

        return show(case, held_out, notes, outputs.run / "check.png" if outputs else Path(f"{Path(options.projections).name}.check.png"))
    assert outputs is not None
    unit = _unit(options, case)
    _spare(options, outputs)
    for text in notes:
        print(f"medfields: note: {text}", file=sys.stderr)
    paths = _paths(outputs)
    with Run(outputs.run, seed=options.seed, device=options.device, seconds=options.seconds, listeners=[Terminal()],
             config=resolved(options, method), data=case.fingerprint()) as run:
        result = method.solve(case, run)
        volume = task.as_volume(result, case.grid)
        names = tuple(getattr(result, "names", ()) or volume.about.get("names", ()))
        field = task.as_field(result, volume)
        origin = [{"name": case.name, "sha256": case.fingerprint()}]
        field.grid, field.about = case.grid, {**field.about, **task.about(options, method, run, water_per_mm=case.water, inputs=origin)}
        value, std = split(volume, names)
        written = _write(value, std, paths, unit, case.water)
        from ..io import write_field

        write_field(field, outputs.field)
        summary = run.finish(projections=absolute(options.projections), outputs=[absolute(str(p)) for p in written],
                             field=absolute(str(outputs.field)), channels=list(names))
    page = write_page(case, held_out, value, std, outputs.run, notes)
    told = {"HU": "HU", "mm-1": "1/mm", "cm-1": "1/cm"}[unit]
    rows = [(str(written[0]), f"{task.size_of(case.grid)}, {told}")]
    rows += [(str(path), f"its standard deviation, {told}") for path in written[1:]]
    rows += [(str(outputs.field), "in 1/mm; any spacing: medfields query ... --spacing 0.5 -o fine.nii.gz"), (str(page), "open it in a browser")]
    found = {} if held_out is None else {"held_out_error_percent": 100 * held_out.misfit(value)[1]}
    task.summarise(rows, plugins.find(options.method).name, {**summary["notes"], **found}, time.monotonic() - start)


def _idle(options: Options, method: Method) -> list[str]:
    """A note for each thing that was given and that the method has no use for."""
    able = {"prior": "nerp", "metal": "polyner or li-mar"}
    name = plugins.find(options.method).name
    return [f"'{name}' makes no use of --{part}; --method {others} does" for part, others in able.items()
            if getattr(options, part) and part not in type(method).uses]


def _paths(outputs: Outputs) -> list[Path]:
    """Of the volume, and of its standard deviation if there is one."""
    return [*outputs.volumes(), outputs.folder / f"{outputs.stem}_std{outputs.ending}"]


def _spare(options: Options, outputs: Outputs) -> None:
    """Find out now whether the results can be written, and take the place of no input."""
    from ..io import check_image_path, check_writable
    from .work import spare

    inputs = (options.projections, options.geometry, options.like, options.prior, options.metal)
    spare((*_paths(outputs), outputs.field), inputs)
    check_image_path(outputs.volumes()[0])
    check_writable(outputs.field)


def parse(words: list[str]) -> tuple[Options, Method]:
    """Options and method from the words: defaults, then the configuration file, then flags."""
    return task.parse([w.replace("--grid", "--like", 1) if w.partition("=")[0] == "--grid" else w for w in words], TASK, Options,
                      instead=("spacing", "size", "like"))


def resolved(options: Options, method: Method) -> dict[str, Any]:
    """Everything the result depends on, as plain values: giving it to --config does the same again."""
    files = {name: absolute(getattr(options, name)) for name in ("projections", "geometry", "like", "prior", "metal")}
    return task.resolved(TASK, options, method, **files)


def case_of(options: Options) -> tuple[Projections, Projections | None, list[str]]:
    """The case that the options describe, the views held out of it, and what there is to say of both.

    Raises:
        FileError, GeometryError, InputError: for what cannot be read or meant.
        OutOfMemory: for a grid beyond this machine.
    """
    from ..cases import Projections
    from ..cases.lattice import doubts
    from ..io.projections import read_projections
    from .work import require_memory

    for name, value, known in (("--unit", options.unit, UNITS), ("--beam", options.beam, ("parallel", "cone"))):
        if value and value not in known:
            raise InputError(f"{name} cannot be '{value}'", "one of " + ", ".join(known))
    scan = read_projections(options.projections, geometry=options.geometry or None, pitch=options.pitch, centre=options.centre,
                            beam=options.beam or None)
    grid = _grid(scan, options)
    require_memory(40 * grid.size + 24 * scan.data.size, f"a grid of {' x '.join(map(str, grid.shape))} voxels",
                   "choose a larger --spacing or a smaller --size")
    whole = dataclasses.replace(Projections.from_scan(scan, grid), water=_water(options.water, scan.water))
    notes = list(scan.notes)
    if options.precorrect:
        whole = _precorrected(whole)
        notes.append(f"beam hardening of water undone; line integrals now count for water of {whole.water:.4g}/mm")
    elif whole.spectrum is not None:
        notes.append("the file states the tube's spectrum, so its beam hardens: --precorrect undoes that for water")
    case, held_out = _hold_out(whole, options.use)
    if case.geometry.views == 1:
        notes.append("one view tells nothing of the depth at which anything lies: the result is a guess")
    notes += _unseen(case) if options.like else []
    if options.metal:
        case = dataclasses.replace(case, metal=_metal(case, options.metal))
    notes += doubts(case)
    if options.prior:
        prior, said = _prior(case, options.prior, options.register)
        case, notes = dataclasses.replace(case, prior=prior), notes + said
    return case, held_out, notes


def _precorrected(case: Projections) -> Projections:
    """The case at one energy, the mean of its spectrum, as far as it is water."""
    from ..operators.detector import water_precorrection

    if case.spectrum is None:
        raise InputError(f"'{case.name}' does not state the spectrum of its tube, which --precorrect needs", "leave --precorrect out")
    corrected = water_precorrection(case.spectrum)
    return dataclasses.replace(case, data=corrected(case.data), water=corrected.water, spectrum=None)


def _grid(scan: Scan, options: Options) -> Grid:
    """The grid of --like, or the file's own or that of the field of view, with the --spacing or --size that is wanted."""
    from ..cases.lattice import lattice
    from ..io import read_volume

    if sum((bool(options.like), options.spacing is not None, options.size is not None)) > 1:
        raise InputError("--spacing, --size and --like exclude one another", "give one of them")
    if options.spacing is not None and not 0 < options.spacing < float("inf"):
        raise GeometryError(f"--spacing must be positive, got {options.spacing:g} mm", "mm of the voxels, for instance --spacing 1")
    if options.like:
        return read_volume(options.like).grid
    if scan.grid is None:
        return lattice(scan.geometry, spacing=options.spacing, size=options.size)
    if options.size is not None and options.size < 2:
        raise InputError("--size must be at least 2", "for instance --size 256")
    if options.size is not None:
        return scan.grid.with_spacing(float((scan.grid.spacing * scan.grid.shape)[:2].max()) / options.size)
    made = scan.grid if options.spacing is None else scan.grid.with_spacing(options.spacing)
    if options.spacing is not None and min(made.shape[:2]) < 2:
        raise InputError(f"voxels of --spacing {options.spacing:g} mm are as large as the field of view", "mm of a voxel, for instance --spacing 1")
    return made


def _unseen(case: Projections) -> list[str]:
    """A note if the grid that was asked for has slices that no ray meets: methods that know bodies would fill them."""
    import torch

    from ..operators.projections import Projector

    sides, shape = case.grid.spacing, case.grid.shape
    coarse = case.grid.with_spacing([float(sides[0] * max(1, shape[0] / 48)), float(sides[1] * max(1, shape[1] / 48)), float(sides[2])])
    met = Projector(coarse, case.geometry).adjoint(torch.ones_like(case.data)).amax((0, 1)) > 0
    blank = int((~met).sum())
    return [f"no ray meets {blank} of the {shape[2]} slices of the grid: what the result shows there was not measured"] if blank else []


def _water(given: float | None, stated: float) -> float:
    if given is None:
        return stated
    if not 0.001 < given < 0.15:
        raise InputError(f"water cannot attenuate {given:g}/mm", "about 0.02 per mm (0.2 per cm) at 65 keV: --water 0.02")
    return given


def _unit(options: Options, case: Projections) -> Any:
    unit = options.unit or ("HU" if case.water else "mm-1")
    if unit == "HU" and not case.water:
        raise InputError("HU need the attenuation of water, which the file does not state", "--water 0.02 (1/mm, about 65 keV), or --unit mm-1")
    return unit


def _hold_out(whole: Projections, views: str) -> tuple[Projections, Projections | None]:
    """The views that a Python slice names, and the others."""
    import numpy as np

    if not views:
        return whole, None
    every, parts = np.arange(whole.geometry.views), views.split(":")
    try:
        used = every[slice(*(int(p) if p.strip() else None for p in parts))] if 2 <= len(parts) <= 3 else every[:0]
    except ValueError:
        used = every[:0]
    if len(used) == 0:
        raise InputError(f"--use {views} names none of the {len(every)} views", "a Python slice: --use 0:180:4, or ::4 for every fourth")
    rest = np.setdiff1d(every, used)
    return whole.subset(np.sort(used)), whole.subset(rest) if len(rest) else None


def _metal(case: Projections, path: str) -> Volume:
    """The mask on the case's grid; it must lie where the data are dense."""
    mask = task.mask(path)
    found = mask.with_data((mask.data > 0.5).float()).on(case.grid)
    if not (found.data > 0.5).any():
        raise InputError(f"the metal mask {path} holds nothing inside the grid of the result", "a mask is 1 where metal is, in the same mm")
    rough = case.rough(128, 90, 20)
    body, inside = rough.data[rough.data > 0.05 * rough.data.max()], rough.data[found.on(rough.grid).data > 0.25]
    if len(inside) == 0:
        inside = rough.on(case.grid).data[found.data > 0.5]
    densest, expected = float(inside.quantile(0.95)), float(body[: 1 << 23].quantile(0.98))
    if densest < 0.8 * expected:
        raise InputError(f"the mask misses the metal: inside {path} the data are at most {densest:.2g}/mm dense, elsewhere {expected:.2g}/mm",
                         "was it drawn in another frame, or flipped?")
    return found


def _prior(case: Projections, path: str, register: bool) -> tuple[Volume, list[str]]:
    """The earlier scan on the case's grid in 1/mm, and what there is to say of it."""
    import numpy as np
    import torch

    from ..cases.attenuation import WATER
    from ..solve.rigid import carried
    from ..solve.rigid import register as lay

    (earlier, unit), notes = task.attenuation(path, None, case.water or WATER), []
    if unit == "HU" and not case.water:
        notes.append(f"the prior is in HU, and the attenuation of water is unknown: taken as {WATER}/mm (--water)")
    rough = case.rough(96, 60, 30)
    pose = lay(earlier, rough) if register else torch.zeros(6)
    prior = carried(earlier, pose, case.grid)
    if float(prior.data.max()) <= 0:
        where = f"; it is moved within the plane of the slice only, z = {case.grid.centre[2]:.4g} mm" if register and case.grid.is_2d else ""
        raise GeometryError(f"the prior {path} does not overlap the grid of the result", f"it must show the same part of the body{where}")
    if register:
        turn, shift = float(np.degrees(float(pose[:3].norm()))), float(pose[3:].norm())
        notes.append(f"the prior was turned by {turn:.2g} degrees and shifted by {shift:.3g} mm to lie on the new scan")
    every = max(1, case.geometry.views // 60)
    coarse = dataclasses.replace(case.subset(slice(None, None, every)), grid=rough.grid)
    ours, theirs = coarse.misfit(rough)[1], coarse.misfit(prior.on(rough.grid))[1]
    if theirs > STRANGER * max(ours, 0.01):
        notes.append(f"the prior explains the data {theirs / ours:.1f} times worse than a quick reconstruction does ({100 * theirs:.0f} against "
                     f"{100 * ours:.1f} %): is it another patient, in another unit, or not aligned?")
    return prior, notes


def split(volume: Volume, names: tuple[str, ...]) -> tuple[Volume, Volume | None]:
    """The attenuation, and its standard deviation if a channel has that name."""
    std = names.index("std") if "std" in names else None
    pick = [volume.with_data(volume.data[c]) for c in (0, *(() if std is None else (std,)))]
    return pick[0], pick[1] if std is not None else None


def _write(value: Volume, std: Volume | None, paths: list[Path], unit: Any, water: float) -> list[Path]:
    """The volume, and its standard deviation beside it, in the unit that is wanted."""
    from ..cases.attenuation import told_in
    from ..io import write_volume
    from ..space import Volume

    told = [told_in(value, unit, water)]
    if std is not None:
        factor = 1000 / water if unit == "HU" else 10.0 if unit == "cm-1" else 1.0
        told.append(Volume(factor * std.data, std.grid, told[0].unit))
    for volume, path in zip(told, paths, strict=False):
        write_volume(Volume(volume.data, volume.grid, volume.unit, about={"thickness_mm": float(volume.grid.spacing[2])}), path)
    return paths[: len(told)]


def write_page(case: Projections, held_out: Projections | None, value: Volume, std: Volume | None, folder: Path, notes: list[str],
               truth: Volume | None = None, metrics: dict[str, dict[str, float]] | None = None) -> Path:
    """The report; with held-out views and a small grid a SIRT of 100 steps stands beside the result."""
    from ..report import ct_page

    small = case.grid.size * case.geometry.views < 2e7
    rivals = {"SIRT, 100 steps": case.rough(10**9, 10**9, 100)} if held_out is not None and small else {}
    return ct_page(case, value, folder, held_out=held_out, truth=truth, rivals=rivals, metrics=metrics, uncertainty=std, notes=notes)
