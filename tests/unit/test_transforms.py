"""Warps in the formats of ITK and ANTs: SimpleITK sends points and images through them as we do."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

from io_samples import FLIP, oblique, rotation
from medfields.errors import FileError, GeometryError, InputError, MedfieldsError, OutputError
from medfields.fields import Affine, BSpline, Field, composed, displacement, from_lattice
from medfields.io import write_volume
from medfields.io.itk_parts import Part, write_parts
from medfields.io.transforms import read_affine, read_displacement, read_transform, write_affine, write_composite, write_displacement
from medfields.solve.carry import carried_image
from medfields.space import Box, Grid, Volume

sitk = pytest.importorskip("SimpleITK")
LPS = np.array([-1.0, -1.0, 1.0])
GRID = oblique((12, 11, 9), (1.5, 2.0, 3.0))
FLIPPED = Grid((12, 11, 9), GRID.affine @ np.diag([-1.0, 1, -1, 1]))
UPRIGHT = Grid.from_spacing((12, 11, 9), (1.5, 2.0, 3.0), (-31.25, 12.5, 80.0))


def smooth(grid: Grid = GRID, size: float = 3.0) -> Field:
    """A cubic B-spline warp of some mm over a grid."""
    warp = displacement(BSpline.on(grid.with_spacing(7.0), 3), grid.box())
    torch.manual_seed(0)
    with torch.no_grad():
        warp.net.coefficients.copy_(size * torch.randn_like(warp.net.coefficients) / float(warp.radius[0]))
    warp.grid = grid
    return warp


def skew() -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation((0.2, 0.1, -0.3)) * (1.1, 0.9, 1.05)
    matrix[:3, 3] = 4.0, -3.0, 2.0
    return matrix


def inside(grid: Grid = GRID, n: int = 60) -> np.ndarray:
    """[N, 3] mm, within the lattice."""
    top = np.array(grid.shape) - 1.0
    return grid.world(np.random.default_rng(1).uniform(0.02, 0.98, (n, 3)) * top)


def by_itk(transform: object, x: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint((p * LPS).tolist()) for p in x]) * LPS


def by_us(warp: Field, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return x + warp(torch.tensor(x, dtype=torch.float32)).numpy()


def itk_image(volume: Volume) -> object:
    """The image, placed without our writers."""
    image = sitk.GetImageFromArray(volume.data[0].numpy().transpose(2, 1, 0).copy())
    lps = FLIP @ volume.grid.affine
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(volume.grid.spacing.tolist())
    image.SetDirection((lps[:3, :3] / volume.grid.spacing).ravel().tolist())
    return image


def blobs(grid: Grid) -> Volume:
    """A smooth image, 0 to some hundred."""
    x, rng = grid.points().numpy().astype(float), np.random.default_rng(2)
    centres = grid.world(rng.uniform(0, 1, (20, 3)) * np.array(grid.shape))
    return Volume(sum(100 * np.exp(-((x - c) ** 2).sum(-1) / 50) for c in centres), grid)


def refused(kind: type[MedfieldsError], words: str, path: Path, read: object = read_transform) -> None:
    with pytest.raises(kind, match=words) as caught:
        read(path)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


# displacement images


@pytest.mark.parametrize("grid", [GRID, FLIPPED, UPRIGHT])
@pytest.mark.parametrize("name", ["u.nii.gz", "u.nii", "u.mha", "u.nrrd"])
def test_displacement_image_is_itks(tmp_path: Path, grid: Grid, name: str) -> None:
    """SimpleITK sends the voxel centres where the warp does, and the file comes back as it went."""
    warp = smooth(grid)
    write_displacement(warp, grid, tmp_path / name)
    image = sitk.ReadImage(str(tmp_path / name), sitk.sitkVectorFloat64)
    assert image.GetSize() == grid.shape and image.GetNumberOfComponentsPerPixel() == 3
    index = np.array([[0, 0, 0], [3, 5, 2], [10, 1, 7]])
    there = by_us(warp, grid.world(index))
    for i, y in zip(index, there, strict=True):
        x = np.array(image.TransformIndexToPhysicalPoint([int(v) for v in i]))
        np.testing.assert_allclose((x + image[tuple(int(v) for v in i)]) * LPS, y, atol=2e-4)
    back = read_displacement(tmp_path / name)
    assert back.grid is not None and back.grid.same_as(grid, 1e-3) and back.unit == "mm"
    np.testing.assert_allclose(by_us(back, grid.world(index)), there, atol=2e-4)
    x = inside(grid)
    np.testing.assert_allclose(by_us(back, x), by_itk(sitk.DisplacementFieldTransform(image), x), atol=1e-3)


def test_nifti_dvf_counts_in_ras(tmp_path: Path) -> None:
    """Intent 1006: the file's own numbers are u in RAS mm; ITK 5.4 reads it as we do."""
    warp = smooth()
    write_displacement(warp, GRID, tmp_path / "u.nii.gz", "nifti")
    image = nibabel.load(tmp_path / "u.nii.gz")
    assert image.shape == (12, 11, 9, 1, 3) and int(image.header["intent_code"]) == 1006
    np.testing.assert_allclose(image.affine, GRID.affine, atol=1e-5)
    u = by_us(warp, GRID.world(np.array([[4, 3, 2]]))) - GRID.world(np.array([[4, 3, 2]]))
    np.testing.assert_allclose(image.get_fdata()[4, 3, 2, 0], u[0], atol=1e-4)
    np.testing.assert_allclose(np.array(sitk.ReadImage(str(tmp_path / "u.nii.gz"))[4, 3, 2]) * LPS, u[0], atol=1e-4)
    np.testing.assert_allclose(by_us(read_displacement(tmp_path / "u.nii.gz"), inside()), by_us(from_lattice_of(warp), inside()), atol=1e-3)
    flat = nibabel.Nifti1Image(image.get_fdata()[:, :, :, 0].astype(np.float32), image.affine)  # I, J, K, 3
    flat.header.set_intent(1006)
    nibabel.save(flat, tmp_path / "four.nii.gz")
    np.testing.assert_allclose(by_us(read_displacement(tmp_path / "four.nii.gz"), inside()), by_us(from_lattice_of(warp), inside()), atol=1e-3)


