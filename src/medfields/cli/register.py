"""register: two images in, the deformation between them out."""

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
from ..errors import InputError, MedfieldsError
from . import task
from .task import QUIET, File, Number, Outputs, TaskOptions, absolute

if TYPE_CHECKING:
    from ..cases import Pair
    from ..fields import Field
    from ..report.run_folder import RunFolder
    from ..solve import Method
    from ..space import Volume
    from .register_input import Inputs

TASK = "register"
FILES = ("fixed", "moving", "mask", "moving_mask", "first", "centreline")
SCORED = ("landmarks", "labels")
Two = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIXED MOVING", help_behavior_hint=QUIET)]
# What changes no warp: not part of the resolved configuration.
ASIDE = ("warp", "no_folds", "pairs", "jobs", "slurm", *SCORED)
MOST = 4_000_000  # voxels up to which the folds of any warp are counted twice as dense; B-splines always are


class Folded(MedfieldsError):
    """A warp that folds where --no-folds forbids it."""

    exit_code = 10


@dataclass(frozen=True)
class Asked:
    """What is to lie on what."""

    fixed: Annotated[Positional[str], tyro.conf.arg(metavar="FIXED", help_behavior_hint=QUIET)] = ""
    """The image that stays: NIfTI, NRRD, MetaImage, a DICOM folder, or a grey PNG or JPEG, whose pixels count as 1 mm."""
    moving: Annotated[Positional[str], tyro.conf.arg(metavar="MOVING", help_behavior_hint=QUIET)] = ""
    """The image that is to be laid on it."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(required)")] = ""
    """The warped moving image to write, on the grid of the fixed one; with --pairs a folder."""
    warp: File = ""
    """The displacement to write, u in mm with phi(x) = x + u(x) from the fixed to the moving image; default: beside the output, as .field."""
    mask: File = ""
    """Where the fixed image is to be matched, for instance a lung."""
    moving_mask: File = ""
    """Where the moving image counts."""
    start: Annotated[str, tyro.conf.arg(metavar="{header,centres,moments,rigid,affine}|FILE", help_behavior_hint=QUIET)] = ""
    """The pre-alignment, or an affine transform of ITK or ANTs; default: affine, by mutual information, from wherever the images are most alike."""
    first: File = ""
    """A warp from which cascaded methods start."""
    centreline: File = ""
    """Points along a tube of the fixed image, for methods that follow one: .csv with the header x,y,z in RAS+ mm."""
    tube_radius: Number = None
    """mm, of that tube."""
    landmarks: Two = ()
    """Two files of the same points; they score the result and are never used to find it."""
    labels: Two = ()
    """Two label images; they score the result by Dice and are never used to find it."""
    no_folds: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make a warp that folds an error: it is left in the run folder, and nothing else is written."""
    pairs: File = ""
    """A table of pairs, .csv with columns fixed, moving and, as wanted, name, mask, moving_mask, fixed_landmarks, moving_landmarks."""
    jobs: int = 1
    """Of --pairs: how many at a time, each in a process of its own."""
    slurm: Annotated[str, tyro.conf.arg(metavar="PARTITION", help_behavior_hint=QUIET)] = ""
    """Of --pairs: one job of Slurm for each, in this partition."""


@dataclass(frozen=True)
class Options(TaskOptions, Asked):
    """Two images in, the deformation between them out."""


def register(words: list[str]) -> int | None:
    """Run the command; `words` are what follows its name."""
    options, method = parse(words)
    if options.pairs:
        from .register_cohort import cohort

        return cohort(options, method)
    outputs = _outputs(options)
    from ..solve import Run, Terminal
    from .register_input import inputs_of
    from .work import use_threads

    use_threads(options.threads)
    begun = time.monotonic()
    given = inputs_of(options, method)
    case, notes = given.case, given.notes
    _check(options, outputs)
    for text in notes:
        print(f"medfields: note: {text}", file=sys.stderr)
    with Run(outputs.run, seed=options.seed, device=options.device, seconds=options.seconds, listeners=[Terminal()],
             config=resolved(options, method), data=case.fingerprint()) as run:
        warp = as_warp(method.solve(case, run))
        whole, found = case.whole(warp), measured(given, warp)
        whole.grid, whole.about = case.grid, task.about(options, method, run, start=case.start.tolist(), inputs=_origins(case))
        _refuse(options, outputs, whole, found)
        warped = _write(outputs, options, case, whole)
        files = {name: [absolute(path) for path in getattr(options, name)] for name in SCORED}
        summary = run.finish(outputs=[absolute(str(warped))], field=absolute(str(_warp(options, outputs))), metrics=found, start=given.start,
                             read=notes, **files)
    page = _page(given, warp, outputs.run, plugins.find(options.method).name, found)
    rows = [(str(warped), f"the moving image on the fixed grid, {task.size_of(case.grid)}"),
            (str(_warp(options, outputs)), f"carries anything: medfields apply {_warp(options, outputs)} IMAGE -o carried.nii.gz"),
            (str(page), "open it in a browser")]
    task.summarise(rows, plugins.find(options.method).name, summary["notes"], time.monotonic() - begun)
    print("\n".join(said(found)))
    return None


