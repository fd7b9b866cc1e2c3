"""Warps in the formats of others: displacement images, affine maps and composite transforms of ITK and ANTs. LPS is flipped here.

ITK's transforms pull as ours do: they send a point of the fixed image into the moving one. Two things differ. ITK leaves points beyond the lattice
of a displacement where they are, ours go on as at its border; so results agree inside the lattice. And a composite of ITK applies its last part
first: phi = T1(T2(x)), so that a pre-alignment comes before the displacement in the file and after it in effect.
"""

from __future__ import annotations

import os
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from ..errors import FileError, GeometryError, InputError, OutputError
from ..fields import Affine, BSpline, Composed, Field, composed, displacement, from_lattice, on_lattice
from ..space import Box, Grid, Volume
from .itk import itk_kind, read_itk, write_itk
from .itk_parts import Part, read_parts, write_parts
from .nifti import nifti_kind
from .nifti_vectors import Vectors, read_vectors, write_vectors
from .source import LPS_TO_RAS, check_finite, existing_file, first_bytes, place

Matrix = Float[np.ndarray, "4 4"]
_SIGNS = torch.tensor([-1.0, -1.0, 1.0])
_LATTICES = ("DisplacementFieldTransform", "BSplineTransform")
_SIZES = {"IdentityTransform": 0, "TranslationTransform": 3, "AffineTransform": 12, "MatrixOffsetTransformBase": 12, "Euler3DTransform": 6,
          "VersorRigid3DTransform": 6, "Similarity3DTransform": 7}
_FAR = Box((-250.0,) * 3, (250.0,) * 3)


