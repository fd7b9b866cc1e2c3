"""motion, which is superres --motion: stacks in which every slice moved on its own in, one volume and the poses of all slices out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from tyro.conf import Positional

from .. import plugins
from ..errors import MedfieldsError, OutputError
from . import task
from .task import QUIET, File, Outputs, TaskOptions, absolute

if TYPE_CHECKING:
    from ..cases import Slices
    from ..fields import Field
    from ..report.run_folder import RunFolder
    from ..solve import Method
    from ..solve.motion import Found
    from ..space import Grid, Volume

TASK = "motion"
ASIDE = ("slices", "preview", "uncertainty", "bids", "jobs", "slurm")  # what changes no volume: not part of the resolved configuration
UNLIKE = 0.5  # a stack whose slices are no more alike the subject than this, as told by their median, does not belong to it
LOST = 0.5  # share of slices that may be left out


class NotAligned(MedfieldsError):
    """The slices could not be brought together: a volume made of them would look like a subject and be none."""

    exit_code = 11


@dataclass(frozen=True)
class Asked:
    """What is measured and what is wanted."""

    stacks: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="STACK ...", help_behavior_hint=QUIET)] = ()
    """Two or more stacks of one subject, best in three directions; or one folder of slices, each a NIfTI file whose affine is its pose."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(required)")] = ""
    """The volume to write (.nii.gz, .nii, .nrrd, .mha), or a folder name ending in "/" for a DICOM series; with --bids the folder of results."""
    masks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MASK ...", help_behavior_hint=QUIET)] = ()
    """What moved as one, for each stack or for all; default: BIDS masks beside the stacks or in derivatives/, else everything."""
    spacing: Annotated[float | None, tyro.conf.arg(metavar="MM", help_behavior_hint=QUIET)] = None
    """mm of the isotropic output voxels; default: the finest in-plane voxel size."""
    like: File = ""
    """An image whose grid the output takes, instead of --spacing."""
    profile: Literal["gauss", "box", "none"] = "gauss"
    """Shape of the slice profile; none takes thick slices for thin ones, which costs sharpness."""
    thickness: Annotated[tuple[float, ...], tyro.conf.arg(metavar="MM ...", help_behavior_hint=QUIET)] = ()
    """Slice thickness in mm, one for all or one for each stack; default: the header's, else the slice distance."""
    slices: Annotated[str, tyro.conf.arg(metavar="FOLDER", help_behavior_hint=QUIET)] = ""
    """Where the slices go, each with its pose in its header; default: beside the output, ending in "_slices"."""
    preview: bool = False
    """Write coarse volumes beside the output, ending in "_preview.nii.gz", as soon as there is one; better ones take its place."""
    uncertainty: bool = True
    """Also tell one standard deviation of every voxel, beside the output, ending in "_uncertainty.nii.gz"."""
    bids: Annotated[str, tyro.conf.arg(metavar="FOLDER", help_behavior_hint=QUIET)] = ""
    """Instead of stacks: a folder of BIDS names; every subject and session with two or more T2w stacks is done. The same command again goes on."""
    jobs: int = 1
    """Of --bids: how many at a time, each in a process of its own."""
    slurm: Annotated[str, tyro.conf.arg(metavar="PARTITION", help_behavior_hint=QUIET)] = ""
    """Of --bids: one job of Slurm for each, in this partition."""


@dataclass(frozen=True)
class Options(TaskOptions, Asked):
    """Stacks in which every slice moved on its own in, one sharp volume and the poses of the slices out."""


