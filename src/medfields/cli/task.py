"""What every task shares: the options of any run, how they are parsed, where results go, and what is said in the end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from .. import __version__, plugins
from ..errors import InputError, UnknownName
from .config import from_table, peek, read_config
from .parser import brief_errors

if TYPE_CHECKING:
    from ..cases.attenuation import Unit
    from ..fields import Field
    from ..solve import Method, Run
    from ..space import Grid, Volume

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
DENSEST = 1.0  # 1/mm; half the voxels of any body attenuate less: bone does so only below 15 keV
QUIET = ""  # no "(default: ...)" where the default says nothing
Name = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint=QUIET)]
File = Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint=QUIET)]
Number = Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint=QUIET)]


@dataclass(frozen=True)
class TaskOptions:
    """What can be said of a run of any task; the options of a task come before these: `class Options(TaskOptions, Asked)`."""

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


Asks = TypeVar("Asks", bound=TaskOptions)

# How a result is reached, not what it is: these do not belong to the resolved configuration.
TRANSIENT = ("output", "config", "run", "threads", "device", "check")


def parse(words: list[str], task: str, options: type[Asks], instead: tuple[str, ...] = ()) -> tuple[Asks, Method]:
    """Options and method from the words: defaults, then the configuration file, then flags.

    The flags of the method are the fields of its dataclass, so the method must be known before the rest can be parsed.

    Args:
        words: what follows the name of the command.
        task: its name.
        options: a frozen dataclass of the options of the task.
        instead: options that say one thing in different ways: a flag for one removes the others from the file.
    """
    path = peek(words, "--config")
    table = read_config(path) if path else {}
    if table.pop("task", task) != task:
        raise InputError(f"{path} is not a configuration of {task}")
    table.pop("medfields", None)
    hyper = table.pop("hyper", {})
    if not isinstance(hyper, dict):
        raise InputError(f"{path}: hyper cannot be {hyper!r}", "the options of the method stand below a line that reads [hyper]")
    for way in instead:
        if peek(words, f"--{way}"):
            table = {k: v for k, v in table.items() if k == way or k not in instead}
    given = from_table(options, table, path)
    name = peek(words, "--method") or given.method or plugins.default(task)
    entry = _entry(name, task)
    if entry.task != task:
        raise InputError(f"the method '{name}' is for {entry.task}, not for {task}", f"medfields list --task {task}")
    method = plugins.load(name)
    clash = {f.name for f in dataclasses.fields(method)} & {f.name for f in dataclasses.fields(options)}
    if clash:
        raise InputError(f"the method '{name}' has hyper-parameters with names of the task: {', '.join(sorted(clash))}", "rename them")
    same = not given.method or plugins.find(given.method).path == entry.path  # the numbers of one method mean nothing to another
    default = from_table(method, hyper if same else {}, path)
    flags = dataclasses.make_dataclass(
        task.capitalize(),
        [("hyper", Annotated[method, tyro.conf.arg(name="")], dataclasses.field(default=default))],
        bases=(options,),
        frozen=True,
    )
    flags.__doc__ = f"{options.__doc__}\n\nThe options of the method '{name}' ({entry.title}) follow those of the task."
    start = flags(**{**vars(given), "method": name}, hyper=default)
    with brief_errors(f"medfields {task}"):
        chosen = tyro.cli(flags, args=words, prog=f"medfields {task}", default=start)
    return options(**{f.name: getattr(chosen, f.name) for f in dataclasses.fields(options)}), chosen.hyper


def _entry(name: str, task: str) -> plugins.Entry:
    """The method of that name; the nearest name for one that does not exist is sought among the methods of the task."""
    try:
        return plugins.find(name)
    except UnknownName as error:
        raise UnknownName("method", name, [n for n, e in plugins.entries().items() if e.task == task]) from error


@dataclass(frozen=True)
class Outputs:
    """Where things go: volume, field and run folder share one stem."""

    folder: Path
    stem: str
    ending: str  # "" for a DICOM folder
    run: Path

    @classmethod
    def of(cls, output: str, run: str = "", example: str = "iso.nii.gz") -> Outputs:
        """From what -o and --run say.

        Raises:
            InputError: without an output, or with one that does not say its format; `example` is the hint.
        """
        if not output:
            raise InputError("there is no place for the result", f"give -o {example}")
        path = Path(output)
        as_folder = output.endswith("/") or path.is_dir()
        ending = "" if as_folder else next((e for e in ENDINGS if path.name.lower().endswith(e)), None)
        if ending is None:
            hint = 'end it in .nii.gz, .nii, .nrrd or .mha, or in "/" for a DICOM series'
            raise InputError(f"'{path.name}' does not say its format", hint)
        stem = path.name[: len(path.name) - len(ending)]
        return cls(path.parent, stem, path.name[len(stem) :], Path(run) if run else path.parent / f"{stem}.run")

    @property
    def field(self) -> Path:
        return self.folder / f"{self.stem}.field"

    def volumes(self, names: tuple[str, ...] = ("",)) -> list[Path]:
        """One path for each name; without a name if there is one only."""
        if len(names) == 1:
            return [self.folder / f"{self.stem}{self.ending}"]
        return [self.folder / f"{self.stem}_{name}{self.ending}" for name in names]


def absolute(path: str) -> str:
    """A path that means the same from any folder; "" stays as it is."""
    return str(Path(path).resolve()) if path else ""


def resolved(task: str, options: TaskOptions, method: Method, **files: Any) -> dict[str, Any]:
    """Everything the result depends on, as plain values: giving it to --config does the same again. `files` are options that name
    files, with absolute paths."""
    table = {k: v for k, v in vars(options).items() if k not in TRANSIENT} | files
    if options.method.endswith(".py"):
        table["method"] = absolute(options.method)
    return {"medfields": __version__, "task": task, **table, "hyper": method.config()}


def as_volume(result: Field | Volume, grid: Grid) -> Volume:
    """A result on the grid that was asked for."""
    from ..space import Volume
    from .query import evaluate

    volume = result if isinstance(result, Volume) else evaluate(result, grid)
    return volume if volume.grid.same_as(grid) else volume.on(grid)


def as_field(result: Field | Volume, volume: Volume) -> Field:
    """The result as a field; a volume becomes the linear interpolation of its voxels."""
    from ..fields import BSpline, Field

    if isinstance(result, Field):
        return result
    import torch

    field = Field(BSpline.on(volume.grid), volume.grid.box(), volume.channels, unit=volume.unit)
    with torch.no_grad():
        field.net.coefficients.copy_(volume.data)  # type: ignore[operator]
    return field


def about(options: TaskOptions, method: Method, run: Run, **facts: Any) -> dict[str, Any]:
    """What a `.field` file says of where it comes from: file names without their folders, which may name people, and no
    times, so that the same run gives the same bytes."""
    import torch

    return {
        "method": options.method,
        "version": __version__,
        "paper": method.paper,
        "config": method.config(),
        **facts,
        "seed": options.seed,
        "torch": torch.__version__,
        "device": str(run.device),
        "intended_use": "research",
    }


def attenuation(path: str, unit: Unit | None, water: float) -> tuple[Volume, Unit]:
    """A CT image in 1/mm, and the unit it was in: `unit`, else HU if values reach below -100, else 1/mm.

    Raises:
        InputError: for values that are not finite, or that no body attenuates: HU without air are not told from 1/mm.
    """
    from ..cases.attenuation import looks_like, per_mm
    from ..io import check_finite, read_volume

    image = read_volume(path)
    check_finite(image, path)
    given = unit or looks_like(image)
    made = per_mm(image, given, water)
    inside = made.data[made.data > 0]
    if len(inside) == 0:
        raise InputError(f"{path} attenuates nowhere: no value is above that of air", "is it the right file?")
    typical = float(inside[:: max(1, len(inside) // 1_000_000)].median())
    if typical >= DENSEST:
        taken = {"HU": "HU", "mm-1": "1/mm", "cm-1": "1/cm"}[given]
        raise InputError(f"taken as {taken}, {path} would attenuate {typical:.3g}/mm where water attenuates about 0.02",
                         "1/mm is meant; HU are told by values below -100, as air has: is some air left in it?")
    return made, given


def mask(path: str) -> Volume:
    """An image that says where something is.

    Raises:
        InputError: for values below 0: an image that was given in the place of a mask.
    """
    from ..io import read_volume

    found = read_volume(path)
    if float(found.data.min()) < 0:
        raise InputError(f"the mask {path} holds values down to {float(found.data.min()):g}: it is an image", "a mask is 1 where metal is, else 0")
    return found


def size_of(grid: Grid) -> str:
    """A grid in words: how many voxels, and how large."""
    return f"{' x '.join(map(str, grid.shape))} voxels of {' x '.join(f'{s:.3g}' for s in grid.spacing)} mm"


def summarise(rows: list[tuple[str, str]], method: str, notes: dict[str, Any], seconds: float) -> None:
    """What was made, where it lies, how long it took, and the held-out errors among the notes."""
    width = max(len(path) for path, _ in rows)
    for path, text in rows:
        print(f"{path:<{width}}  {text}")
    errors = {k: v for k, v in notes.items() if "held" in k}
    noted = "".join(f", {k.replace('_', ' ')} {v:.4g}" for k, v in errors.items() if isinstance(v, (int, float)))
    print(f"{method}: {seconds:.1f} s{noted}")
