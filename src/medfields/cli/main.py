"""medfields COMMAND ...: finds the command, runs it, and turns expected errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import MedfieldsError, OutOfMemory, UnknownName, says_memory

# command -> (module, function, help). A task's function takes the words of the command line, because its flags depend on the
# method among them; every other function states its flags in its signature.
TASKS = {
    "superres": ("superres", "superres", "thick slices in, one sharp isotropic volume out"),
    "motion": ("motion", "motion", "the same of a subject that moved between slices: superres --motion"),
    "ct": ("ct", "ct", "X-ray projections in, a slice or a volume out"),
    "register": ("register", "register", "two images in, the deformation between them out"),
}
COMMANDS = {
    "apply": ("apply", "apply", "carry an image, points, a mesh or a dose by a warp"),
    "query": ("query", "query", "read a .field at another spacing, on another image's grid, or at points"),
    "assess": ("assess", "assess", "how good stacks of a subject that moved are, before anything is rebuilt"),
    "segment-mask": ("segment_mask", "segment_mask", "masks for stacks: what is not air, or a known mask carried to the others"),
    "n4": ("n4", "n4", "images without the slow change of brightness that coils cause"),
    "slices": ("slices", "slices", "slices simulated from a volume or a field, beside those that were measured"),
    "list": ("inspect", "list_methods", "the methods, with one line each"),
    "show": ("inspect", "show", "the card of a method: paper, needs, deviations, hyper-parameters"),
    "cite": ("inspect", "cite", "what to cite for a method or a finished run"),
    "doctor": ("doctor", "doctor", "what this machine offers: versions, threads, kernels, precision, extras"),
    "report": ("report", "report", "write the report of a run folder again"),
    "simulate": ("simulate", "simulate", "make test data from an image: CT projections from a CT"),
    "bench": ("bench", "bench", "run the methods of a task on real data, beside the classical ones"),
    "new": ("new", "new", "write a short method file to start from"),
    "check": ("check", "check", "run the contract tests on a method file"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code of the process.

    Expected errors (`MedfieldsError`) end in `medfields: error: ...` and `hint: ...` on stderr. Anything else is a bug
    and keeps its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        return _run(words)
    except MedfieldsError as error:
        if debug:
            raise
        return _complain(error)
    except (MemoryError, RuntimeError) as error:
        if debug or not says_memory(error):
            raise
        return _complain(OutOfMemory("this needs more memory than there is", "a larger --spacing or smaller inputs need less; so may --device cpu"))
    except KeyboardInterrupt:
        print("\nmedfields: interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `medfields list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"medfields {__version__}")
        return 0
    name, *rest = words
    if name in TASKS:
        module, function, _ = TASKS[name]
        code = getattr(import_module(f".{module}", __package__), function)(rest)
    elif name in COMMANDS:
        from .parser import bind

        module, function, _ = COMMANDS[name]
        code = bind(getattr(import_module(f".{module}", __package__), function), rest, f"medfields {name}")()
    else:
        raise UnknownName("command", name, [*TASKS, *COMMANDS])
    return code or 0


def _usage() -> str:
    def table(commands: dict[str, tuple[str, str, str]]) -> str:
        return "\n".join(f"  {name:<12} {text}" for name, (_, _, text) in commands.items())

    return f"""medfields {__version__}: medical measurements as continuous functions of world millimetres

usage: medfields COMMAND [--help] ...

tasks
{table(TASKS)}

tools
{table(COMMANDS)}

examples
  medfields superres axial.nii.gz sagittal.nii.gz -o iso.nii.gz --spacing 0.8
  medfields ct projections.h5 -o volume.nii.gz --check
  medfields register fixed.nii.gz moving.nii.gz -o warped.nii.gz
  medfields query iso.field --spacing 0.5 -o fine.nii.gz

`--debug` with any command shows the traceback of an error. Intended use: research."""


def _complain(error: MedfieldsError) -> int:
    print(f"medfields: error: {_one_line(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {_one_line(error.hint)}", file=sys.stderr)
    return error.exit_code


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
