"""The learned denoiser, and the reconstruction that uses one."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import scipy.ndimage
import torch

from medfields.cases import Projections
from medfields.errors import InputError
from medfields.methods.pnp import PnP
from medfields.operators.projections import Projector
from medfields.solve import Run
from medfields.solve.denoiser import REACH, Denoiser, Denoising, denoised, shipped
from medfields.solve.plug_and_play import PlugAndPlay
from medfields.solve.tomography import RaySystem, total_variation
from medfields.space import Geometry, Grid


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_net():
    """A small one with random weights everywhere: what it says depends on all it sees."""
    torch.manual_seed(0)
    net = Denoiser((8, 8), 1)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    return net


def shapes(count=5, side=96):
    """[side, side, count] planes of a body with organs that change a little from plane to plane; water is 1."""
    x, y = np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2, indexing="ij")
    out = np.zeros((side, side, count))
    for k in range(count):
        out[..., k] = (x / 44) ** 2 + (y / 36) ** 2 < 1
        for cx, cy, r, value in ((-15, 3, 12, 0.3), (14, -6, 10 + k, 1.4), (4, 20 - k, 6, 1.15), (-3, -20, 3, 1.8), (20, 14, 2, 0.6)):
            out[..., k][(x - cx) ** 2 + (y - cy) ** 2 < r**2] = value
    return torch.tensor(scipy.ndimage.gaussian_filter(out, (0.6, 0.6, 0)), dtype=torch.float32)


def test_an_untaught_denoiser_changes_nothing():
    image = torch.randn(17, 22, 3, generator=rng())
    assert torch.equal(denoised(Denoiser((8, 8), 1), image, 0.1), image)


def test_the_unit_of_an_image_does_not_matter():
    """D(c x, c sigma) = c D(x, sigma), exactly for a power of two."""
    net, image = random_net(), torch.randn(24, 24, 6, generator=rng())
    assert torch.allclose(denoised(net, 8 * image, 0.8), 8 * denoised(net, image, 0.1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_lie_across_the_axis(axis):
    net, image = random_net(), torch.randn(10, 13, 9, generator=rng())
    there = denoised(net, image.movedim(axis, 2).contiguous(), 0.1)
    assert torch.allclose(denoised(net, image, 0.1, axis).movedim(axis, 2), there, atol=1e-6)


def test_a_plane_sees_two_neighbours_and_a_stack_goes_on_as_it_ends():
    net, image = random_net(), torch.randn(16, 16, 9, generator=rng())
    whole = denoised(net, image, 0.1)
    other = image.clone()
    other[..., 6] += 1
    seen = (denoised(net, other, 0.1) - whole).abs().amax((0, 1)) > 1e-3
    assert seen.tolist() == [False] * 4 + [True] * 5
    longer = torch.cat([image, image[..., -1:], image[..., -1:]], 2)
    assert torch.allclose(denoised(net, longer, 0.1)[..., :9], whole, atol=1e-6)
    assert torch.allclose(denoised(net, image[..., :1].expand(-1, -1, 5), 0.1)[..., 2:3], denoised(net, image[..., :1], 0.1), atol=1e-6)


def test_lessons_are_patches_with_noise_of_the_level_that_is_told():
    problem = Denoising(Denoiser((8, 8), 1), [torch.ones(12, 70, 64), torch.ones(1, 64, 64)], [1.0, 1.0], patches=60)
    noisy, sigma, clean = problem.batch(rng())
    assert noisy.shape == (60, 2 * REACH + 1, 64, 64) and clean.shape == (60, 64, 64)
    assert (clean.std((1, 2)) < 1e-6).all() and clean.min() >= 0.7 and clean.max() <= 1.3
    assert torch.allclose((noisy[:, REACH] - clean).std((1, 2)) / sigma, torch.ones(60), atol=0.05)
    again = (noisy[:, 1:] == noisy[:, :-1]).all(3).all(2)  # planes that repeat the one before
    kinds = {"".join("=" if same else "x" for same in row) for row in again.tolist()}
    assert kinds == {"====", "xxxx", "xx==", "==xx", "xxx=", "=xxx"}


def test_lessons_come_from_the_place_they_say():
    """Each voxel says where it is: five planes, one or two apart, of one place."""
    stack = (torch.arange(24)[:, None, None] * 100.0 + torch.zeros(24, 64, 64)).half()
    problem = Denoising(Denoiser((8, 8), 1), [stack], [1.0])
    for row in torch.rand(30, 12, generator=rng()).tolist():
        patch = problem._cut(stack, row)
        steps = (patch[1:, 0, 0] - patch[:-1, 0, 0]) / (70 + 60 * (2 * row[7] % 1))
        assert (patch == patch[:, :1, :1]).all() and torch.allclose(steps, steps[:1].expand(4), atol=1e-2)
        assert abs(float(steps[0])) == pytest.approx(round(abs(float(steps[0]))), abs=0.02) and round(abs(float(steps[0]))) in (1, 2)


def test_a_denoiser_learns_and_its_average_follows():
    problem = Denoising(random_net(), [shapes().movedim(2, 0)[2:3]], [1.0], patches=4)

    def loss():
        return float(problem.losses(problem.batch(rng(1)), 0.0)["noise"].detach())

    untaught, start = loss(), problem.net.first.weight.detach().clone()
    Run(seed=0).fit(problem, steps=60, lr=3e-3, name="learn", schedule="cosine")
    now, mean = problem.net.first.weight.detach(), problem.average.first.weight
    assert loss() < 0.5 * untaught and 0 < (mean - now).norm() < 0.5 * (start - now).norm()


def test_stacks_that_cannot_be_lessons():
    for stack in (torch.ones(12, 60, 64), torch.ones(5, 64, 64)):
        with pytest.raises(InputError, match="smaller than a patch"):
            Denoising(Denoiser((8, 8), 1), [stack], [1.0])


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
def test_the_shipped_one_beats_the_best_gaussian(sigma):
    truth = shapes()
    noisy = truth + sigma * torch.randn(truth.shape, generator=rng())

    def error(x):
        return float((torch.as_tensor(x) - truth).square().mean().sqrt())

    smoothed = min(error(scipy.ndimage.gaussian_filter(noisy.numpy(), (s, s, t))) for s in (0.2, 0.4, 0.6, 0.9, 1.3, 2) for t in (0, 0.5, 1))
    found = denoised(shipped(), noisy, sigma)
    assert error(found) < 0.85 * min(smoothed, error(noisy))


def test_the_shipped_one_uses_neighbours():
    truth = shapes()
    noisy = truth + 0.1 * torch.randn(truth.shape, generator=rng())
    alone = torch.cat([denoised(shipped(), noisy[..., k:k + 1], 0.1) for k in range(5)], 2)
    assert (denoised(shipped(), noisy, 0.1) - truth).square().mean() < 0.9 * (alone - truth).square().mean()


def system(noise=0.0, image=None):
    """A slice of 2 mm voxels and its 20 views."""
    truth = shapes(1)[::2, ::2].contiguous() if image is None else image
    grid = Grid.from_spacing(truth.shape, 2.0, (1 - truth.shape[0], 1 - truth.shape[1], 0))
    geometry = Geometry.parallel(np.arange(20) * np.pi / 20, round(1.45 * max(truth.shape)), 2.0)
    data = Projector(grid, geometry).apply(0.02 * truth)
    return truth, RaySystem(Projections(data + noise * torch.randn(data.shape, generator=rng()), geometry, grid), level=0.02)


def test_a_perfect_denoiser_gives_the_truth():
    truth, s = system()
    state = PlugAndPlay(s, lambda image, sigma, axis: truth, s.start(), 1, 0.1, 0.1, 0.1)
    state.step()
    assert (state.x - truth).abs().max() < 1e-4 and float(state.residual) < 1e-5


def test_the_middle_between_data_and_denoised_is_a_minimum():
    """x of `nearest` solves (A^T W A + mu) x = A^T W y + mu z, as a dense solver does."""
    grid = Grid.from_spacing((7, 6, 1), 1.0, (-3, -2.5, 0))
    geometry = Geometry.parallel(np.arange(5) * 0.6, 9, 1.0)
    case = Projections(torch.rand(5, 1, 9, generator=rng()), geometry, grid)
    worth = torch.rand(5, 1, 9, generator=rng(1))
    s = RaySystem(case, level=1.0, weight=worth)
    matrix = torch.stack([s.apply(e.reshape(7, 6, 1)).flatten() for e in torch.eye(42)], 1).double()
    z, mu, w = torch.rand(7, 6, 1, generator=rng(2)), 0.3, worth.flatten().double()
    wanted = torch.linalg.solve(matrix.T @ (w[:, None] * matrix) + mu * torch.eye(42), matrix.T @ (w * s.y.flatten()) + mu * z.flatten())
    state = PlugAndPlay(s, lambda image, sigma, axis: image, z, 1, 0.1, 0.1, 0.1, gradients=42)
    assert torch.allclose(state.nearest(z, s.residual(z), mu).flatten().double(), wanted, atol=1e-4)


def test_noise_levels_fall_and_axes_take_turns():
    told = []

    def note(image, sigma, axis):
        told.append((sigma, axis))
        return image

    grid = Grid.from_spacing((34, 33, 36), 1.0)
    geometry = Geometry.parallel([0.0, 1.0], 40, 1.0, rows=36, isocentre=grid.centre.tolist())
    state = PlugAndPlay(RaySystem(Projections(torch.ones(2, 36, 40), geometry, grid), level=0.02), note, torch.zeros(34, 33, 36), 4, 0.08, 0.01, 0.1)
    for _ in range(4):
        state.step()
    assert [s for s, _ in told] == pytest.approx([0.08, 0.04, 0.02, 0.01]) and [a for _, a in told] == [2, 1, 0, 2]
    _, s = system()
    assert PlugAndPlay(s, note, s.start(), 4, 0.08, 0.01, 0.1).axes == [2]


def test_planes_are_turned_there_and_back():
    """What a step shows the denoiser is the image, mirrored and transposed, and what it says is put back; in a while, all ways have come."""
    grid = Grid.from_spacing((33, 35, 34), 1.0)
    geometry = Geometry.parallel([0.0, 1.0], 40, 1.0, rows=34, isocentre=grid.centre.tolist())
    image, seen = torch.rand(33, 35, 34, generator=rng()), set()

    def note(planes, sigma, axis):
        seen.add((axis, float(planes.movedim(axis, 2)[0, 0, 3]), float(planes.movedim(axis, 2)[0, 1, 3])))
        return planes

    state = PlugAndPlay(RaySystem(Projections(torch.ones(2, 34, 40), geometry, grid), level=0.02), note, image, 24, 0.08, 0.01, 0.1)
    assert all(torch.equal(state.turned(k, 0.1), image) for k in range(24)) and len(seen) == 24


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_plug_and_play_beats_total_variation(noise):
    """On a real image of a kind that no network was taught: a head, 128 x 96, that nibabel ships."""
    head = np.asarray(nibabel.load(Path(nibabel.__file__).parent / "tests/data/example4d.nii.gz").dataobj[:, :, 12, 0], np.float32)
    head = scipy.ndimage.zoom(head[:, :96], 0.75, order=1)
    truth, s = system(noise, image=torch.tensor(head / np.quantile(head, 0.99))[..., None])

    def error(x):
        return float((0.02 * truth - x).square().mean().sqrt())

    assert error(PnP(finer=1).solve(s.case, Run(seed=0)).data[0]) < 0.99 * error(s.level * total_variation(s, Run(seed=0), 400))


def test_it_keeps_to_a_denoiser():
    case = Projections.toy()
    with pytest.raises(InputError, match="not a Denoiser"):
        PnP().solve(case, Run(seed=0), torch.nn.Identity())
    with pytest.raises(InputError, match="noise levels do not fall"):
        PnP(first=0.01, last=0.1)
    given = PnP(start=5, steps=2).solve(case, Run(seed=0), Denoiser((8, 8), 1)).data
    assert given.isfinite().all() and not torch.equal(given, PnP(start=5, steps=2).solve(case, Run(seed=0)).data)
