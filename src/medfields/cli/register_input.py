"""What `register` reads before a method runs: the images, their masks, a pre-alignment; and what there is to say of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Float

from ..cases import Pair
from ..errors import FileError, GeometryError, InputError, UnknownName
from ..fields import Affine, Field, composed, displacement
from ..io import check_finite, check_not_constant, read_volume
from ..io.landmarks import Pairs, read_landmarks, read_pairs
from ..io.picture import read_image
from ..io.transforms import read_affine
from ..losses import mutual_information, ncc
from ..solve import Method
from ..solve.prealign import KINDS, start_of
from ..space import Grid, Volume
from .work import require_memory

if TYPE_CHECKING:
    from .register import Options

AIR = -500.0  # HU: lungs and air are below, everything else above
RING, DARK = 3, 0.3  # voxels around a lung mask, and the share of air in them that is noted
UNLIKE = 0.35  # by how much mutual information may say more than a correlation does
NOTHING = 0.15  # the correlation that mutual information speaks of, below which images share nothing
LEAST_OVERLAP = 0.25  # of the smaller image's box
SCALE = 2.5  # ratio of the sizes of two images of one kind of body that is doubted
TRANSFORMS = (".txt", ".tfm", ".mat", ".h5")
FAINT, SHELL = 0.1, 0.15  # of an image's brightness, what it shows; the share of that where the other is empty, above which a mask is asked for
MEASURED = 40_000  # voxels that are compared before the methods do
Matrix = Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Inputs:
    """A pair, how its pre-alignment was found, what is only there to score the result, and what there is to say."""

    case: Pair
    start: str
    landmarks: Pairs | None = None
    labels: tuple[Volume, Volume] | None = None
    notes: list[str] = field(default_factory=list)


def inputs_of(options: Options, method: Method) -> Inputs:
    """Everything that the options name, read and checked.

    Raises:
        InputError: for what cannot be meant; its kinds say which: files, places, names.
        OutOfMemory: for images that this machine cannot hold while it compares them.
    """
    notes: list[str] = []
    fixed, moving = (_image(path, notes) for path in (options.fixed, options.moving))
    require_memory(64 * fixed.grid.size + 16 * moving.grid.size, f"registration of {_size(fixed.grid)} and {_size(moving.grid)} voxels",
                   "give images with larger voxels; a warp found on them serves the fine ones too (medfields apply --like)")
    if fixed.about.get("sha256") == moving.about.get("sha256"):
        notes.append("the fixed and the moving image are the same file")
    mask, moving_mask = _mask(options.mask, "mask", fixed, notes), _mask(options.moving_mask, "moving mask", moving, notes)
    notes += _scales(fixed, moving)
    first = None if not options.first else _first(options.first)
    start, how = _start(options, (fixed, mask), (moving, moving_mask), first, notes)
    if first is not None:
        first = composed(first, displacement(Affine.of(np.linalg.inv(start)), first.box))
    line = read_landmarks(options.centreline, fixed.grid) if options.centreline else None
    name = f"{Path(options.fixed).name} < {Path(options.moving).name}"
    case = Pair(fixed, moving, mask, moving_mask, start, first, line, options.tube_radius or 0.0, name)
    notes += _strangers(case, method) + _shells(case) + _idle(options, method)
    notes += _lungs(fixed, mask, "mask") + _lungs(moving, moving_mask, "moving mask")
    return Inputs(case, how, _landmarks(options, case, notes), _labels(options), notes)


def _image(path: str, notes: list[str]) -> Volume:
    image = read_image(path)
    check_finite(image, path)
    check_not_constant(image, path)
    if said := image.about.get("geometry"):
        notes.append(f"{Path(path).name}: {said}")
    return image


def _mask(path: str, what: str, image: Volume, notes: list[str]) -> Volume | None:
    """A mask on the grid of its image; one that lies on another is resampled."""
    if not path:
        return None
    found = read_image(path)
    check_finite(found, path)
    if float(found.data.min()) < 0:
        raise InputError(f"the {what} {path} holds values down to {float(found.data.min()):g}: it is an image", "a mask is 1 where it counts, else 0")
    inside = found.with_data((found.data > 0.5).float())
    if not inside.data.any():
        raise InputError(f"the {what} {path} is empty: no voxel is above 0.5", "a mask is 1 where the images are to be alike, else 0")
    if found.grid.same_as(image.grid):
        return inside
    made = inside.on(image.grid)
    made = made.with_data((made.data > 0.5).float())
    if not made.data.any():
        raise GeometryError(f"the {what} {path} holds nothing inside its image", "was it drawn on another image, or in another frame?")
    notes.append(f"the {what} lies on another grid than its image ({_size(found.grid)} voxels) and was resampled to it")
    return made


def _scales(fixed: Volume, moving: Volume) -> list[str]:
    """Whether one image is so much larger than the other that its voxel size is in doubt."""
    a, b = (np.sort((v.grid.spacing * v.grid.shape)[:2 if fixed.grid.is_2d else 3]) for v in (fixed, moving))
    ratio = float(np.median(b / a))
    if 1 / SCALE < ratio < SCALE:
        return []
    small, times = ("fixed", ratio) if ratio > 1 else ("moving", 1 / ratio)
    plain = [name for name, v in (("fixed", fixed), ("moving", moving)) if np.allclose(v.grid.spacing, 1, atol=1e-6)]
    doubt = f"; the header of the {plain[0]} image says 1 mm: does it count in voxels?" if len(plain) == 1 else ": is a header in other units?"
    return [f"the {small} image is {times:.1f} times smaller than the other{doubt}"]


def _first(path: str) -> Field:
    from .apply import read_warp

    return read_warp(path)


# ---- pre-alignment


def _start(options: Options, fixed: tuple[Volume, Volume | None], moving: tuple[Volume, Volume | None], first: Field | None,
           notes: list[str]) -> tuple[Matrix, str]:
    """The map from the fixed to the moving world, and how it was found."""
    given = options.start
    if given and given not in KINDS:
        return _from_file(given), f"from {Path(given).name}"
    overlap = _overlap(fixed[0].grid, moving[0].grid)
    if first is not None and not given:
        stated = np.array(first.about.get("start", np.eye(4)), dtype=float)
        return (stated if stated.shape == (4, 4) else np.eye(4)), "of the first warp"
    masks = fixed[1] is not None and moving[1] is not None
    if not given and not overlap and not masks:
        return np.eye(4), "header"  # the case says how far they are apart, and what to do
    if given in ("", "header") and 0 < overlap < LEAST_OVERLAP:
        notes.append(f"by their headers the images share only {100 * overlap:.0f} % of the smaller one")
    start, kind = start_of(fixed[0], moving[0], given or "affine", fixed[1], moving[1]), given or "affine"
    volume = float(np.linalg.det(start[:3, :3]))
    if not given and not 0.5 < volume < 2:
        notes.append(f"an affine pre-alignment would change volumes by {volume:.2g}, which is not believed: rigid instead (--start affine wants it)")
        start, kind = start_of(fixed[0], moving[0], "rigid", fixed[1], moving[1]), "rigid"
    if not given:
        notes.append(f"pre-alignment: {kind}, {_moves(start, fixed[0].grid)}; --start header leaves the images where they are")
    return start, kind


def _from_file(path: str) -> Matrix:
    if not Path(path).suffix.lower().endswith(TRANSFORMS) and not Path(path).exists():
        raise UnknownName("start", path, KINDS)
    matrix = read_affine(path)
    if np.linalg.det(matrix[:3, :3]) <= 0:
        raise GeometryError(f"{path} mirrors the world, which no registration can mean", "is it the transform of these images?")
    return matrix


def _moves(start: Matrix, grid: Grid) -> str:
    """What a pre-alignment does, in words."""
    shift = np.linalg.norm(start[:3, :3] @ grid.centre + start[:3, 3] - grid.centre)
    u, _, v = np.linalg.svd(start[:3, :3])
    turn = np.degrees(np.arccos(np.clip((np.trace(u @ v) - 1) / 2, -1, 1)))
    return f"moves the centre by {shift:.3g} mm, turns by {turn:.2g} degrees, volumes x {np.linalg.det(start[:3, :3]):.3g}"


def _overlap(a: Grid, b: Grid) -> float:
    """The box both share, as a part of the smaller one's."""
    both = a.box().overlap(b.box())
    return 0.0 if both is None else float(both.sides.prod() / min(a.box().sides.prod(), b.box().sides.prod()))