def motion(words: list[str]) -> int | None:
    """Run the command; `words` are what follows its name, without --motion."""
    options, method = parse(words)
    if options.bids:
        from .motion_cohort import cohort

        return cohort(options, method)
    outputs = Outputs.of(options.output, options.run, "brain.nii.gz")
    from ..io import write_volume
    from ..solve import Run, Terminal
    from ..solve.plane_doubt import uncertainty
    from ..solve.settle import told
    from .motion_input import inputs_of
    from .work import require_memory, use_threads

    use_threads(options.threads)
    begun = time.monotonic()
    given = inputs_of(options)
    case = given.case
    require_memory(64 * case.grid.size, f"a volume of {' x '.join(map(str, case.grid.shape))} voxels", "choose a larger --spacing")
    _check(options, outputs)
    for text in given.notes:
        print(f"medfields: note: {text}", file=sys.stderr)
    with Run(outputs.run, seed=options.seed, device=options.device, seconds=options.seconds, listeners=[Terminal()],
             config=resolved(options, method), data=case.fingerprint(), shown=_shown(options, outputs, case.grid)) as run:
        result = method.solve(case, run)
        found = run.notes["motion"]
        _refuse(case, found)
        volume = _measured(case, told(found), task.as_volume(result, case.grid))
        doubt = uncertainty(case, told(found), run) if options.uncertainty else None
        whole = task.as_field(result, volume)
        whole.grid, whole.about = case.grid, {**whole.about, **task.about(options, method, run, profile=options.profile)}
        _write(options, outputs, case, found, volume, whole)
        path = outputs.volumes()[0]
        if doubt is not None:
            write_volume(doubt, _beside(outputs, "uncertainty"))
        written = [path] if doubt is None else [path, _beside(outputs, "uncertainty")]
        summary = run.finish(outputs=[absolute(str(p)) for p in written], read=given.notes)
    from ..report.motion import motion_page

    page = motion_page(case, volume, outputs.run, found, doubt=doubt, notes=given.notes)
    query = f"any spacing: medfields query {outputs.field} --spacing 0.5 -o fine.nii.gz"
    rows = [(str(path), task.size_of(case.grid)), (str(outputs.field), query),
            (f"{_folder(options, outputs)}/", "the slices, each with its pose in its header, and slices.csv"),
            *([(str(_beside(outputs, "uncertainty")), "one standard deviation")] if doubt is not None else []), (str(page), "open it in a browser")]
    task.summarise(rows, plugins.find(options.method).name, summary["notes"], time.monotonic() - begun)
    print("\n".join(said(case, found)))
    return None


def parse(words: list[str]) -> tuple[Options, Method]:
    """Options and method from the words: defaults, then the configuration file, then flags."""
    return task.parse(words, TASK, Options, instead=("spacing", "like"))


def resolved(options: Options, method: Method) -> dict[str, Any]:
    """Everything the result depends on, as plain values: giving it to --config does the same again."""
    files = {name: [absolute(p) for p in getattr(options, name)] for name in ("stacks", "masks")}
    return {k: v for k, v in task.resolved(TASK, options, method, **files, like=absolute(options.like)).items() if k not in ASIDE}


def again(folder: Path, facts: RunFolder) -> Path:
    """The report of a finished run once more, from the files it read and wrote."""
    from ..io import read_volume
    from ..report.motion import motion_page
    from .motion_input import inputs_of

    options, _ = parse(["--config", str(folder / "config.toml")])
    given = inputs_of(options)
    first, *rest = facts.summary["outputs"]
    doubt = read_volume(rest[0]) if rest else None
    return motion_page(given.case, read_volume(first), folder, facts.summary["notes"]["motion"], doubt=doubt, notes=given.notes)


def said(case: Slices, found: dict[str, Any]) -> list[str]:
    """One line for each stack: how far its slices moved, how alike they are, how many were left out."""
    poses, alike, worth = (np.array(found[name]) for name in ("poses", "likeness", "worth"))
    lines = []
    for n, name in enumerate(case.names):
        own = case.stack == n
        turn, shift = np.degrees(np.linalg.norm(poses[own, :3], axis=1)), np.linalg.norm(poses[own, 3:], axis=1)
        lines.append(f"{name}: {own.sum()} slices, moved by {np.median(turn):.1f} degrees and {np.median(shift):.1f} mm (median), "
                     f"correlation with the volume {np.median(alike[own]):.3f}, {int((worth[own] == 0).sum())} left out")
    return lines