def write_displacement(warp: Field, grid: Grid | None, path: str | os.PathLike[str], vectors: Vectors = "itk") -> None:
    """u in mm at the voxels of a grid, the fixed image's (None: the one the warp was made on), as an image of vectors.

    * "itk": what ITK, SimpleITK and antsApplyTransforms take as a displacement field: vectors in LPS mm; .nii or .nii.gz (shape I, J, K, 1, 3,
      intent 1007), .mha, .mhd or .nrrd.
    * "nifti": what the NIfTI standard calls displacement vectors (a "DVF"): RAS mm, shape I, J, K, 1, 3, intent 1006; .nii or .nii.gz.

    Raises:
        InputError: without a grid, if the warp names none.
        OutputError: an ending that does not fit, or a file that cannot be written.
        MissingExtra: .mha, .mhd and .nrrd without SimpleITK.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz", *((".mha", ".mhd", ".nrrd") if vectors == "itk" else ()))):
        raise OutputError(f"a displacement image of the kind '{vectors}' does not end in '{path.suffix}'",
                          "use .nii.gz, or for ITK .mha, .mhd or .nrrd")
    u = on_lattice(warp, _asked(warp, grid))
    u = _flipped(u) if vectors == "itk" else u
    if name.endswith((".nii", ".nii.gz")):
        write_vectors(u, path, vectors)
    else:
        write_itk(u, path)


def read_displacement(path: str | os.PathLike[str]) -> Field:
    """The warp of an image of displacements, linear between its voxels, with `grid` the image's.

    NIfTI counts in LPS with intent 1007 (ITK, ANTs) and in RAS with intent 1006; .mha, .mhd and .nrrd count in LPS.

    Raises:
        FileError: missing, damaged, or no such image.
        GeometryError: no place in the world.
        InputError: an image of other values, of slices, with NaN, or a NIfTI intent that does not say what the vectors are.
        MissingExtra: .mha, .mhd and .nrrd without SimpleITK.
    """
    path = existing_file(path)
    head = first_bytes(path)
    if nifti_kind(head) == "single":
        u, vectors = read_vectors(path)
    elif itk_kind(head):
        u, vectors = read_itk(path, channels=True), "itk"
    else:
        raise FileError(f"{path} is no image of displacements", "known: .nii.gz, .mha, .mhd and .nrrd")
    if u.channels != 3:
        raise InputError(f"{path} holds {u.channels} value{'s' * (u.channels > 1)} in each voxel, a displacement three",
                         "is it an image, or a transform of slices? Give a .field, a transform or a displacement image")
    check_finite(u, str(path))
    made = from_lattice(_flipped(u) if vectors == "itk" else u)
    made.about = u.about
    return made


def read_affine(path: str | os.PathLike[str]) -> Matrix:
    """An affine or rigid transform of ITK or ANTs (.txt, .tfm, .mat, .h5) as a matrix, RAS mm to RAS mm; a composite of such is multiplied out.

    Raises:
        FileError: missing, damaged, or no transform.
        GeometryError: a matrix that flattens space.
        InputError: a transform that bends, is not of three dimensions, or is not finite.
    """
    path = Path(path)
    matrix = np.eye(4)
    for part in _composite(path):
        if part.kind in _LATTICES:
            raise InputError(f"{path} holds a {part.kind}, not only affine maps", "read it as a transform")
        matrix = matrix @ _linear(part, path)
    return matrix


def write_affine(matrix: Matrix, path: str | os.PathLike[str]) -> None:
    """[4, 4] RAS mm as an ITK AffineTransform (.txt, .tfm, .mat, .h5) that sends points of the fixed image into the moving one.

    Raises:
        OutputError: an unknown ending, or a file that cannot be written.
    """
    write_parts([_affine_part(matrix)], Path(path))


def read_transform(path: str | os.PathLike[str], box: Box | None = None) -> Field:
    """Any transform of ITK or ANTs, or image of displacements, as a warp; affine maps and B-splines are kept as what they are.

    Args:
        path: a file.
        box: mm, where affine maps are to live; they hold everywhere.

    Raises:
        As `read_displacement` and `read_affine`.
    """
    path = existing_file(path)
    head = first_bytes(path)
    if nifti_kind(head) == "single" or itk_kind(head):
        return read_displacement(path)
    parts = _composite(path)
    lattices = [_lattice(part, path) if part.kind in _LATTICES else None for part in parts]
    boxes = [lattice.grid.box() for lattice in lattices if lattice is not None]
    home = reduce(Box.union, boxes) if boxes else box or _FAR  # warps that are composed live in one box
    steps = [displacement(Affine.of(_linear(part, path)), home) if lattice is None else _bent(part, lattice, home)
             for part, lattice in zip(parts, lattices, strict=True)]
    made = reduce(composed, reversed(steps))  # the last is applied first
    if (first := lattices[-1]) is not None and parts[-1].kind == "DisplacementFieldTransform":
        made.grid = first.grid
    made.about = {"source": str(path), "kind": "itk transform"}
    return made


def write_composite(warp: Field, grid: Grid | None, path: str | os.PathLike[str]) -> None:
    """A warp as a transform of ITK (.h5, .txt, .tfm; affine ones also .mat), which SimpleITK and antsApplyTransforms read.

    The displacement is sampled at the voxels of `grid`, the fixed image's; None is the one the warp was made on. Affine maps that are applied last,
    as those of `Pair.whole`, stay affine maps: the file is a CompositeTransform of them and the displacement. A warp that is affine altogether is
    one AffineTransform.

    Raises:
        InputError: without a grid, if the warp bends and names none.
        OutputError: an unknown ending, a bent warp as .mat, or a file that cannot be written.
    """
    parts, own = list[Part](), warp
    while isinstance(warp.spec, Composed) and isinstance(warp.spec.then, Affine):
        parts.append(_affine_part(_matrix(warp.spec.then)))
        first = displacement(warp.spec.first, warp.box, seed=0)
        first.net.load_state_dict(warp.net.first.state_dict())  # type: ignore[union-attr]
        warp = first
    if isinstance(warp.spec, Affine):
        parts.append(_affine_part(_matrix(warp.spec)))
    else:
        parts.append(_lattice_part(on_lattice(warp, _asked(own, grid))))
    write_parts(parts if len(parts) == 1 else [Part("CompositeTransform"), *parts], Path(path))


def _asked(warp: Field, grid: Grid | None) -> Grid:
    """The grid that is given, else the warp's own."""
    if grid is None and warp.grid is None:
        raise InputError("this warp does not name a grid of its own", "give that of the fixed image: --like fixed.nii.gz")
    return grid or warp.grid  # type: ignore[return-value]


def _flipped(u: Volume) -> Volume:
    """Vectors from RAS to LPS, or back."""
    return u.with_data(u.data * _SIGNS[:, None, None, None])


def _matrix(spec: Affine) -> Matrix:
    return np.vstack([np.reshape(spec.matrix, (3, 4)), [0, 0, 0, 1]])


def _composite(path: Path) -> list[Part]:
    """The parts of a file, in ITK's order: the last is applied first."""
    first, *rest = read_parts(path)
    if first.kind == "CompositeTransform" and rest:
        return rest
    if rest:
        raise InputError(f"{path} holds {1 + len(rest)} transforms and does not say how they follow one another", "write them as one composite")
    if first.kind not in (*_LATTICES, *_SIZES):
        raise InputError(f"{path} holds a {first.kind}, which is not read", "write it as a displacement field with the tool it is of")
    return [first]


