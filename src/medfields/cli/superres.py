"""superres: thick slices in, one sharp isotropic volume out."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from .. import plugins
from ..errors import InputError
from . import task
from .config import peek, read_config
from .task import QUIET, File, Outputs, TaskOptions, absolute

if TYPE_CHECKING:
    from ..cases import Stacks
    from ..fields import Field
    from ..solve import Method
    from ..space import Volume

TASK = "superres"


@dataclass(frozen=True)
class Asked:
    """What is measured and what is wanted."""

    stacks: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="STACK ...", help_behavior_hint=QUIET)] = ()
    """Images of one subject: NIfTI, NRRD or MetaImage files or DICOM folders; any number, any orientation."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(required)")] = ""
    """The volume to write (.nii.gz, .nii, .nrrd, .mha), or a folder name ending in "/" for a DICOM series."""
    contrast: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE ...", help_behavior_hint=QUIET)] = ()
    """Stacks of several contrasts, as t1=a.nii.gz t2=b.nii.gz; each contrast becomes a volume of its own."""
    spacing: Annotated[float | None, tyro.conf.arg(metavar="MM", help_behavior_hint=QUIET)] = None
    """mm of the isotropic output voxels; default: the finest in-plane voxel size."""
    like: File = ""
    """An image whose grid the output takes, instead of --spacing."""
    profile: Literal["gauss", "box", "none"] = "gauss"
    """Shape of the slice profile; none takes thick slices for thin ones, which costs sharpness."""
    thickness: Annotated[tuple[float, ...], tyro.conf.arg(metavar="MM ...", help_behavior_hint=QUIET)] = ()
    """Slice thickness in mm, one for all or one for each stack; default: the header's, else the slice distance."""
    motion: bool = False
    """The subject moved between slices: every slice gets a pose of its own; `medfields superres --motion --help` tells all, cohorts too."""


@dataclass(frozen=True)
class Options(TaskOptions, Asked):
    """Thick slices in, one sharp isotropic volume out."""


def superres(words: list[str]) -> int | None:
    """Run the command; `words` are what follows its name."""
    if moves(words):
        from .motion import motion

        return motion([w for w in words if w != "--motion"])
    options, method = parse(words)
    paths, contrasts = _inputs(options)
    outputs = Outputs.of(options.output, options.run)
    from ..cases import Stacks
    from ..io import check_image_path, check_writable
    from ..solve import Run, Terminal
    from .work import require_memory, spare, use_threads

    use_threads(options.threads)
    start = time.monotonic()
    case = Stacks.read(
        paths, spacing=options.spacing, like=options.like or None, profile=options.profile, thickness=options.thickness, contrasts=contrasts
    )
    require_memory(
        16 * len(case.contrasts) * case.grid.size,
        f"an output of {' x '.join(map(str, case.grid.shape))} voxels",
        "choose a larger --spacing",
    )
    images = outputs.volumes(case.contrasts)
    spare((*images, outputs.field), (*paths, options.like))
    for path in images:
        check_image_path(path)
    check_writable(outputs.field)
    with Run(
        outputs.run,
        seed=options.seed,
        device=options.device,
        seconds=options.seconds,
        listeners=[Terminal()],
        config=resolved(options, method),
        data=case.fingerprint(),
    ) as run:
        result = method.solve(case, run)
        volume = task.as_volume(result, case.grid)
        field = task.as_field(result, volume)
        about = task.about(options, method, run, profile=options.profile, inputs=_origins(case))
        field.grid, field.about = case.grid, {**field.about, **about}
        _write(outputs, case, volume, field)
        summary = run.finish(
            stacks=[str(Path(p).resolve()) for p in paths], outputs=[str(p.resolve()) for p in images]
        )
    from ..report import superres_page

    page = superres_page(case, volume, outputs.run)
    rows = [(str(path), task.size_of(case.grid)) for path in images]
    query = f"any spacing: medfields query {outputs.field} --spacing 0.5 -o fine.nii.gz"
    rows += [(str(outputs.field), query), (str(page), "open it in a browser")]
    task.summarise(rows, plugins.find(options.method).name, summary["notes"], time.monotonic() - start)
    return None


def moves(words: list[str]) -> bool:
    """Whether slices moved on their own: the flag says so, or a configuration of such a run is given."""
    path = peek(words, "--config")
    return "--motion" in words or (bool(path) and read_config(path).get("task") == "motion")


def parse(words: list[str]) -> tuple[Options, Method]:
    """Options and method from the words: defaults, then the configuration file, then flags."""
    return task.parse(words, TASK, Options, instead=("spacing", "like"))


def _inputs(options: Options) -> tuple[list[str], list[str]]:
    """Paths, and the contrast of each, if contrasts are named."""
    if not options.stacks and not options.contrast:
        raise InputError("there is nothing to work on", "medfields superres axial.nii.gz sagittal.nii.gz -o iso.nii.gz")
    if not options.contrast:
        return list(options.stacks), []
    if options.stacks:
        raise InputError(f"'{options.stacks[0]}' has no contrast, the others have", "give all stacks as --contrast name=file")
    pairs = [word.partition("=") for word in options.contrast]
    for name, sign, path in pairs:
        if not (sign and path and re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name)):
            raise InputError(f"'{name}{sign}{path}' is not a contrast and a file", "for instance --contrast t1=a.nii.gz t2=b.nii.gz")
    return [path for _, _, path in pairs], [name for name, _, _ in pairs]


def resolved(options: Options, method: Method) -> dict[str, Any]:
    """Everything the result depends on, as plain values: giving it to --config does the same again."""
    contrast = [f"{name}={absolute(path)}" for name, _, path in (c.partition("=") for c in options.contrast)]
    stacks = [absolute(path) for path in options.stacks]
    table = task.resolved(TASK, options, method, stacks=stacks, contrast=contrast, like=absolute(options.like))
    return {k: v for k, v in table.items() if k != "motion"}


def _origins(case: Stacks) -> list[dict[str, Any]]:
    return [{"name": s.name, "contrast": s.contrast, "thickness_mm": s.thickness, "sha256": s.volume.about.get("sha256", "")}
            for s in case.stacks]


def _write(outputs: Outputs, case: Stacks, volume: Volume, field: Field) -> None:
    from ..io import write_field, write_volume
    from ..space import Volume

    for channel, path in enumerate(outputs.volumes(case.contrasts)):
        write_volume(Volume(volume.data[channel], volume.grid, volume.unit, about={"thickness_mm": float(volume.grid.spacing[2])}), path)
    write_field(field, outputs.field)
