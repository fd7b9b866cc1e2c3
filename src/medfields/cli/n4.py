"""n4: images without the slow change of brightness that coils cause."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from ..errors import InputError, OutputError

if TYPE_CHECKING:
    from ..space import Volume


def n4(
    images: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE ...", help_behavior_hint="")] = (),
    *,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE_OR_FOLDER")],
    mask: Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = "",
    shrink: Annotated[int, tyro.conf.arg(metavar="N")] = 4,
    threads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None,
) -> None:
    """Divide images by their bias field, which N4 finds (Tustison et al. 2010; SimpleITK, the extra "io").

    The mean brightness in the mask stays what it was, and so does the header.

    Args:
        images: volumes or stacks of thick slices; each is corrected by itself.
        output: an image, or for several images a folder, in which they keep their names.
        mask: where the bias is looked for, on any grid; default: what lies above Otsu's threshold.
        shrink: every so many voxels in the plane are looked at; thick slices are all kept.
        threads: processor threads; default all.
    """
    from ..io import check_image_path, read_volume, write_volume
    from .work import spare, use_threads

    if not images:
        raise InputError("there is no image", "medfields n4 image.nii.gz -o corrected.nii.gz")
    if not 1 <= shrink <= 64:
        raise InputError(f"--shrink must be 1 to 64, got {shrink}")
    use_threads(threads)
    targets = targets_of(images, output)
    spare(targets, [*images, mask])
    for target in targets:
        check_image_path(target)
    inside = read_volume(mask) if mask else None
    for source, target in zip(images, targets, strict=True):
        corrected, low, high = _corrected(source, inside, shrink)
        write_volume(corrected, target, like=source)
        print(f"{target}  bias {low:.2f} to {high:.2f} in the mask")


def targets_of(images: tuple[str, ...], output: str) -> list[Path]:
    """Where each image goes.

    Raises:
        OutputError: for several images and one file, or two images of one name.
    """
    from ..io.read import image_ending

    if image_ending(output) and not Path(output).is_dir():
        if len(images) > 1:
            raise OutputError(f"{len(images)} images cannot all become {output}", "give a folder: -o corrected/")
        return [Path(output)]
    names = [Path(p).name if image_ending(p) else f"{Path(p).name}.nii.gz" for p in images]
    if len(set(names)) < len(names):
        raise OutputError("two images have the same name and would become one file", "correct them one by one")
    return [Path(output) / name for name in names]


def _corrected(source: str, mask: Volume | None, shrink: int) -> tuple[Volume, float, float]:
    """The corrected image, and the range of the bias in its mask."""
    from ..cases import Stack
    from ..io import check_finite
    from ..solve.bias import body, unbiased
    from .work import progress

    stack = Stack.read(source)
    check_finite(stack.volume, source)
    inside = body(stack.volume, stack.axis) if mask is None else mask.on(stack.volume.grid)
    with progress(f"n4 {stack.name}") as tell:
        corrected, bias = unbiased(stack.volume, inside, shrink, tell)
    of = bias.data[inside.data > 0.5]
    return corrected, float(of.min()), float(of.max())