def _refuse(case: Slices, found: dict[str, Any]) -> None:
    """A registration that failed is said to have failed."""
    alike, worth = np.array(found["likeness"]), np.array(found["worth"])
    hint = "are the stacks of one subject, the masks right, and the thickness? `medfields assess` of them may tell"
    for n, name in enumerate(case.names):
        median = float(np.median(alike[case.stack == n]))
        if median < UNLIKE:
            raise NotAligned(f"{name} could not be laid on the others: the median correlation of its slices with the volume is {median:.2f}", hint)
    if (lost := float((worth == 0).mean())) > LOST:
        raise NotAligned(f"{100 * lost:.0f} % of the slices are unlike the volume (correlation below {UNLIKE:g})", hint)


def _beside(outputs: Outputs, what: str) -> Path:
    return outputs.folder / f"{outputs.stem}_{what}.nii.gz"


def _shown(options: Options, outputs: Outputs, grid: Grid) -> Callable[[str, Volume], None] | None:
    """Writes what there is on the way, on the grid of the result."""
    if not options.preview:
        return None
    from ..io import write_volume

    path = _beside(outputs, "preview")

    def show(name: str, volume: Volume) -> None:
        write_volume(volume.on(grid), path)
        print(f"medfields: {path} shows the subject after '{name}'", file=sys.stderr)

    return show


def _measured(case: Slices, found: Found, volume: Volume) -> Volume:
    """The result where slices looked, in their masks, and dark beyond, where methods guess."""
    import torch

    seen = case.reached(found.poses, found.worth).to(volume.data.device)
    return volume.with_data(torch.where(seen, volume.data, min(0.0, case.level()[0])))


def _folder(options: Options, outputs: Outputs) -> Path:
    return Path(options.slices) if options.slices else outputs.folder / f"{outputs.stem}_slices"


def _check(options: Options, outputs: Outputs) -> None:
    """Before minutes of computing: nothing that was read is overwritten, and everything can be written."""
    from ..io import check_image_path, check_writable
    from .work import spare

    images, folder = outputs.volumes(), _folder(options, outputs)
    asked = [_beside(outputs, name) for name in ("uncertainty", "preview") if getattr(options, name)]
    spare((*images, outputs.field, *asked), (*options.stacks, *options.masks, options.like))
    if any(Path(p).resolve() == folder.resolve() for p in options.stacks):
        raise OutputError(f"{folder} is read by this command and would be overwritten", "choose another folder with --slices")
    for path in images:
        check_image_path(path)
    check_writable(outputs.field)


def _write(options: Options, outputs: Outputs, case: Slices, found: dict[str, Any], volume: Volume, whole: Field) -> None:
    """The volume, the field, and the slices where they were found to lie."""
    from ..io import write_field, write_volume
    from ..io.slices import write_slices
    from ..solve.settle import told
    from ..space import Volume

    write_volume(Volume(volume.data, volume.grid, volume.unit, about={"thickness_mm": float(volume.grid.spacing[2])}), outputs.volumes()[0])
    write_field(whole, outputs.field)
    placed = case.moved(told(found).poses).slices
    names = ("turn_x_deg", "turn_y_deg", "turn_z_deg", "shift_x_mm", "shift_y_mm", "shift_z_mm")
    rows = []
    for n, s in enumerate(placed):
        pose = np.array(found["poses"][n]) * ([180 / np.pi] * 3 + [1.0] * 3)
        rows.append({"stack": s.stack, "order": s.order, "thickness_mm": f"{s.thickness:g}",
                     **{name: f"{v:.4f}" for name, v in zip(names, pose, strict=True)},
                     **{name: f"{found[name][n]:.4f}" for name in ("gain", "worth", "likeness")}})
    masks = [Volume(s.mask.float()[:, :, None], s.image.grid) for s in placed]
    write_slices(_folder(options, outputs), [s.image for s in placed], [s.thickness for s in placed], masks, rows)
