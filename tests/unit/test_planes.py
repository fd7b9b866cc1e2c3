"""Learning plane by plane."""

import itertools

import pytest
import torch

from medfields.cases import Stack, Stacks
from medfields.errors import InputError
from medfields.methods.own_slices import OwnSlices, _planes, _turns
from medfields.solve import Run
from medfields.solve.linear import SliceSystem, padded
from medfields.solve.planes import PlaneNet, PlanePairs, corrected, fitted, turned
from medfields.space import Grid, Volume

ALL = {axes: (True,) for axes in itertools.combinations(range(3), 2)}


@pytest.mark.parametrize("shape", [(8, 10, 12), (7, 9, 11)])
def test_an_untaught_network_changes_nothing(shape):
    volume = torch.randn(2, *shape)
    assert torch.allclose(corrected(PlaneNet(8, 2, contrasts=2), volume, dict.fromkeys(ALL, (True, True))), volume, atol=1e-6)


def test_planes_are_put_back_where_they_came_from():
    """A network that halves the middle planes halves the contrasts that lose something there, whatever the axes."""
    class Half(PlaneNet):
        def forward(self, planes):
            return planes[:, 1::3] / 2

    volume = torch.randn(2, 6, 7, 9)
    for axes in ALL:
        assert torch.allclose(corrected(Half(4, 1, 2), volume, {axes: (True, True)}), volume / 2, atol=1e-6)
        found = corrected(Half(4, 1, 2), volume, {axes: (False, True)})
        assert torch.equal(found[0], volume[0]) and torch.allclose(found[1], volume[1] / 2, atol=1e-6)


def test_pairs_show_the_same_place_with_its_neighbours():
    """Each voxel holds its own index: the truth is the middle of what is seen, and neighbours lie one plane away."""
    index = torch.arange(12 * 14 * 16.0).reshape(1, 1, 12, 14, 16)
    index = torch.cat([index, index + 10_000], 1)
    planes = dict.fromkeys(ALL, (True, False))
    pairs = PlanePairs(PlaneNet(4, 1, 2), index, index, index[0] > 100, planes, 20, 8)
    seen, truth, weight = pairs.batch(torch.Generator().manual_seed(0))
    assert seen.shape == (20, 6, 8, 8) and torch.equal(seen[:, 1::3], truth)
    assert torch.equal(weight[:, 0], (truth[:, 0] > 100).float()) and not weight[:, 1].any()
    assert torch.equal(seen[:, 3:], seen[:, :3] + 10_000)
    gaps = (seen[:, 2] - seen[:, 1]).flatten(1)
    assert (gaps == gaps[:, :1]).all() and set(gaps[:, 0].abs().int().tolist()) == {1, 16, 14 * 16}


def test_a_network_learns_a_known_correction():
    """Truth is twice what is seen: most of the difference is gone after a few steps."""
    seen = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    run = Run(seed=0)
    net = PlaneNet(16, 2)
    run.fit(PlanePairs(net, seen, 2 * seen, torch.ones(1, 16, 16, 16), ALL, 4, 16), steps=150, lr=3e-3, name="double")
    assert (corrected(net, seen[0], ALL) - 2 * seen[0]).square().mean() < 0.1 * seen.square().mean()


def test_fitted_cuts_and_mirrors():
    v = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(fitted(v, (2, 3, 2)), v[:, :, 1:3])
    wide = fitted(v, (5, 3, 4))
    assert torch.equal(wide[:2], v) and torch.equal(wide[2], v[1]) and torch.equal(wide[3], v[0])


