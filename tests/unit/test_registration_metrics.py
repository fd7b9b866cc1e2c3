"""Numbers of registration: translations, quadratic warps, boxes and tubes whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from io_samples import rotation
from medfields.errors import InputError
from medfields.evaluate.registration import (
    dice,
    folds,
    hd95,
    inverse_consistency,
    regularity,
    sd_log_jacobian,
    summary,
    tre,
    tre_snapped,
    vesselness,
    vesselness_overlap,
)
from medfields.fields import BSpline, Field, LinearBasis
from medfields.fields.warp import Affine, Composed, InPlane, composed, displacement, from_lattice, jacobian
from medfields.solve.determinants import Determinants
from medfields.space import Box, Grid, Volume

A, B, C, D = 0.1, 0.3, 0.25, 0.2
GRID = Grid.from_spacing((10, 6, 5), 2.0, (-9.0, -5.0, -4.0))
ALL = torch.ones(GRID.shape, dtype=torch.bool)
X = np.arange(-9.5, 10)  # of the lattice twice as dense
POINTS = np.random.default_rng(0).uniform(-4, 4, (50, 3))


def quadratic(kind: str = "spline") -> Field:
    """u = (A x^2 + D y, B x, C z), as a cubic B-spline, whose coefficients of x^2 are x^2 - h^2 / 3; det grad phi is known."""
    h, lattice = 1.5, Grid.from_spacing((30, 28, 26), 1.5, (-21.0, -20.0, -19.0))
    if kind == "turned":
        affine = np.eye(4)
        affine[:3, :3] = rotation((0.4, -0.3, 0.2)) * h
        affine[:3, 3] = affine[:3, :3] @ [-17, -17, -17]
        lattice = Grid((35, 35, 35), affine)
    x, y, z = lattice.points().double().unbind(-1)
    box = Box((-12, -12, -12), (12, 12, 12))
    warp = displacement(BSpline.on(lattice, 3), box)
    with torch.no_grad():  # a polynomial of second degree, less h^2 / 6 times its Laplacian: the same however the lattice is turned
        u = torch.stack([A * (x**2 - h**2 / 3) + D * y, B * x, C * z])
        warp.net.coefficients.copy_(u / float(warp.radius[0]))
    if kind != "composed":
        return warp
    made = Field(Composed(warp.spec, Affine()), box, 3, scale=float(box.radius[0]), unit="mm")
    made.net.first.load_state_dict(warp.net.state_dict())
    return made


def known(x: np.ndarray) -> np.ndarray:
    return ((1 + 2 * A * x) - B * D) * (1 + C)


# ---- landmarks


def test_a_translation_is_the_error() -> None:
    shift = torch.tensor([0.3, -0.4, 1.2])
    errors = tre(lambda x: shift.expand_as(x), POINTS, POINTS)
    np.testing.assert_allclose(errors, 1.3, atol=1e-6)
    np.testing.assert_allclose(tre(lambda x: shift.expand_as(x), POINTS, POINTS + shift.numpy()), 0, atol=1e-6)
    far = POINTS + 1400.0  # scanner tables lie far out: float32 alone would lose a tenth of a micrometre here, and more in the sum
    np.testing.assert_allclose(tre(lambda x: 0 * x, far, far), 0, atol=1e-12)
    field = displacement(Affine((1, 0, 0, 2, 0, 1, 0, 0, 0, 0, 1, 0)), GRID.box())
    np.testing.assert_allclose(tre(field, POINTS, POINTS), 2.0, atol=1e-5)


def test_snapping_rounds_the_prediction_to_voxels_of_the_moving_image() -> None:
    grid = Grid.from_spacing((20, 20, 10), (1.0, 1.0, 2.5), (0.5, 0.5, -3.0))
    points = grid.world(np.array([[3, 4, 5], [10, 2, 1]]))
    for u, sub, snapped in (((0.3, 0, 0), 0.3, 0.0), ((0.7, 0, 0), 0.7, 1.0), ((0, 0, 1.2), 1.2, 0.0), ((0, 0, 1.3), 1.3, 2.5)):
        def warp(x: torch.Tensor, u: tuple[float, ...] = u) -> torch.Tensor:
            return torch.tensor(u).expand_as(x)
        np.testing.assert_allclose(tre(warp, points, points), sub, atol=1e-6)
        np.testing.assert_allclose(tre_snapped(warp, points, points, grid), snapped, atol=1e-6)


def test_summary() -> None:
    assert summary(np.arange(101.0)) == {"mean": 50.0, "median": 50.0, "p95": 95.0, "max": 100.0, "count": 101.0}
    with pytest.raises(InputError, match="no landmarks"):
        summary(np.empty(0))


def test_inverse_consistency() -> None:
    m = np.eye(4)
    m[:3] = [[1.1, 0.1, 0, 3], [0, 0.9, 0.2, -1], [0, 0, 1, 2]]
    there, back = (displacement(Affine.of(a), Box((-20,) * 3, (20,) * 3)) for a in (m, np.linalg.inv(m)))
    assert inverse_consistency(there, back, POINTS) < 1e-5
    assert inverse_consistency(lambda x: 0 * x + 1, lambda x: 0 * x - 0.4, POINTS) == pytest.approx(0.6 * 3**0.5)


# ---- regularity


def test_determinant_of_an_affine_map() -> None:
    made = regularity(displacement(Affine((0, -2, 0, 5, 1, 0, 0, 1, 0, 0, 1.5, 0)), GRID.box()), GRID, ALL)
    assert made["least"] == pytest.approx(3.0) and made["folds"] == 0 and made["sd_log_jacobian"] == pytest.approx(0, abs=1e-3)
    mirror = displacement(Affine((-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)), GRID.box())
    assert folds(mirror, GRID, ALL) == 1.0


@pytest.mark.parametrize("kind", ["spline", "turned", "composed"])  # by small matrices, or point by point
def test_share_of_folds_of_a_quadratic_warp(kind: str) -> None:
    det = known(X)
    made = regularity(quadratic(kind), GRID, ALL)
    assert made["folds"] == pytest.approx((det <= 0).mean()) and 0.2 < made["folds"] < 0.3
    assert made["least"] == pytest.approx(det.min(), abs=1e-4)
    assert made["sd_log_jacobian"] == pytest.approx(np.log(np.maximum(det, 1e-3)).std(), abs=2e-4)
    coarse = known(np.arange(-9.0, 10, 2))
    assert folds(quadratic(kind), GRID, ALL, finer=1) == pytest.approx((coarse <= 0).mean())


def test_only_the_mask_counts() -> None:
    mask = ALL.clone()
    mask[:5] = False  # x > 0
    assert folds(quadratic(), GRID, mask) == 0
    assert sd_log_jacobian(quadratic(), GRID, mask) == pytest.approx(np.log(known(X[X > 0])).std(), abs=1e-4)
    one = torch.zeros(GRID.shape, dtype=torch.bool)
    one[2, 3, 1] = one[9, 3, 1] = True  # a mask one voxel thick in a volume: eight points for each voxel; det at -5.5 and -4.5 in the first
    assert folds(quadratic(), GRID, one) == pytest.approx((known(np.array([-5.5, -4.5, 8.5, 9.5])) <= 0).mean())
    with pytest.raises(InputError, match="empty"):
        folds(quadratic(), GRID, ~ALL)
    with pytest.raises(InputError, match="does not fit"):
        folds(quadratic(), GRID, ALL[1:])


def test_slabs_see_all_of_a_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warp given at voxels folds in one cell only; both ways find it, however the lattice is cut."""
    grid = Grid.from_spacing((24, 20, 16), (1.0, 1.5, 2.0))
    u = torch.zeros(3, *grid.shape)
    u[0, 12, 9, 7] = 3.0
    warp, mask = from_lattice(Volume(u, grid)), torch.ones(grid.shape, dtype=torch.bool)
    fast = regularity(warp, grid, mask)
    assert 0 < fast["folds"] < 0.01
    monkeypatch.setattr(LinearBasis, "bases", lambda *_: None)
    assert regularity(warp, grid, mask) == pytest.approx(fast, abs=1e-4)