def parse(words: list[str]) -> tuple[Options, Method]:
    """Options and method from the words: defaults, then the configuration file, then flags."""
    return task.parse(words, TASK, Options)


def resolved(options: Options, method: Method) -> dict[str, Any]:
    """Everything the warp depends on, as plain values: giving it to --config does the same again."""
    from ..solve.prealign import KINDS

    files = {name: absolute(getattr(options, name)) for name in FILES}
    files["start"] = options.start if options.start in KINDS else absolute(options.start)
    return {k: v for k, v in task.resolved(TASK, options, method, **files).items() if k not in ASIDE and v is not None}


def again(folder: Path, facts: RunFolder) -> Path:
    """The report of a finished run once more, from the files it read and wrote."""
    import numpy as np

    from ..fields import Affine, composed, displacement
    from .register_input import inputs_of
    from .work import read_any_field

    options, method = parse(["--config", str(folder / "config.toml")])
    landmarks, labels = (tuple(facts.summary.get(name, ())) for name in SCORED)
    given = inputs_of(dataclasses.replace(options, landmarks=landmarks, labels=labels), method)
    whole = read_any_field(facts.summary["field"])
    warp = composed(whole, displacement(Affine.of(np.linalg.inv(given.case.start)), whole.box))
    return _page(given, warp, folder, facts.method, facts.summary["metrics"])


def _outputs(options: Options) -> Outputs:
    if not (options.fixed and options.moving):
        what = "is only one image" if options.fixed else "is nothing to work on"
        raise InputError(f"there {what}", "medfields register fixed.nii.gz moving.nii.gz -o warped.nii.gz")
    if options.warp and not options.warp.endswith(".field"):
        raise InputError(f"a warp is written as .field, not as {Path(options.warp).name}", "medfields apply warp.field -o warp.h5 writes others")
    return Outputs.of(options.output, options.run, "warped.nii.gz")


def _warp(options: Options, outputs: Outputs) -> Path:
    return Path(options.warp) if options.warp else outputs.field


def _check(options: Options, outputs: Outputs) -> None:
    """Before hours of computing: nothing that was read is overwritten, and everything can be written."""
    from ..io import check_image_path, check_writable
    from .work import spare

    image, warp = outputs.volumes()[0], _warp(options, outputs)
    spare((image, warp), (*(getattr(options, name) for name in FILES), *options.landmarks, *options.labels))
    check_image_path(image)
    check_writable(warp)


def as_warp(result: Field | Volume) -> Field:
    """What a method found as a displacement in the aligned world."""
    from ..fields import Field, from_lattice

    return result if isinstance(result, Field) else from_lattice(result)


def measured(given: Inputs, warp: Field) -> dict[str, float]:
    """How well the images, landmarks and labels meet, as they are, as started, and warped; and how regular the warp is.

    Folds and SDlogJ are those of `warp` inside the mask, on a lattice twice as dense as the fixed image; of a warp that is no B-spline, on its own
    voxels if they are more than `MOST`.
    """
    from ..evaluate.registration import moved, regularity, summary
    from ..fields import LinearBasis

    case = given.case
    dense = 2 if isinstance(warp.net, LinearBasis) or int(case.inside.sum()) <= MOST else 1
    found = _alike(case, warp) | regularity(warp, case.grid, case.inside, dense)
    if given.landmarks is not None:
        import numpy as np

        x, y = given.landmarks.fixed[given.landmarks.inside], given.landmarks.moving[given.landmarks.inside]
        s = case.start
        for name, at in (("tre_before", x), ("tre_started", x @ s[:3, :3].T + s[:3, 3]), ("tre", moved(case.whole(warp), x))):
            found |= {f"{name}_{k}": v for k, v in summary(np.linalg.norm(at - y, axis=1)).items()}
    return found | (_dice(case, warp, *given.labels) if given.labels else {})