def from_lattice_of(warp: Field) -> Field:
    return from_lattice(warp.on(GRID).volume())


def test_displacement_images_that_are_none(tmp_path: Path) -> None:
    write_volume(blobs(GRID), tmp_path / "scan.nii.gz")
    refused(InputError, "not of displacements", tmp_path / "scan.nii.gz")
    write_volume(blobs(GRID), tmp_path / "scan.mha")
    refused(InputError, "holds 1 value in each voxel", tmp_path / "scan.mha")
    data = np.zeros((5, 4, 3, 1, 3), np.float32)

    def save(values: np.ndarray, intent: object) -> Path:
        image = nibabel.Nifti1Image(values, np.diag([2.0, 2, 2, 1]))
        image.header.set_intent(intent)
        nibabel.save(image, tmp_path / "u.nii")
        return tmp_path / "u.nii"

    refused(InputError, "does not say what its vectors are", save(data, 0))
    refused(InputError, "holds 2 values", save(data[..., :2], 1007))
    nan = data.copy()
    nan[2, 1, 1, 0, 0] = np.nan
    refused(InputError, "not numbers", save(nan, 1007))
    path = save(data, 1007)
    path.write_bytes(path.read_bytes()[:-40])
    refused(FileError, "cut off", path)
    refused(FileError, "no file", tmp_path / "gone.nii.gz", read_displacement)
    with pytest.raises(OutputError, match=r"does not end in '\.mha'"):
        write_displacement(smooth(), GRID, tmp_path / "u.mha", "nifti")
    with pytest.raises(InputError, match="grid of its own"):
        write_displacement(displacement(BSpline.on(GRID), GRID.box()), None, tmp_path / "u.nii.gz")


# affine maps


