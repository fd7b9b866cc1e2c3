"""assess: how good stacks are before anything is rebuilt of them, and which to use as the first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from tyro.conf import Positional

from ..errors import InputError

if TYPE_CHECKING:
    from ..cases import Stack
    from ..solve.quality import Quality
    from ..space import Volume

DIRECTIONS = ("sagittal", "coronal", "axial")  # across the axes of the world


def assess(
    stacks: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="STACK ...", help_behavior_hint="")] = (),
    masks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MASK ...", help_behavior_hint="")] = (),
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="")] = "",
    thickness: Annotated[tuple[float, ...], tyro.conf.arg(metavar="MM ...", help_behavior_hint="")] = (),
) -> None:
    """Tell the quality of stacks whose slices moved, best first.

    ncc: mean correlation of neighbouring slices in the mask; motion lowers it, and so do thicker slices. rank: the share of singular values that
    hold 99 % of the energy of the stack's slices; motion raises it (Kainz et al. 2015). outlying: slices, counted from 0, that are far less like
    both neighbours than is usual in their stack. Both figures compare stacks of one subject and one protocol; they are no absolute scale.

    Args:
        stacks: images of one subject.
        masks: what moved as one, for each stack or for all; default: the BIDS masks beside the stacks, else everything.
        output: a .csv file for the table, with more columns.
        thickness: mm, one for all or one for each stack; default: the header's, else the slice distance.
    """
    from .motion_input import masks_of, stacks_of
    from .tables import aligned, check_table, write_table

    if not stacks:
        raise InputError("there is nothing to assess", "medfields assess a.nii.gz b.nii.gz c.nii.gz")
    check_table(output, [*stacks, *masks])
    from ..cases import Slices
    from ..solve.quality import first, qualities

    paths, notes = [Path(p) for p in stacks], list[str]()
    read = stacks_of(paths, thickness)
    given = masks_of(masks, paths, read, notes)
    for text in notes:
        print(f"medfields: note: {text}", file=sys.stderr)
    found = qualities(Slices.of(read, given))
    order = first(found)
    rows = [{"stack": read[n].name, "place": place, **_row(read[n], given[n], found[n])} for place, n in enumerate(order, 1)]
    shown = ("stack", "place", "slices", "thickness_mm", "pixel_mm", "direction", "tilt_deg", "mask_ml", "ncc", "rank", "outlying")
    print(aligned([{name: row[name] or "-" for name in shown} for row in rows]))
    print(f"best first: use {read[order[0]].name} as the first")
    if output:
        write_table(rows, Path(output))
        print(output)


def _row(stack: Stack, mask: Volume | None, found: Quality) -> dict[str, object]:
    """What the table says of one stack."""
    grid, normal = stack.volume.grid, stack.normal
    near = int(np.abs(normal).argmax())
    voxels = grid.size if mask is None else int((mask.on(grid).data > 0.5).sum())
    pixel = [grid.spacing[d] for d in range(3) if d != stack.axis]
    return {
        "slices": grid.shape[stack.axis],
        "slices_in_mask": found.slices,
        "thickness_mm": f"{stack.thickness:.3g}",
        "distance_mm": f"{abs(normal @ grid.affine[:3, stack.axis]):.4g}",
        "pixel_mm": " x ".join(f"{mm:.3g}" for mm in pixel),
        "direction": DIRECTIONS[near],
        "tilt_deg": f"{np.degrees(np.arccos(min(1.0, abs(normal[near])))):.0f}",
        "mask_ml": f"{voxels * abs(np.linalg.det(grid.affine[:3, :3])) / 1000:.1f}",
        "ncc": f"{found.alike:.3f}",
        "rank": f"{found.rank:.2f}",
        "outlying": " ".join(map(str, found.outlying)),
    }