def test_turned_volumes_keep_their_millimetres():
    """A wave of 12 mm along the coarse axis is one of 12 mm along the fine one; equal voxels are only permuted."""
    grid = Grid.from_spacing((24, 20, 14), (1.0, 1.0, 2.0))
    wave = torch.cos(torch.arange(14.0) * 2 * torch.pi / 6).expand(24, 20, 14)
    found = turned(wave, (2, 0, 1), grid)
    assert found.shape == grid.shape
    start = (27 - 24) // 2  # 14 voxels of 2 mm are 27 points of 1 mm, cut in the middle to 24
    expected = torch.cos((torch.arange(24.0) + start) * 2 * torch.pi / 12)
    assert torch.allclose(found[2:-2], expected[2:-2, None, None].expand(20, 20, 14), atol=0.05)
    volume = torch.randn(6, 7, 8)
    assert torch.equal(turned(volume, (1, 2, 0), Grid.from_spacing((6, 7, 8), 1.0)), fitted(volume.permute(1, 2, 0), (6, 7, 8)))


def systems(*contrasts: tuple[int, ...]) -> list[SliceSystem]:
    """For each contrast, stacks across the given axes."""
    found = []
    for axes in contrasts:
        stacks = []
        for axis in axes:
            spacing, shape = [1.0] * 3, [24] * 3
            spacing[axis], shape[axis] = 4.0, 6
            origin = [-(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True)]
            stacks.append(Stack(Volume(torch.rand(shape), Grid.from_spacing(shape, spacing, origin)), 4.0, through=axis))
        case = Stacks(tuple(stacks), Grid.from_spacing((20, 20, 20), 1.0, (-9.5, -9.5, -9.5)))
        found.append(SliceSystem(case, padded(case)[0]))
    return found


@pytest.mark.parametrize(("axes", "want"), [
    ([(2, 0)], {(0, 2): (True,)}),
    ([(0, 1, 2)], ALL),
    ([(2,)], {(0, 2): (True,), (1, 2): (True,)}),
    ([(2,), (0,)], {(0, 1): (False, True), (0, 2): (True, True), (1, 2): (True, False)}),
])
def test_the_planes_that_lose_something(axes, want):
    assert _planes(systems(*axes)) == want


@pytest.mark.parametrize(("axes", "count"), [([(2,)], 4), ([(0,)], 4), ([(2, 0)], 4), ([(0, 1, 2)], 4), ([(2,), (0,)], 3), ([(0,), (1,), (2,)], 2)])
def test_no_turn_leaves_what_is_lost_in_its_place(axes, count):
    turns = _turns(systems(*axes))
    assert len(turns) == count
    assert all({t[d] for d in a} != set(a) for t in turns for a in axes if len(a) < 3)


def test_noise_is_found_and_anatomy_is_not_noise():
    case = Stacks.toy(0, size=40)
    rng = torch.Generator().manual_seed(0)
    noisy = tuple(Stack(s.volume.with_data(s.volume.data + 4.0 * torch.randn(s.volume.data.shape, generator=rng)), s.thickness, through=s.axis)
                  for s in case.stacks)
    lattice = padded(case)[0]
    before, after = (SliceSystem(c, lattice) for c in (case, Stacks(noisy, case.grid)))
    assert after.noise() * after.scale == pytest.approx((4.0**2 + 1.0) ** 0.5, rel=0.15)
    assert before.noise() * before.scale == pytest.approx(1.0, rel=0.3)


def test_covered_is_where_every_stack_looks():
    case = Stacks.toy(0)
    lattice, inner = padded(case)
    covered = SliceSystem(case, lattice).covered()
    assert covered[tuple(slice(s.start + 4, s.stop - 4) for s in inner)].all() and not covered[0].any()


def test_a_volume_too_small_to_learn_from_is_refused():
    with pytest.raises(InputError, match="leave nothing to learn from"):
        PlanePairs(PlaneNet(4, 1), torch.zeros(1, 1, 8, 8, 1), torch.zeros(1, 1, 8, 8, 1), torch.ones(1, 8, 8, 1), ALL, 2, 8)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"patches": -1}, {"weight": -1.0}, {"lr": float("nan")}])
def test_hyper_parameters_that_nobody_can_mean(wrong):
    with pytest.raises(InputError, match=r"must be a (count|number)"):
        OwnSlices(**wrong)