# ---- doubts


def likeness(case: Pair) -> tuple[float, float]:
    """The correlation of the images as started, and the one their mutual information speaks of, sqrt(1 - exp(-2 MI)), which is the same for
    images that are Gaussian together (Linfoot, Inf. Control 1957) and sees relations of any form."""
    x = case.points()
    x = x[:: max(1, len(x) // MEASURED)]
    there = Volume(case.aligned.data, case.aligned.grid, fill=float("nan"))(x)[:, 0]
    seen = torch.isfinite(there)
    if seen.sum() < 1000:
        return 0.0, 0.0
    a, b = (v.clamp(*torch.quantile(v, torch.tensor([0.005, 0.995])).tolist()) for v in (case.fixed(x)[seen, 0], there[seen]))
    # a histogram of n samples and 14 x 14 used bins sees (14 - 1)^2 / 2n of information in nothing
    information = max(0.0, float(mutual_information(a, b, 16)) - 13**2 / (2 * len(a)))
    return float(ncc(a, b)), float(np.sqrt(1 - np.exp(-2 * information)))


def _strangers(case: Pair, method: Method) -> list[str]:
    linear, any_form = likeness(case)
    if any_form < NOTHING and linear < NOTHING:
        return [f"the images have next to nothing in common where they lie (correlation {linear:.2f}): do they show the same part of the body?"]
    measure = str(method.config().get("similarity", "ncc")).lower()
    if any_form - linear < UNLIKE or any(word in measure for word in ("mi", "mind")):
        return []
    return [f"the intensities are related (as closely as a correlation of {any_form:.2f}) but not alike (correlation {linear:.2f}): two modalities? "
            "Correlation misleads then: choose mutual information or MIND, see --help of the method for its --similarity"]


def _shells(case: Pair) -> list[str]:
    """Much of what one image shows lies where the other is exactly empty: a whole head and a brain without its skull, say."""
    if case.mask is not None:
        return []
    x = case.points()
    x = x[:: max(1, len(x) // MEASURED)]
    values = [Volume(image.data, image.grid, fill=float("nan"))(x)[:, 0] for image in (case.fixed, case.aligned)]
    seen = torch.isfinite(values[1])
    empty, shown = [], []
    for image, found in zip((case.fixed, case.aligned), values, strict=True):
        dark, bright = float(image.data.min()), float(found[seen].quantile(0.98)) if seen.any() else 1.0
        empty.append(found[seen] <= dark + 1e-3 * (bright - dark))
        shown.append(found[seen] > dark + FAINT * (bright - dark))
    for a, b, which in ((0, 1, ("moving", "fixed")), (1, 0, ("fixed", "moving"))):
        share = float((empty[a] & shown[b]).sum() / shown[b].sum().clamp_min(1))
        if share > SHELL:
            return [f"{100 * share:.0f} % of what the {which[0]} image shows lies where the {which[1]} one is empty (a head, and a brain without its "
                    "skull?): it would be drawn onto the border of what both show; give a --mask of that"]
    return []


def _lungs(image: Volume, mask: Volume | None, what: str) -> list[str]:
    """A lung mask with much air just outside: it misses a part of the lung, or the image was cut out by it."""
    if mask is None or float(image.data[mask.data > 0.5].median()) > AIR:
        return []
    inside = mask.data[0].numpy() > 0.5
    near = scipy.ndimage.binary_dilation(inside, iterations=RING) & ~inside
    air = float((image.data[0].numpy()[near] < AIR).mean()) if near.any() else 0.0
    return [f"{100 * air:.0f} % of what lies just outside the {what} is air: either it misses a part of the lung, or the image was cut out by it and "
            "the lung's border cannot guide"] if air > DARK else []


def _idle(options: Options, method: Method) -> list[str]:
    """A note for each thing that was given and that the method has no use for."""
    able = {"first": "dnvf", "centreline": "geometry-informed"}
    return [f"'{options.method}' makes no use of --{part}; --method {other} does" for part, other in able.items()
            if getattr(options, part) and part not in type(method).uses]


# ---- what scores the result


def _landmarks(options: Options, case: Pair, notes: list[str]) -> Pairs | None:
    if not options.landmarks:
        return None
    if len(options.landmarks) != 2:
        raise InputError("--landmarks takes two files", "those of the fixed and of the moving image")
    pairs = read_pairs(*options.landmarks, case.fixed.grid, case.moving.grid)
    if not pairs.inside.all():
        notes.append(f"{int((~pairs.inside).sum())} of the {len(pairs.inside)} landmark pairs lie outside the images and are left out")
    return pairs


def _labels(options: Options) -> tuple[Volume, Volume] | None:
    if not options.labels:
        return None
    if len(options.labels) != 2:
        raise InputError("--labels takes two files", "those of the fixed and of the moving image")
    made = []
    for path in options.labels:
        volume = read_volume(path)
        check_finite(volume, path)
        if (volume.data != volume.data.round()).any() or float(volume.data.min()) < 0:
            raise FileError(f"{path} holds other values than labels", "labels are 0 for none, else 1, 2, 3, ...")
        made.append(volume)
    return made[0], made[1]


def _size(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))