def _linear(part: Part, path: Path) -> Matrix:
    """[4, 4] RAS mm of a linear part: x -> A (x - centre) + centre + t."""
    p, kind = part.parameters, part.kind
    if kind not in _SIZES:
        raise InputError(f"{path} holds a {kind}, which is not read", "write it as a displacement field with the tool it is of")
    if p.size != _SIZES[kind] or part.fixed.size not in ((3, 4) if p.size > 3 else (0,)):
        raise FileError(f"{path}: a {kind} has {_SIZES[kind]} parameters and a centre, not {p.size} and {part.fixed.size} numbers",
                        "the file may be damaged: copy or write it again")
    a, t, centre = np.eye(3), np.zeros(3), part.fixed[:3] if p.size > 3 else np.zeros(3)
    if p.size == 3:
        t = p
    elif p.size == 12:
        a, t = p[:9].reshape(3, 3), p[9:]
    elif kind == "Euler3DTransform":
        x, y, z = (_turned(axis, angle) for axis, angle in enumerate(p[:3]))
        a, t = (z @ y @ x if part.fixed.size == 4 and part.fixed[3] else z @ x @ y), p[3:]
    elif p.size:
        a, t = _versor(p[:3]) * (p[6] if p.size == 7 else 1.0), p[3:6]
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = a, t + centre - a @ centre
    if abs(np.linalg.det(a)) < 1e-9:
        raise GeometryError(f"{path} holds an affine map that flattens space", "it cannot be meant: repair the file")
    return LPS_TO_RAS @ made @ LPS_TO_RAS


def _turned(axis: int, angle: float) -> np.ndarray:
    """[3, 3], turning about an axis."""
    made, (a, b) = np.eye(3), ((axis + 1) % 3, (axis + 2) % 3)
    made[a, a] = made[b, b] = np.cos(angle)
    made[b, a], made[a, b] = np.sin(angle), -np.sin(angle)
    return made


def _versor(v: np.ndarray) -> np.ndarray:
    """[3, 3] of the vector part of a unit quaternion."""
    x, y, z = v
    w = np.sqrt(max(0.0, 1 - v @ v))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def _affine_part(matrix: Matrix) -> Part:
    lps = LPS_TO_RAS @ np.asarray(matrix, dtype=np.float64) @ LPS_TO_RAS
    return Part("AffineTransform", np.concatenate([lps[:3, :3].ravel(), lps[:3, 3]]), np.zeros(3))


def _lattice(part: Part, path: Path) -> Volume:
    """Displacements, or B-spline coefficients of them, in RAS mm on the lattice that the fixed parameters state: sizes, origin, spacing, axes."""
    f, damaged = part.fixed, "the file may be damaged: copy or write it again"
    if f.size != 18 or not np.all((f[:3] >= 1) & (f[:3] < 1 << 14)):
        raise FileError(f"{path} states an impossible lattice of its {part.kind}", damaged)
    i, j, k = (int(n) for n in f[:3])
    if part.parameters.size != 3 * i * j * k:
        raise FileError(f"{path}: a lattice of {i}x{j}x{k} has {3 * i * j * k} numbers, the file {part.parameters.size}", damaged)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = f[9:].reshape(3, 3) * f[6:9], f[3:6]
    interleaved = part.kind == "DisplacementFieldTransform"
    p = part.parameters.astype(np.float32)
    data = p.reshape(k, j, i, 3).transpose(3, 2, 1, 0) if interleaved else p.reshape(3, k, j, i).transpose(0, 3, 2, 1)
    return _flipped(Volume(np.ascontiguousarray(data), place(path, (i, j, k), LPS_TO_RAS @ affine), "mm"))


def _lattice_part(u: Volume) -> Part:
    affine = LPS_TO_RAS @ u.grid.affine
    fixed = np.concatenate([u.grid.shape, affine[:3, 3], u.grid.spacing, (affine[:3, :3] / u.grid.spacing).ravel()])
    data = _flipped(u).data.numpy().transpose(3, 2, 1, 0)
    return Part("DisplacementFieldTransform", data.ravel().astype(np.float64), fixed)


def _bent(part: Part, u: Volume, box: Box) -> Field:
    """A lattice as a warp in a box; ITK's B-splines are ours of degree 3."""
    made = displacement(BSpline.on(u.grid, 1 if part.kind == "DisplacementFieldTransform" else 3), box)
    with torch.no_grad():
        made.net.coefficients.copy_(u.data / float(made.radius[0]))  # type: ignore[operator]
    return made
