"""superres: thick slices in, one sharp isotropic volume out."""

from __future__ import annotations

import dataclasses
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from .. import __version__, plugins
from ..errors import InputError
from .config import from_table, peek, read_config
from .parser import brief_errors

if TYPE_CHECKING:
    from ..cases import Stacks
    from ..fields import Field
    from ..solve import Method, Run
    from ..space import Volume

TASK = "superres"
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
QUIET = ""  # no "(default: ...)" where the default says nothing
Name = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint=QUIET)]
File = Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint=QUIET)]


@dataclass(frozen=True)
class Options:
    """Thick slices in, one sharp isotropic volume out."""

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
    method: Name = ""
    """A name from `medfields list`, or the path of a method file; default: the best one for this task."""
    config: File = ""
    """A TOML file with these options and, under [hyper], those of the method; flags win over it."""
    seed: int = 0
    """Of all random numbers."""
    seconds: Annotated[float | None, tyro.conf.arg(metavar="S", help_behavior_hint=QUIET)] = None
    """Stop after about so many seconds."""
    run: Annotated[str, tyro.conf.arg(metavar="FOLDER", help_behavior_hint=QUIET)] = ""
    """The run folder; default: beside the output, ending in .run. Run the same command again to resume."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=QUIET)] = None
    """Processor threads; default: all."""
    device: str = "auto"
    """cpu, cuda, or auto."""


# How a result is reached, not what it is: these do not belong to the resolved configuration.
TRANSIENT = ("output", "config", "run", "threads", "device")


def superres(words: list[str]) -> None:
    """Run the command; `words` are what follows its name."""
    options, method = parse(words)
    paths, contrasts = _inputs(options)
    outputs = Outputs.of(options)
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
        volume = _volume(result, case)
        field = _field(result, volume)
        field.grid, field.about = case.grid, {**field.about, **_about(options, method, case, run)}
        _write(outputs, case, volume, field)
        summary = run.finish(
            stacks=[str(Path(p).resolve()) for p in paths], outputs=[str(p.resolve()) for p in images]
        )
    from ..report import superres_page

    page = superres_page(case, volume, outputs.run)
    _summarise(outputs, case, options, summary, page, time.monotonic() - start)


def parse(words: list[str]) -> tuple[Options, Method]:
    """Options and method from the words: defaults, then the configuration file, then flags.

    The flags of the method are the fields of its dataclass, so the method must be known before the rest can be parsed.
    """
    path = peek(words, "--config")
    table = read_config(path) if path else {}
    if table.pop("task", TASK) != TASK:
        raise InputError(f"{path} is not a configuration of {TASK}")
    table.pop("medfields", None)
    hyper = table.pop("hyper", {})
    if not isinstance(hyper, dict):
        raise InputError(f"{path}: hyper cannot be {hyper!r}", "the options of the method stand below a line that reads [hyper]")
    for flag, other in (("--spacing", "like"), ("--like", "spacing")):
        if peek(words, flag):
            table.pop(other, None)  # these two say the same thing in two ways, and a flag wins over the file
    given = from_table(Options, table, path)
    name = peek(words, "--method") or given.method or plugins.default(TASK)
    entry = plugins.find(name)
    if entry.task != TASK:
        raise InputError(f"the method '{name}' is for {entry.task}, not for {TASK}", f"medfields list --task {TASK}")
    method = plugins.load(name)
    clash = {f.name for f in dataclasses.fields(method)} & {f.name for f in dataclasses.fields(Options)}
    if clash:
        raise InputError(f"the method '{name}' has hyper-parameters with names of the task: {', '.join(sorted(clash))}", "rename them")
    same = not given.method or plugins.find(given.method).path == entry.path  # the numbers of one method mean nothing to another
    default = from_table(method, hyper if same else {}, path)
    flags = dataclasses.make_dataclass(
        "Superres",
        [("hyper", Annotated[method, tyro.conf.arg(name="")], dataclasses.field(default=default))],
        bases=(Options,),
        frozen=True,
    )
    flags.__doc__ = f"{Options.__doc__}\n\nThe options of the method '{name}' ({entry.title}) follow those of the task."
    start = flags(**{**vars(given), "method": name}, hyper=default)
    with brief_errors(f"medfields {TASK}"):
        chosen = tyro.cli(flags, args=words, prog=f"medfields {TASK}", default=start)
    return Options(**{f.name: getattr(chosen, f.name) for f in dataclasses.fields(Options)}), chosen.hyper


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


@dataclass(frozen=True)
class Outputs:
    """Where things go: volume, field and run folder share one stem."""

    folder: Path
    stem: str
    ending: str  # "" for a DICOM folder
    run: Path

    @classmethod
    def of(cls, options: Options) -> Outputs:
        if not options.output:
            raise InputError("there is no place for the result", "give -o iso.nii.gz")
        path = Path(options.output)
        as_folder = options.output.endswith("/") or path.is_dir()
        ending = "" if as_folder else next((e for e in ENDINGS if path.name.lower().endswith(e)), None)
        if ending is None:
            hint = 'end it in .nii.gz, .nii, .nrrd or .mha, or in "/" for a DICOM series'
            raise InputError(f"'{path.name}' does not say its format", hint)
        stem = path.name[: len(path.name) - len(ending)]
        return cls(path.parent, stem, path.name[len(stem) :], Path(options.run) if options.run else path.parent / f"{stem}.run")

    @property
    def field(self) -> Path:
        return self.folder / f"{self.stem}.field"

    def volumes(self, contrasts: tuple[str, ...]) -> list[Path]:
        """One path for each contrast; the name alone if there is one."""
        if len(contrasts) == 1:
            return [self.folder / f"{self.stem}{self.ending}"]
        return [self.folder / f"{self.stem}_{contrast}{self.ending}" for contrast in contrasts]


def resolved(options: Options, method: Method) -> dict[str, Any]:
    """Everything the result depends on, as plain values: giving it to --config does the same again."""
    table = {k: v for k, v in vars(options).items() if k not in TRANSIENT}
    if options.stacks:
        table["stacks"] = [str(Path(p).resolve()) for p in options.stacks]
    table["contrast"] = [f"{name}={Path(path).resolve()}" for name, _, path in (c.partition("=") for c in options.contrast)]
    if options.method.endswith(".py"):
        table["method"] = str(Path(options.method).resolve())
    if options.like:
        table["like"] = str(Path(options.like).resolve())
    return {"medfields": __version__, "task": TASK, **table, "hyper": method.config()}


def _volume(result: Field | Volume, case: Stacks) -> Volume:
    from ..space import Volume
    from .query import evaluate

    volume = result if isinstance(result, Volume) else evaluate(result, case.grid)
    return volume if volume.grid.same_as(case.grid) else volume.on(case.grid)


def _field(result: Field | Volume, volume: Volume) -> Field:
    """The result as a field; a volume becomes the linear interpolation of its voxels."""
    from ..fields import BSpline, Field

    if isinstance(result, Field):
        return result
    import torch

    field = Field(BSpline.on(volume.grid), volume.grid.box(), volume.channels, unit=volume.unit)
    with torch.no_grad():
        field.net.coefficients.copy_(volume.data)  # type: ignore[operator]
    return field


def _about(options: Options, method: Method, case: Stacks, run: Run) -> dict[str, Any]:
    """What a `.field` file says of where it comes from: file names without their folders, which may name people, and no
    times, so that the same run gives the same bytes."""
    import torch

    return {
        "method": options.method,
        "version": __version__,
        "paper": method.paper,
        "config": method.config(),
        "profile": options.profile,
        "inputs": [
            {"name": s.name, "contrast": s.contrast, "thickness_mm": s.thickness, "sha256": s.volume.about.get("sha256", "")}
            for s in case.stacks
        ],
        "seed": options.seed,
        "torch": torch.__version__,
        "device": str(run.device),
        "intended_use": "research",
    }


def _write(outputs: Outputs, case: Stacks, volume: Volume, field: Field) -> None:
    from ..io import write_field, write_volume
    from ..space import Volume

    for channel, path in enumerate(outputs.volumes(case.contrasts)):
        write_volume(Volume(volume.data[channel], volume.grid, volume.unit, about={"thickness_mm": float(volume.grid.spacing[2])}), path)
    write_field(field, outputs.field)


def _summarise(outputs: Outputs, case: Stacks, options: Options, summary: dict[str, Any], page: Path, seconds: float) -> None:
    """What was made, where it lies, how long it took."""
    size = f"{' x '.join(map(str, case.grid.shape))} voxels of {' x '.join(f'{s:.3g}' for s in case.grid.spacing)} mm"
    rows = [(str(path), size) for path in outputs.volumes(case.contrasts)]
    query = f"any spacing: medfields query {outputs.field} --spacing 0.5 -o fine.nii.gz"
    rows += [(str(outputs.field), query), (str(page), "open it in a browser")]
    width = max(len(path) for path, _ in rows)
    for path, text in rows:
        print(f"{path:<{width}}  {text}")
    errors = {k: v for k, v in summary["notes"].items() if "held" in k}
    noted = "".join(f", {k.replace('_', ' ')} {v:.4g}" for k, v in errors.items() if isinstance(v, (int, float)))
    print(f"{plugins.find(options.method).name}: {seconds:.1f} s{noted}")