def _alike(case: Pair, warp: Field) -> dict[str, float]:
    """Correlations inside the mask, where the moving image is."""
    import torch

    from ..losses import ncc
    from ..solve.carry import carried_image
    from ..space import Volume

    def blank(image: Volume) -> Volume:
        return Volume(image.data, image.grid, fill=float("nan"))

    found, target = {}, case.fixed.data[0][case.inside]
    readings = {"ncc_before": blank(case.moving).on(case.grid), "ncc_started": blank(case.aligned).on(case.grid),
                "ncc": carried_image(warp, blank(case.aligned), case.grid)}
    for name, read in readings.items():
        values = read.data[0][case.inside]
        seen = torch.isfinite(values)
        found[name] = float(ncc(target[seen].double(), values[seen].double())) if seen.sum() > 9 else 0.0
    return found


def _dice(case: Pair, warp: Field, fixed: Volume, moving: Volume) -> dict[str, float]:
    """Mean over the labels of both images."""
    import numpy as np

    from ..evaluate.registration import dice
    from ..fields import Affine, displacement
    from ..solve.carry import carried_image

    still = displacement(Affine(), warp.box)
    found, theirs = {}, fixed.data[0].numpy().astype(np.int64)
    shared = sorted(set(np.unique(theirs)) & set(np.unique(moving.data.numpy().astype(np.int64))) - {0})
    if not shared:
        raise InputError("the two label images share no label", "the same structure has the same number in both")
    for name, w in (("dice_before", still), ("dice_started", case.whole(still)), ("dice", case.whole(warp))):
        read = carried_image(w, moving, fixed.grid, "nearest").data[0].numpy().astype(np.int64)
        found[name] = float(np.nanmean(list(dice(theirs, read, [int(n) for n in shared]).values())))
    return found | {"labels": float(len(shared))}


def _refuse(options: Options, outputs: Outputs, whole: Field, found: dict[str, float]) -> None:
    """With --no-folds a folded warp is no result."""
    from ..io import write_field

    if options.no_folds and found["folds"] > 0:
        kept = outputs.run / "folded.field"
        write_field(whole, kept)
        raise Folded(f"the warp folds {100 * found['folds']:.2g} % of space, which --no-folds forbids; it was kept as {kept}",
                     "a larger weight of the method's penalty bends less")


def _write(outputs: Outputs, options: Options, case: Pair, whole: Field) -> Path:
    """The warped image, in the unit of the moving one, and the warp; what lies outside the moving image is as dark as its darkest voxel."""
    from ..io import write_field, write_volume
    from ..solve.carry import carried_image
    from ..space import Volume

    moving = Volume(case.moving.data, case.moving.grid, case.moving.unit, fill=float(case.moving.data.min()))
    warped = carried_image(whole, moving, case.grid)
    path = outputs.volumes()[0]
    write_volume(Volume(warped.data, case.grid, warped.unit, about={"thickness_mm": float(case.grid.spacing[2])}), path)
    write_field(whole, _warp(options, outputs))
    return path


def _origins(case: Pair) -> list[dict[str, Any]]:
    return [{"name": Path(v.about.get("source", "")).name, "sha256": v.about.get("sha256", "")} for v in (case.fixed, case.moving)]


def _page(given: Inputs, warp: Field, folder: Path, name: str, found: dict[str, float]) -> Path:
    from ..report.register import register_page

    pairs = given.landmarks
    ours = {"folds, %": 100 * found["folds"], "SDlogJ": found["sd_log_jacobian"]} | ({"dice": found["dice"]} if "dice" in found else {})
    return register_page(given.case, warp, folder, start=given.start, labels=given.labels, metrics={name: ours}, notes=given.notes,
                         landmarks=None if pairs is None else (pairs.fixed[pairs.inside], pairs.moving[pairs.inside]))


def said(found: dict[str, float]) -> list[str]:
    """The numbers in words."""
    lines = [f"correlation {found['ncc_before']:.3f} as they are, {found['ncc_started']:.3f} pre-aligned, {found['ncc']:.3f} warped"]
    share, least = 100 * found["folds"], found["least"]
    lines.append((f"FOLDED: {share:.2g} % of space, where the warp has no inverse" if share else f"no folds (det J at least {least:.2g})")
                 + f", SDlogJ {found['sd_log_jacobian']:.3f}")
    if "tre_mean" in found:
        lines.append(f"landmarks: {found['tre_before_mean']:.2f} mm as they are, {found['tre_started_mean']:.2f} pre-aligned, "
                     f"{found['tre_mean']:.2f} warped (median {found['tre_median']:.2f}, at most {found['tre_max']:.2f}; "
                     f"{found['tre_count']:.0f} pairs)")
    if "dice" in found:
        lines.append(f"labels: Dice {found['dice_before']:.3f} as they are, {found['dice_started']:.3f} pre-aligned, {found['dice']:.3f} warped "
                     f"(mean of {found['labels']:.0f})")
    return lines