def test_determinants_on_a_lattice_are_those_at_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a spline that an affine map follows, by products of matrices, and by slopes at points."""
    grid = Grid.from_spacing((9, 7, 6), (2.0, 1.5, 1.0), (-8.0, -5.0, -2.0))
    warp = displacement(BSpline.on(Grid.from_spacing((8, 7, 6), 4.0, (-14.0, -12.0, -10.0)), 3), grid.box())
    with torch.no_grad():
        warp.net.coefficients.copy_(0.1 * torch.randn(3, 8, 7, 6, generator=torch.Generator().manual_seed(0)))  # type: ignore[operator]
    then = displacement(Affine.of(np.array([[1.1, 0.2, 0, 3], [0, 0.9, 0, 0], [0, 0.1, 1.3, -2], [0, 0, 0, 1]])), grid.box())
    whole = composed(warp, then)
    found = Determinants(whole, grid)
    assert found.spline is not None
    fast = torch.cat([found.at(*slab) for slab in found.slabs()])
    asked = torch.linalg.det(jacobian(whole, grid.points().reshape(-1, 3))).detach()
    assert torch.allclose(fast, asked, atol=1e-4) and float(asked.std()) > 0.05
    some = torch.rand(grid.shape, generator=torch.Generator().manual_seed(1)) > 0.6
    for case in ("matrices", "points"):
        assert torch.allclose(Determinants(whole, grid).at(2, 5, some[2:5]), asked.reshape(grid.shape)[2:5][some[2:5]], atol=1e-4), case
        monkeypatch.setattr(LinearBasis, "bases", lambda *_: None)


def test_slices_keep_one_point_across() -> None:
    grid = Grid.from_spacing((10, 8, 1), 2.0, (-9.0, -7.0, 0.0))
    made = quadratic()
    flat = displacement(InPlane(made.spec, 2), made.box)
    flat.net.inner.load_state_dict(made.net.state_dict())
    assert folds(flat, grid, torch.ones(grid.shape, dtype=torch.bool)) == pytest.approx((known(X) <= 0).mean())


# ---- labels and vessels


def box(start: tuple[int, int, int], shape: tuple[int, int, int] = (40, 40, 40), side: int = 10) -> np.ndarray:
    made = np.zeros(shape, bool)
    made[tuple(slice(s, s + side) for s in start)] = True
    return made


def test_dice_of_boxes() -> None:
    a, b = box((10, 10, 10)).astype(np.int16), box((13, 10, 10)).astype(np.int16)
    a[0, 0, :4], b[0, 0, 2:8] = 5, 5  # 4 and 6 voxels, 2 shared
    a[5, 5, 5] = 7
    assert dice(a, b) == {1: pytest.approx(0.7), 5: pytest.approx(0.4), 7: 0.0}
    asked = dice(a, b, [5, 6, 99])
    assert asked[5] == pytest.approx(0.4) and np.isnan(asked[6]) and np.isnan(asked[99])
    assert dice(a, a, [1]) == {1: 1.0}
    with pytest.raises(InputError, match="resample"):
        dice(a, b[1:])
    with pytest.raises(InputError, match="negative"):
        dice(a - 1, b)


def test_hd95_of_boxes() -> None:
    a, spacing = box((10, 10, 10)), np.array([2.0, 1.0, 1.0])
    assert hd95(a, a, spacing) == 0
    assert hd95(a, box((13, 10, 10)), spacing) == pytest.approx(6.0)  # a fifth of the border lies on the face that moved
    assert hd95(a, box((10, 10, 14)), spacing) == pytest.approx(4.0)
    one, two = np.zeros((30, 3, 3), bool), np.zeros((30, 3, 3), bool)
    one[4, 1, 1] = two[4, 1, 1] = two[14, 1, 1] = True
    assert hd95(one, two, np.ones(3)) == pytest.approx(9.5) == hd95(two, one, np.ones(3))  # the larger of 0 and 9.5; pooled it were 9
    filled = a.copy()
    filled[13:17, 13:17, 13:17] = False  # a hole has a border
    assert hd95(filled, a, np.ones(3)) == pytest.approx(2.0)  # 4 x 4 on each side, 2 steps from the outer border
    flat = box((10, 10, 0))[:, :, :1]
    hole = flat.copy()
    hole[14:16, 14:16] = False
    assert hd95(flat, hole, np.ones(3)) == pytest.approx(3.0)  # in the plane: its border is 3 steps from the outer one; across all is border
    with pytest.raises(InputError, match="empty"):
        hd95(a, ~a & False, spacing)
    with pytest.raises(InputError, match="resample"):
        hd95(a, a[1:], spacing)


def tubes() -> tuple[np.ndarray, np.ndarray]:
    """Bright rods along all axes in a dark, slightly noisy ball, and the ball."""
    x = np.stack(np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij"), -1) - 19.5
    rng, image = np.random.default_rng(0), np.zeros((40, 40, 40))
    for axis in range(3):
        for centre in rng.uniform(-9, 9, (2, 2)):
            image += np.exp(-((np.delete(x, axis, -1) - centre) ** 2).sum(-1) / (2 * 1.2**2))
    return 800 * image - 850 + rng.normal(0, 5, image.shape), np.linalg.norm(x, axis=-1) < 15


def test_vessels_overlap_where_images_are_aligned() -> None:
    image, mask = tubes()
    values = [vesselness_overlap(image, np.roll(image, k, 0), mask) for k in (0, 1, 3)]
    assert values[0] == 1.0 > values[1] > values[2] > 0.1
    assert vesselness_overlap(image, 0.5 * image + 100, mask) > 0.99  # contrast and offset do not matter
    with pytest.raises(InputError, match="bright ridges"):
        vesselness_overlap(image, np.zeros_like(image), mask)
    with pytest.raises(InputError, match="empty"):
        vesselness_overlap(image, image, ~mask & False)


def test_vesselness_knows_tubes_from_plates_and_blobs() -> None:
    x = np.stack(np.meshgrid(*[np.arange(25.0)] * 3, indexing="ij"), -1) - 12
    everywhere = np.ones((25,) * 3, bool)

    def at_centre(flat: int) -> float:
        image = np.exp(-(x[..., : 3 - flat] ** 2).sum(-1) / (2 * 2.0**2))
        return float(vesselness(image, everywhere).reshape(image.shape)[12, 12, 12])

    blob, tube, plate = (at_centre(flat) for flat in range(3))
    assert tube > 0.6 and blob < 0.2 and plate < 0.05
    dark = vesselness(-np.exp(-(x[..., :2] ** 2).sum(-1) / 8), everywhere).reshape((25,) * 3)
    assert dark[12, 12, 12] == 0


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_vesselness_agrees_with_scikit_image(scale: float) -> None:
    """Of one scale: of several, theirs keeps the constant c of the first."""
    filters = pytest.importorskip("skimage.filters")
    image, mask = tubes()
    theirs, ours = filters.frangi(image, sigmas=(scale,), black_ridges=False)[mask], vesselness(image, mask, (scale,))
    top = [np.argsort(v)[-int(0.05 * len(v)):] for v in (theirs, ours)]
    assert len(np.intersect1d(*top)) > 0.98 * len(top[0]) and np.corrcoef(theirs, ours)[0, 1] > 0.999
