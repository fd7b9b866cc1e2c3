"""segment-mask: masks for stacks: what is not air, or the mask of one stack carried to the others."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from tyro.conf import Positional

from ..errors import GeometryError, InputError, OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..cases import Stack
    from ..space import Volume

BRAIN, ANY = "_desc-brain_mask", "_mask"  # what superres --motion looks for beside a stack
UNLIKE = 0.5  # a correlation below which a registration is doubted


@dataclass(frozen=True)
class Made:
    """One mask, and how it was found."""

    mask: Volume
    how: str


def segment_mask(
    stacks: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="STACK ...", help_behavior_hint="")] = (),
    *,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")],
    mask: Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = "",
    of: Annotated[str, tyro.conf.arg(metavar="STACK", help_behavior_hint="")] = "",
    margin: Annotated[float, tyro.conf.arg(metavar="MM")] = 0.0,
    threads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None,
) -> None:
    """Make a mask for each stack, on its grid, with its header.

    Without --mask: what lies above Otsu's threshold, which is a head, or a body; for the brain of a fetus draw the mask of one stack and give it.
    With --mask: that mask, carried to every stack in world millimetres, after a rigid registration of what it marks (--of says in which stack).

    Args:
        stacks: images of one subject.
        output: a folder for the masks. In the stacks' own folder `superres --motion` finds them by itself. Masks that exist are not replaced.
        mask: a mask that is known, on any grid.
        of: the stack in which it was drawn, also one of those above; without it the mask is carried as the headers say.
        margin: mm by which carried masks are wider, for slices that moved out of them.
        threads: processor threads; default all.
    """
    from ..io import check_writable, write_volume
    from .work import spare, use_threads

    paths = [Path(p) for p in stacks]
    _check(paths, mask, of, margin)
    use_threads(threads)
    targets = [Path(output) / name_of(p, BRAIN if mask else ANY) for p in paths]
    if len(set(targets)) < len(targets):
        raise OutputError("two stacks have the same name, so their masks would too", "make them one by one, in different folders")
    spare(targets, [mask, of, *stacks])
    for target in targets:
        if target.exists():
            raise OutputError(f"{target} exists: it may have been drawn by hand", "choose another folder with -o, or take the mask away")
        check_writable(target)
    for path, target, made in zip(paths, targets, _carried(paths, mask, of, margin) if mask else _bodies(paths), strict=True):
        write_volume(made.mask, target, dtype="uint8", like=path)
        grid = made.mask.grid
        ml = float((made.mask.data > 0.5).sum()) * abs(np.linalg.det(grid.affine[:3, :3])) / 1000
        print(f"{target}  {ml:.1f} ml, {made.how}")


def name_of(stack: Path, what: str) -> str:
    """The name of a stack's mask, in the stack's format; NIfTI for a DICOM folder."""
    from ..io.read import image_ending

    ending = image_ending(stack)
    return f"{stack.name[: len(stack.name) - len(ending)]}{what}{ending or '.nii.gz'}"


def _check(paths: Sequence[Path], mask: str, of: str, margin: float) -> None:
    if not paths:
        raise InputError("there is no stack", "medfields segment-mask a.nii.gz b.nii.gz -o masks")
    if of and not mask:
        raise InputError("--of says in which stack a mask was drawn, but none is given", "give --mask FILE too")
    if not 0 <= margin <= 100:
        raise GeometryError(f"--margin must be in [0, 100] mm, got {margin:g}")
    if margin and not mask:
        raise InputError("--margin widens masks that are carried", "give --mask FILE too")


def _bodies(paths: Sequence[Path]) -> list[Made]:
    """What is not air."""
    from ..cases import Stack
    from ..solve.bias import body
    from .work import progress

    made = []
    with progress("masks") as tell:
        for n, path in enumerate(paths, 1):
            stack = Stack.read(path)
            made.append(Made(body(stack.volume, stack.axis), "what lies above Otsu's threshold"))
            tell(n, len(paths))
    return made


def _carried(paths: Sequence[Path], mask: str, of: str, margin: float) -> list[Made]:
    """The known mask in every stack."""
    from ..cases import Stack
    from .motion_input import mask_of
    from .work import progress

    notes: list[str] = []
    drawn = Stack.read(of) if of else None
    known = mask_of(Path(mask), drawn or Stack.read(paths[0]), notes)
    if drawn is None:
        notes.append("the mask is carried as the headers say: if the subject moved between the stacks, --of STACK lets it be laid on each")
    for text in notes:
        print(f"medfields: note: {text}", file=sys.stderr)
    made = []
    with progress("masks") as tell:
        for n, path in enumerate(paths, 1):
            made.append(_carried_to(Stack.read(path), known, drawn, margin, bool(of) and path.resolve() == Path(of).resolve()))
            tell(n, len(paths))
    return made


def _carried_to(stack: Stack, known: Volume, drawn: Stack | None, margin: float, same: bool) -> Made:
    """The known mask in one stack; in the stack of which it is, it stays as it is."""
    from ..solve.masks import carried, laid

    if same:
        return Made(carried(known, stack.volume.grid, np.eye(4), 0.0), "as it was given")
    wider = f", {margin:g} mm wider" if margin else ""
    if drawn is None:
        return Made(carried(known, stack.volume.grid, np.eye(4), margin), f"as the headers say{wider}")
    found = laid(drawn.volume, known, stack.volume)
    if found.after < UNLIKE:
        print(f"medfields: note: {stack.name} is little like {drawn.name} where its mask was laid (correlation {found.after:.2f}): look at it",
              file=sys.stderr)
    middle = known.grid.points()[known.data[0] > 0.5].double().numpy().mean(0)
    turn, shift = found.turn_and_shift(middle)
    return Made(carried(known, stack.volume.grid, found.map, margin),
                f"laid by {turn:.1f} degrees and {shift:.1f} mm, correlation {found.before:.2f} -> {found.after:.2f}{wider}")