@pytest.mark.parametrize("name", ["a.txt", "a.tfm", "a.mat", "a.h5"])
def test_affine_both_ways(tmp_path: Path, name: str) -> None:
    write_affine(skew(), tmp_path / name)
    np.testing.assert_allclose(read_affine(tmp_path / name), skew(), atol=1e-12)
    x = inside()
    expected = x @ skew()[:3, :3].T + skew()[:3, 3]
    np.testing.assert_allclose(by_itk(sitk.ReadTransform(str(tmp_path / name)), x), expected, atol=1e-9)
    np.testing.assert_allclose(by_us(read_transform(tmp_path / name), x), expected, atol=1e-4)
    assert read_transform(tmp_path / name, GRID.box()).box == GRID.box()


def rigid_kinds() -> list[object]:
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((FLIP @ skew() @ FLIP)[:3, :3].ravel().tolist())
    affine.SetTranslation((1.0, 2.0, 3.0))
    affine.SetCenter((10.0, -20.0, 30.0))
    euler, zyx = sitk.Euler3DTransform(), sitk.Euler3DTransform()
    for made in (euler, zyx):
        made.SetCenter((5.0, 6.0, -70.0))
        made.SetRotation(0.3, -0.2, 0.5)
        made.SetTranslation((1.0, 2.0, 3.0))
    zyx.SetComputeZYX(True)
    versor = sitk.VersorRigid3DTransform()
    versor.SetRotation((1.0, 2.0, -1.0), 0.7)
    versor.SetCenter((10.0, -20.0, 30.0))
    versor.SetTranslation((1.0, 2.0, 3.0))
    similar = sitk.Similarity3DTransform(1.3, (0.0, 0.6, 0.8), -0.4, (1.0, 2.0, 3.0), (10.0, -20.0, 30.0))
    return [affine, euler, zyx, versor, similar, sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), sitk.Transform(3, sitk.sitkIdentity)]


@pytest.mark.parametrize("transform", rigid_kinds(), ids=lambda t: t.GetName())
@pytest.mark.parametrize("name", ["a.tfm", "a.mat", "a.h5"])
def test_every_kind_that_itk_writes(tmp_path: Path, transform: object, name: str) -> None:
    sitk.WriteTransform(transform, str(tmp_path / name))
    matrix, x = read_affine(tmp_path / name), inside()
    np.testing.assert_allclose(x @ matrix[:3, :3].T + matrix[:3, 3], by_itk(transform, x), atol=1e-6)


def test_ants_affine(tmp_path: Path) -> None:
    """ANTs writes a MatrixOffsetTransformBase, here in single precision and with the other order of bytes."""
    a = np.array([1, 0.1, 0, 0, 1, 0, 0, 0, 1, 4, 5, 6], ">f4")
    parts = [("MatrixOffsetTransformBase_double_3_3", a), ("fixed", np.array([1, 2, 3], ">f4"))]
    content = b"".join(np.array([1010, len(v), 1, 0, len(n) + 1], ">u4").tobytes() + n.encode() + b"\0" + v.tobytes() for n, v in parts)
    (tmp_path / "x0GenericAffine.mat").write_bytes(content)
    np.testing.assert_allclose(read_affine(tmp_path / "x0GenericAffine.mat")[:3], [[1, 0.1, 0, -3.8], [0, 1, 0, -5], [0, 0, 1, 6]], atol=1e-6)


# composites


