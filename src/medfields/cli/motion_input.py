"""What `superres --motion` reads before a method runs: stacks or folders of slices, their masks; and what there is to say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..cases import Slice, Slices, Stack
from ..cases.slices import LEAST
from ..errors import FileError, GeometryError, InputError
from ..io import check_finite, read_volume
from ..io.slices import holds_slices, read_slices
from ..space import Volume
from .bids import mask_beside

if TYPE_CHECKING:
    from .motion import Options

FEWEST = 3  # slices of a stack
THICK, THIN = 3.0, 0.2  # a thickness of more, or less, of the slice distance is doubted
PARALLEL = 20.0  # degrees between the slice directions of stacks below which they are parallel
SIZES = 4.0  # ratio of the volumes in two masks above which they show different things


@dataclass(frozen=True)
class Inputs:
    """The slices, and what there is to say of them."""

    case: Slices
    notes: list[str] = field(default_factory=list)


def inputs_of(options: Options) -> Inputs:
    """Everything that the options name, read and checked.

    Raises:
        InputError: for what cannot be meant; its kinds say which.
    """
    notes: list[str] = []
    paths = [Path(p) for p in options.stacks]
    if not paths:
        raise InputError("there is nothing to work on", "medfields superres a.nii.gz b.nii.gz c.nii.gz -o brain.nii.gz --motion")
    like = None if not options.like else read_volume(options.like).grid
    if any(holds_slices(p) for p in paths):
        if len(paths) > 1 or options.masks:
            raise InputError("a folder of slices comes alone, with its masks inside", "give the folder, or stacks with --masks")
        return Inputs(replace(_of_folder(paths[0], options, notes), profile=options.profile), notes)
    if len(paths) == 1:
        raise InputError("one stack cannot tell how its slices moved: no other slice crosses them",
                         "give stacks of other directions too; without motion: leave out --motion")
    stacks = stacks_of(paths, options.thickness)
    masks = masks_of(options.masks, paths, stacks, notes)
    notes += _compared(stacks, masks)
    return Inputs(Slices.of(stacks, masks, spacing=options.spacing, grid=like, profile=options.profile), notes)


def stacks_of(paths: Sequence[Path], thickness: Sequence[float] = ()) -> list[Stack]:
    """Stacks of three slices or more, each as thick as its header says, else as its slices are apart.

    Args:
        paths: image files or DICOM folders.
        thickness: mm, one for all or one for each, instead.

    Raises:
        InputError: for what cannot be a stack, or a number of thicknesses that fits no stacks.
    """
    stacks = [Stack.read(p, mm) for p, mm in zip(paths, _each(thickness, len(paths), "thicknesses"), strict=True)]
    for stack, path in zip(stacks, paths, strict=True):
        _check(stack, path)
    return stacks


def _each(values: Sequence[float], count: int, what: str) -> list[float | None]:
    if len(values) not in (0, 1, count):
        raise InputError(f"{len(values)} {what} for {count} stacks", "give one for all, or one for each")
    return [None] * count if not values else list(values) if len(values) == count else [values[0]] * count


def _check(stack: Stack, path: Path) -> None:
    """A stack of its own."""
    check_finite(stack.volume, str(path))
    count = stack.volume.grid.shape[stack.axis]
    if count < FEWEST:
        raise GeometryError(f"{path} has {count} slice{'s' * (count != 1)}", "a stack that says how it moved has three or more")
    distance = float(stack.normal @ stack.volume.grid.affine[:3, stack.axis])
    if not THIN * distance <= stack.thickness <= THICK * distance:
        raise GeometryError(f"the slices of {path} are {stack.thickness:g} mm thick and {distance:.3g} mm apart, which cannot both be true",
                            "which is it? say --thickness MM, or mend the header's spacing")


def masks_of(given: Sequence[str], paths: Sequence[Path], stacks: Sequence[Stack], notes: list[str]) -> list[Volume | None]:
    """A mask for each stack: those that are named, or are found by their BIDS names; None counts everything.

    Args:
        given: names of masks, one for all or one for each; empty looks for BIDS names.
        paths: of the stacks.
        stacks: what they hold.
        notes: gets what there is to say of the masks.

    Raises:
        InputError: for a mask that is empty, marks nothing of its stack or is no mask, or another number of them.
    """
    named: list[Path | None] = [Path(p) for p in given]
    if len(named) not in (0, 1, len(paths)):
        raise InputError(f"{len(named)} masks for {len(paths)} stacks", "give one for all, or one for each in the order of the stacks")
    if not named:
        named = [mask_beside(p) for p in paths]
        beside = [m.name for p, m in zip(paths, named, strict=True) if m and m.parent == p.parent]
        derived = [str(m) for p, m in zip(paths, named, strict=True) if m and m.parent != p.parent]
        for where, found in (("beside the stacks", beside), ("among derivatives", derived)):
            notes += [f"masks found {where}: {', '.join(found)}"] if found else []
    each = named * len(paths) if len(named) == 1 else named
    masks = [None if p is None else mask_of(p, s, notes) for p, s in zip(each, stacks, strict=True)]
    bare = [s.name for s, m in zip(stacks, masks, strict=True) if m is None]
    if bare and len(bare) < len(stacks):
        known = next(m for m in masks if m is not None)
        notes.append(f"no mask for {', '.join(bare)}: that of another stack is used, in the place where it lies")
        masks = [known if m is None else m for m in masks]
    elif bare:
        notes.append("no masks: all that the stacks show is taken to have moved as one (--masks says what did)")
    return masks


def mask_of(path: Path, stack: Stack, notes: list[str]) -> Volume:
    """The mask of a stack, on any grid; raises and notes as `masks_of`."""
    mask = read_volume(path)
    if float(mask.data.min()) < 0:
        raise InputError(f"the mask {path} holds values down to {float(mask.data.min()):g}: it is an image", "a mask is 1 where the subject is")
    if not (mask.data > 0.5).any():
        raise InputError(f"the mask {path} is empty", "draw it again, or leave it out")
    if not mask.grid.same_as(stack.volume.grid):
        notes.append(f"the mask {path.name} lies on another grid than {stack.name}: resampled")
    if not (mask.on(stack.volume.grid).data > 0.5).any():
        raise GeometryError(f"the mask {path} marks nothing of {stack.name}", "is it the mask of another stack?")
    return mask


def _compared(stacks: Sequence[Stack], masks: Sequence[Volume | None]) -> list[str]:
    """Doubts about stacks that belong to different subjects or directions."""
    notes = []
    normals = np.array([s.normal for s in stacks])
    apart = np.degrees(np.arccos(np.clip(np.abs(normals @ normals.T), 0, 1)))
    if apart.max() < PARALLEL:
        notes.append("all stacks have the same slice direction: across it nothing is seen sharply, and motion is told less surely")
    sizes = [float((m.data > 0.5).sum() * abs(np.linalg.det(m.grid.affine[:3, :3]))) / 1000 for m in masks if m is not None]
    if sizes and max(sizes) > SIZES * min(sizes):
        notes.append(f"the masks hold between {min(sizes):.0f} and {max(sizes):.0f} ml: do they show one subject?")
    return notes


def _of_folder(folder: Path, options: Options, notes: list[str]) -> Slices:
    """Slices with their poses in their headers."""
    images, masks, rows = read_slices(folder)
    given = _each(options.thickness, 1, "thicknesses")[0]
    cut = []
    for n, (image, mask, row) in enumerate(zip(images, masks, rows, strict=True)):
        inside = np.ones(image.grid.shape[:2], bool) if mask is None else mask.data[0, :, :, 0].numpy() > 0.5
        if inside.shape != image.grid.shape[:2]:
            raise GeometryError(f"the mask of slice {n} in {folder} is {inside.shape}, the slice {image.grid.shape[:2]}", "write them on one grid")
        if int(inside.sum()) < LEAST or float(row.get("worth") or 1.0) == 0.0:
            continue
        thick = float(given or row.get("thickness_mm") or image.grid.spacing[2])
        cut.append(Slice(image, thick, torch.from_numpy(inside), int(row.get("stack") or 0), int(row.get("order") or n)))
    if not cut:
        raise FileError(f"no slice in {folder} shows the subject", "are its masks empty?")
    notes.append(f"{len(cut)} of {len(images)} slices of {folder.name} are used, from where their headers put them")
    return Slices.cut(cut, spacing=options.spacing, grid=None if not options.like else read_volume(options.like).grid, names=(folder.name,))
