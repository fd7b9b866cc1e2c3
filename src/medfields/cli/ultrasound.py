"""ultrasound: a tracked freehand sweep in, a volume out."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from .. import plugins
from ..errors import InputError
from . import task
from .task import QUIET, File, Outputs, TaskOptions, absolute

if TYPE_CHECKING:
    from ..cases import Sweep
    from ..report.run_folder import RunFolder
    from ..solve import Method

TASK = "ultrasound"


@dataclass(frozen=True)
class Asked:
    """What is measured and what is wanted."""

    sweep: Annotated[Positional[str], tyro.conf.arg(metavar="FILE", help_behavior_hint=QUIET)] = ""
    """Tracked frames: a MetaImage sequence of PLUS or 3D Slicer (.igs.mha, .mha)."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(required)")] = ""
    """The volume to write (.nii.gz, .nii, .nrrd, .mha), or a folder name ending in "/" for a DICOM series."""
    check: bool = False
    """Say and draw where the frames lie, and stop."""
    calibration: File = ""
    """From pixels to the probe, in mm: the configuration of PLUS (.xml), or a text file of 4 x 4 numbers; not needed if the frames state it."""
    unit: Annotated[str, tyro.conf.arg(metavar="{mm,m}", help_behavior_hint=QUIET)] = ""
    """Of the tracking; default: mm, and tracking that looks like metres is refused."""
    spacing: Annotated[float | None, tyro.conf.arg(metavar="MM", help_behavior_hint=QUIET)] = None
    """mm of the isotropic output voxels; default: 0.5, or twice the pixel where that is more."""
    like: File = ""
    """An image whose grid the output takes, instead of --spacing."""


@dataclass(frozen=True)
class Options(TaskOptions, Asked):
    """A tracked freehand sweep in, a volume out."""


def ultrasound(words: list[str]) -> None:
    """Run the command; `words` are what follows its name."""
    options, method = parse(words)
    if not options.sweep:
        raise InputError("there is nothing to work on", "medfields ultrasound sweep.igs.mha --calibration config.xml -o volume.nii.gz")
    outputs = Outputs.of(options.output, options.run, "volume.nii.gz") if options.output or not options.check else None
    import torch

    from ..solve import Run, Terminal
    from .work import use_threads

    use_threads(options.threads)
    start = time.monotonic()
    case, notes = case_of(options)
    if options.check:
        from .ultrasound_check import show

        return show(case, notes, outputs.run / "check.png" if outputs else Path(f"{Path(options.sweep).name}.check.png"))
    assert outputs is not None
    _spare(options, outputs)
    for text in notes:
        print(f"medfields: note: {text}", file=sys.stderr)
    path = outputs.volumes()[0]
    with Run(outputs.run, seed=options.seed, device=options.device, seconds=options.seconds, listeners=[Terminal()],
             config=resolved(options, method), data=case.fingerprint()) as run:
        result = method.solve(case, run)
        volume = task.as_volume(result, case.grid)
        reached = torch.as_tensor(case.reached(), device=volume.data.device)
        run.note(voxels_reached=float(reached.float().mean()))
        volume = volume.with_data(volume.data * reached)  # 0 where no frame reached, whatever the method makes up there
        field = task.as_field(result, volume)
        origin = [{"name": case.name, "sha256": case.fingerprint()}]
        field.grid, field.about = case.grid, {**field.about, **task.about(options, method, run, inputs=origin, reach_mm=case.reach())}
        from ..io import write_field, write_volume

        write_volume(volume, path)
        write_field(field, outputs.field)
        summary = run.finish(outputs=[absolute(str(path))], field=absolute(str(outputs.field)))
    from ..report import ultrasound_page

    page = ultrasound_page(case, volume, outputs.run, notes=notes)
    size = f"{outputs.field.stat().st_size / 2**20:.2g} MB"
    rows = [(str(path), task.size_of(case.grid)), (str(page), "open it in a browser"),
            (str(outputs.field), f"{size}; any spacing: medfields query {outputs.field} --spacing 0.25 -o fine.nii.gz")]
    task.summarise(rows, plugins.find(options.method).name, summary["notes"], time.monotonic() - start)


def parse(words: list[str]) -> tuple[Options, Method]:
    """Options and method from the words: defaults, then the configuration file, then flags."""
    return task.parse(words, TASK, Options, instead=("spacing", "like"))


def resolved(options: Options, method: Method) -> dict[str, Any]:
    """Everything the result depends on, as plain values: giving it to --config does the same again."""
    files = {name: absolute(getattr(options, name)) for name in ("sweep", "calibration", "like")}
    return task.resolved(TASK, options, method, **files)


def case_of(options: Options) -> tuple[Sweep, list[str]]:
    """The case that the options describe, and what there is to say of it.

    Raises:
        FileError, GeometryError, InputError: for what cannot be read or meant.
        OutOfMemory: for a grid beyond this machine.
    """
    from ..cases import Sweep
    from ..io import read_volume
    from ..io.sweep import read_sweep
    from .work import require_memory

    if options.like and options.spacing is not None:
        raise InputError("--spacing and --like exclude one another", "give one of them")
    tracked = read_sweep(options.sweep, calibration=options.calibration or None, unit=options.unit)
    case = Sweep.of(tracked, spacing=options.spacing, grid=read_volume(options.like).grid if options.like else None)
    require_memory(40 * case.grid.size + 24 * case.frames.numel(), f"a grid of {' x '.join(map(str, case.grid.shape))} voxels",
                   "choose a larger --spacing")
    return case, [*tracked.notes, f"voxels further than {case.reach():.2g} mm from every pixel are set to 0: no frame reached them"]


def again(folder: Path, facts: RunFolder) -> Path:
    """The report of a finished run once more, from the files it read and wrote."""
    from ..io import read_volume
    from ..report import ultrasound_page

    options, _ = parse(["--config", str(folder / "config.toml")])
    case, notes = case_of(options)
    return ultrasound_page(case, read_volume(facts.summary["outputs"][0]), folder, notes=notes)


def _spare(options: Options, outputs: Outputs) -> None:
    """Find out now whether the results can be written, and take the place of no input."""
    from ..io import check_image_path, check_writable
    from .work import spare

    spare((*outputs.volumes(), outputs.field), (options.sweep, options.calibration, options.like))
    check_image_path(outputs.volumes()[0])
    check_writable(outputs.field)