@pytest.mark.parametrize("grid", [GRID, FLIPPED, UPRIGHT])
@pytest.mark.parametrize("name", ["c.h5", "c.tfm", "c.txt"])
def test_composite_warps_images_as_ours(tmp_path: Path, grid: Grid, name: str) -> None:
    """SimpleITK's resampling through the file is our warped image, up to what one displacement lattice loses."""
    # the displacement is linear between its voxels, so that its lattice holds all of it
    warp = composed(from_lattice(smooth(grid).on(grid).volume()), displacement(Affine.of(skew()), grid.box()))
    write_composite(warp, grid, tmp_path / name)
    transform = sitk.ReadTransform(str(tmp_path / name))
    x = inside(grid)
    np.testing.assert_allclose(by_itk(transform, x), by_us(warp, x), atol=1e-3)
    np.testing.assert_allclose(by_us(read_transform(tmp_path / name), x), by_us(warp, x), atol=1e-3)
    assert isinstance(read_transform(tmp_path / name).spec.then, Affine)
    corners = by_us(warp, grid.points().numpy().reshape(-1, 3).astype(float))
    affine = np.diag([2.0, 2.5, 2.2, 1.0])
    affine[:3, :3] = rotation((-0.4, 0.3, 0.2)) @ affine[:3, :3]
    affine[:3, 3] = corners.mean(0) - affine[:3, :3] @ (14, 14, 14)
    moving = blobs(Grid((29, 29, 29), affine))
    theirs = sitk.Resample(itk_image(moving), itk_image(blobs(grid)), transform, sitk.sitkLinear, -50.0)
    ours = carried_image(warp, moving, grid).data[0].numpy()
    both = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    assert np.median(ours) > 1 and (both > -50).mean() > 0.95
    np.testing.assert_allclose(ours[both > -50], both[both > -50], atol=0.01)


def test_order_of_composites(tmp_path: Path) -> None:
    """ITK applies the last part first: displacement and affine map the other way round, as ITK writes and reads them."""
    affine, other = sitk.AffineTransform(3), sitk.AffineTransform(3)
    affine.SetTranslation((1.0, 0.0, 0.0))
    affine.SetMatrix([1, 0.1, 0, 0, 1, 0, 0.05, 0, 1])
    other.SetMatrix([0.95, 0, 0, 0.1, 1.1, 0, 0, 0, 1])
    write_displacement(smooth(UPRIGHT), UPRIGHT, tmp_path / "u.mha")
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "u.mha"), sitk.sitkVectorFloat64))
    for n, order in enumerate(([affine, other], [affine, field], [field, affine], [affine, field, other, field])):
        whole = sitk.CompositeTransform(order)
        sitk.WriteTransform(whole, str(tmp_path / f"{n}.h5"))
        made = read_transform(tmp_path / f"{n}.h5")
        assert (made.grid is not None) == (order[-1] is field)
        x = inside(UPRIGHT)
        steps = [x]
        for part in reversed(order):
            steps.append(by_itk(part, steps[-1]))
        within = np.all([((UPRIGHT.index(s) > 0) & (UPRIGHT.index(s) < np.array(UPRIGHT.shape) - 1)).all(-1) for s in steps[:-1]], 0)
        if n == 2:  # everything inside the lattice, so that ITK, too, moves it
            assert within.sum() > 3
        np.testing.assert_allclose(by_us(made, x)[within], by_itk(whole, x)[within], atol=2e-3)
    np.testing.assert_allclose(read_affine(tmp_path / "0.h5")[:3, :3], [[0.96, 0.11, 0], [0.1, 1.1, 0], [-0.0475, 0, 1]], atol=1e-12)


def test_bspline_of_itk_is_kept(tmp_path: Path) -> None:
    made = sitk.BSplineTransformInitializer(itk_image(blobs(GRID)), [4, 4, 4])
    made.SetParameters(np.random.default_rng(3).normal(0, 3, len(made.GetParameters())).tolist())
    sitk.WriteTransform(made, str(tmp_path / "b.h5"))
    warp = read_transform(tmp_path / "b.h5")
    assert isinstance(warp.spec, BSpline) and warp.spec.degree == 3 and warp.grid is None
    np.testing.assert_allclose(by_us(warp, inside()), by_itk(made, inside()), atol=1e-3)


def test_an_affine_warp_is_an_affine_file(tmp_path: Path) -> None:
    warp = displacement(Affine.of(skew()), Box((0, 0, 0), (10, 10, 10)))
    write_composite(warp, None, tmp_path / "a.mat")
    np.testing.assert_allclose(read_affine(tmp_path / "a.mat"), skew(), atol=1e-12)
    with pytest.raises(OutputError, match="bends"):
        write_composite(smooth(), None, tmp_path / "a.mat")
    with pytest.raises(OutputError, match="ends in"):
        write_composite(warp, None, tmp_path / "a.xfm")
    with pytest.raises(InputError, match="grid of its own"):
        write_composite(displacement(BSpline.on(GRID), GRID.box()), None, tmp_path / "c.h5")


def test_old_spelling_of_itk(tmp_path: Path) -> None:
    write_affine(skew(), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        for name in ("Parameters", "FixedParameters"):
            file["TransformGroup/0"].move(f"Transform{name}", f"Tranform{name}")
    np.testing.assert_allclose(read_affine(tmp_path / "a.h5"), skew(), atol=1e-12)


# files that cannot be meant


def test_damage(tmp_path: Path) -> None:
    write_composite(smooth(), GRID, tmp_path / "c.h5")
    refused(InputError, "not only affine", tmp_path / "c.h5", read_affine)
    for name, keep in (("c.h5", -2000), ("c.h5", 600)):
        (tmp_path / f"cut-{name}").write_bytes((tmp_path / name).read_bytes()[:keep])
        refused(FileError, "cannot read", tmp_path / f"cut-{name}")
    write_affine(skew(), tmp_path / "a.mat")
    content = (tmp_path / "a.mat").read_bytes()
    for n in (len(content) - 3, len(content) - 24, 100, 60):
        (tmp_path / "cut.mat").write_bytes(content[:n])
        refused(FileError, "cut off", tmp_path / "cut.mat")
    (tmp_path / "cut.mat").write_bytes(content[:4] + b"\xff\xff\xff\x7f" + content[8:])  # promises 2^31 rows
    refused(FileError, "cut off", tmp_path / "cut.mat")
    write_composite(smooth(), GRID, tmp_path / "c.txt")
    text = (tmp_path / "c.txt").read_text()
    for words, said in ((text[:9000], "the file|impossible lattice"), (text.replace("12.0 11.0", "12.0 1e9"), "impossible lattice"),
                        (text[:60], "unknown type"), (text.split("Transform:")[0], "names no transform"),
                        (text.replace("Parameters: ", "Parameters: one "), "cannot read")):
        (tmp_path / "cut.txt").write_text(words)
        refused(FileError, said, tmp_path / "cut.txt")
    (tmp_path / "x.txt").write_text("1 0 0 0")
    refused(FileError, "holds no transform", tmp_path / "x.txt")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["projections"] = np.zeros(3)
    refused(FileError, "without transforms", tmp_path / "other.h5")


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "flat.tfm"))
    refused(InputError, "2 dimensions", tmp_path / "flat.tfm")
    sitk.WriteTransform(sitk.ScaleTransform(3, (1, 2, 3)), str(tmp_path / "scale.tfm"))
    refused(InputError, "ScaleTransform, which is not read", tmp_path / "scale.tfm")
    write_parts([Part("AffineTransform", np.full(12, np.nan), np.zeros(3))], tmp_path / "nan.h5")
    refused(InputError, "NaN", tmp_path / "nan.h5")
    write_parts([Part("AffineTransform", np.zeros(12), np.zeros(3))], tmp_path / "flat.mat")
    refused(GeometryError, "flattens", tmp_path / "flat.mat")
    write_parts([Part("AffineTransform", np.eye(3, 4).ravel(), np.zeros(3))] * 2, tmp_path / "two.tfm")
    refused(InputError, "how they follow", tmp_path / "two.tfm")
    write_parts([Part("AffineTransform", np.zeros(6), np.zeros(3))], tmp_path / "six.tfm")
    refused(FileError, "12 parameters", tmp_path / "six.tfm")
    write_parts([Part("DisplacementFieldTransform", np.zeros(3), np.array([1, 1, 1, 0, 0, 0, 1, 1, 1, *np.zeros(9)]))], tmp_path / "null.h5")
    refused(GeometryError, "singular", tmp_path / "null.h5")
