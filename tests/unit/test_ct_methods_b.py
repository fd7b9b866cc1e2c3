"""nerp, intratomo, uncertainr, neurec and what they share: each must do what its paper is about, on slices small enough for seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medfields.cases import Projections
from medfields.errors import InputError
from medfields.fields import MLP, BSpline, Conditional, Dropout, Field, Fourier, GridEncoding, Positive, Siren, drawing
from medfields.methods.intratomo import IntraTomo
from medfields.methods.nerp import NeRP
from medfields.methods.neurec import NeuRec
from medfields.methods.uncertainr import UncertaINR
from medfields.solve import Run
from medfields.solve.cohort import Reader
from medfields.solve.hmc import HMC
from medfields.solve.non_local import non_local_means
from medfields.solve.spread import Spread, noise_of
from medfields.solve.tomography import PrimalDualTV, RaySystem
from medfields.solve.views import completed, reprojected
from medfields.space import Box, Geometry, Grid, Volume

GRID = MLP(GridEncoding(5, 2.0, 16.0, log2_table=10), width=32, depth=1)


def truth(case: Projections) -> torch.Tensor:
    """The toy's ellipses: its earlier scan, and the one that the earlier scan lacks, which is the mask of the densest, at its least value."""
    assert case.prior is not None and case.metal is not None
    residual = case.data - case.projector(4).apply(case.prior.data[0])
    shadow = case.projector(4).apply(case.metal.data[0])
    return case.prior.data[0] + float((residual * shadow).sum() / shadow.square().sum()) * case.metal.data[0]


def psnr(x: torch.Tensor, t: torch.Tensor) -> float:
    return float(20 * torch.log10((t.max() - t.min()) / (x - t).square().mean().sqrt()))


def values(result: Field | Volume, case: Projections) -> torch.Tensor:
    return result.data if isinstance(result, Volume) else result.on(case.grid).volume().data


# --- the parts


def test_dropout_is_whole_until_it_draws():
    """A draw leaves out the same units for all points; on a network of one hidden layer, draws average to the whole network."""
    field = Field(Positive(Dropout(MLP(Fourier(size=8), width=64, depth=1), 0.5), "relu", -10.0), Box((0, 0), (9, 9)), seed=0)
    x = field.box.random(30, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        whole = field(x)
        assert torch.equal(field(x), whole)
        with drawing(field):
            draws = torch.stack([field(x) for _ in range(2000)])
            assert field.net.net.draws
        assert torch.equal(field(x), whole) and not field.net.net.draws
        zero = Field(Dropout(MLP(width=4, depth=1), 0.0), field.box, seed=0)
        with drawing(zero):
            assert torch.equal(zero(x), zero(x))
    assert draws.std(0).min() > 0.01
    assert ((draws.mean(0) - whole).abs() < 5 * draws.std(0) / 2000**0.5).all()
    with drawing(field), torch.no_grad():  # one point twice in a call: one network
        assert torch.equal(*field(x[:1].expand(2, -1)).unbind(0))


def test_dropout_refuses_what_it_cannot_thin():
    with pytest.raises(InputError, match="BSpline has no single stack"):
        Dropout(BSpline.on(Grid.from_spacing((2, 2, 2), 1.0)))
    with pytest.raises(InputError, match="p must be between 0 and"):
        Dropout(Siren(width=8), 1.0)


def test_conditional_reads_its_map():
    """At the map's points the network is told the coefficients; other coefficients there, another value there and nowhere far off."""
    grid = Grid.from_spacing((4, 5, 1), 2.0)
    field = Field(Conditional(BSpline.on(grid), 3, width=8), grid.box(), seed=0)
    encoding = field.net.encoding
    u = field.unit_coordinates(grid.points().reshape(-1, 3))
    with torch.no_grad():
        assert torch.allclose(encoding(u)[:, 3:], encoding.map.coefficients.flatten(1).T, atol=1e-6)
        before = field(grid.points())
        encoding.map.coefficients[:, 1, 2] += 1.0
        changed = (field(grid.points()) != before)[..., 0]
    assert changed[1, 2, 0] and changed.sum() == 1


def test_chain_samples_a_gaussian():
    """Standard deviations 1 and 3, means 2 and -1: found to 20 % and at the acceptance that was asked for."""
    torch.manual_seed(0)
    module = nn.Linear(2, 1, bias=False)
    sd, mean = torch.tensor([1.0, 3.0]), torch.tensor([2.0, -1.0])
    chain = HMC(module, lambda: (((module.weight[0] - mean) / sd) ** 2).sum() / 2, burn=100, leaps=6)
    draws = []
    for n in range(500):
        chain.step()
        if n >= 100:
            draws.append(module.weight[0].detach().clone())
    found = torch.stack(draws)
    assert torch.allclose(found.mean(0), mean, atol=0.5)
    assert torch.allclose(found.std(0), sd, rtol=0.2)
    assert 0.65 < chain.acceptance < 0.95


def test_spread_of_known_errors_is_calibrated():
    """Images whose errors are twice their spread: the kept views tell the 2; a single answer gets the constant of white errors."""
    case = replace(Projections.toy(0), prior=None, metal=None)
    rng = torch.Generator().manual_seed(0)
    t = torch.rand(case.grid.shape, generator=rng) * 0.02
    case = replace(case, data=case.projector().apply(t))
    kept = case.subset([1, 4, 7, 10])
    images = torch.stack([t + 0.002 * torch.randn(t.shape, generator=rng) for _ in range(40)])
    images = images - images.mean(0) + t + 0.004 * torch.randn(t.shape, generator=rng)
    spread = Spread(case, kept)
    for image in images:
        spread.add(image)
    assert torch.allclose(spread.mean, images.mean(0), atol=1e-8)
    assert torch.allclose(spread.std, images.std(0), rtol=1e-3)
    std, factor = spread.calibrated(0.0)
    assert factor == pytest.approx(2.0, rel=0.15)
    assert torch.allclose(std, factor * images.std(0), rtol=1e-3)
    single = Spread(case, kept)
    single.add(images[0])
    constant, factor = single.calibrated(0.0)
    assert factor == 1 and torch.equal(constant, constant.flatten()[0].expand_as(constant))
    assert float(constant.mean()) == pytest.approx(float((images[0] - t).std()), rel=0.2)
    assert Spread(case, None).calibrated(0.0)[1] == 1


def test_noise_is_found():
    case = Projections.toy(0, size=48)
    noisy = replace(case, photons=0.0, data=case.data + 0.05 * torch.randn(case.data.shape, generator=torch.Generator().manual_seed(0)))
    assert noise_of(noisy, 1e-4) == pytest.approx(0.05, rel=0.15)
    assert noise_of(noisy, 0.2) == 0.2
    bright = replace(case, photons=1e4, data=torch.full_like(case.data, np.log(4.0)))
    assert noise_of(bright, 1e-4) == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize("span", [180.0, 60.0])
def test_completed_views_lie_where_the_gantry_would_be(span):
    angles = np.radians(np.arange(0, span, 12.0))
    made, measured = completed(Geometry.parallel(angles, 31, 2.0, offset=3.0, isocentre=(5.0, -7.0, 1.0)), 60)
    assert made.views == 60 and measured.sum() == len(angles) and measured[: len(angles)].all()
    seen = np.mod(np.arctan2(-made.towards[:, 0], made.towards[:, 1]), np.pi)
    assert np.allclose(np.sort(np.mod(np.degrees(seen) + 0.1, 180)), 3.0 * np.arange(60) + 0.1, atol=1e-6)
    # The rays of a new view are those of a gantry at that angle (or from the other side, mirrored): the same lines.
    n = int(np.flatnonzero(~measured)[0])
    there = Geometry.parallel([np.arctan2(-made.towards[n, 0], made.towards[n, 1])], 31, 2.0, isocentre=(5.0, -7.0, 1.0))
    middle = made.centre[n] - there.centre[0]
    assert abs(np.linalg.norm(middle) - 3.0) < 0.2 and abs(middle @ made.towards[n]) < 0.2


def test_completing_what_is_complete_adds_nothing():
    whole = Geometry.parallel(np.linspace(0, np.pi, 60, endpoint=False), 31, 2.0)
    made, measured = completed(whole, 30)
    assert made is whole and measured.all()


def test_made_up_views_count_as_far_as_they_are_trusted():
    """Exact views: the image is found; wrong views beside them spoil it as far as they are trusted, without trust not at all."""
    case = Projections.toy(1, views=20)
    t = truth(case)
    geometry, measured = completed(case.geometry, 40)
    made = reprojected(case, Volume(t, case.grid), geometry, measured)
    data = made.projector().apply(t)
    data[~measured] *= 0.7
    found = {}
    for trust in (0.0, 0.03, 1.0):
        worth = torch.full_like(data, trust)
        worth[measured] = 1.0
        state = PrimalDualTV(RaySystem(replace(made, data=data), level=case.level, weight=worth), 0.01)
        for _ in range(100):
            state.step()
        assert state.answer.min() >= 0
        found[trust] = psnr(case.level * state.answer, t)
    assert found[0.0] > 30 and found[0.0] > found[0.03] + 0.5 > found[1.0] + 5


def test_non_local_means_smooths_and_keeps_edges():
    rng = torch.Generator().manual_seed(0)
    clean = torch.zeros(24, 24, 1)
    clean[8:16, 8:16] = 1.0
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=rng)
    smooth = non_local_means(noisy, 0.15)
    assert (smooth - clean).std() < 0.5 * (noisy - clean).std()
    assert smooth[9:15, 9:15].min() > 0.8 and smooth[:7].max() < 0.2
    assert torch.allclose(non_local_means(clean, 0.1), clean, atol=1e-6)
    assert torch.allclose(non_local_means(noisy, 1e-3), noisy, atol=1e-5)
    with pytest.raises(InputError, match="h = 0"):
        non_local_means(noisy, 0.0)


# --- the methods


def test_nerp_keeps_a_good_start_finds_the_lesion_and_drops_a_wrong_one():
    case = Projections.toy(3, views=8)
    t = truth(case)
    method = NeRP(net=Positive(GRID), embed_steps=80, embed_lr=1e-2, steps=100, lr=5e-3, cold_lr=5e-3, misfit="l1", final=0.1, held_out=0.25)

    def solved(m: NeRP, c: Projections) -> tuple[torch.Tensor, dict[str, object]]:
        run = Run()
        return values(m.solve(c, run), c)[0], run.notes

    cold, notes = solved(replace(method, warm=False), case)
    assert notes == {}
    brief = replace(method, steps=4)
    assert torch.equal(solved(brief, replace(case, prior=None))[0], solved(replace(brief, warm=False), case)[0])
    warm, notes = solved(method, case)
    assert notes["start"] == "earlier scan"
    assert psnr(warm, t) > psnr(cold, t) + 1.5
    assert case.prior is not None and case.metal is not None
    lesion = case.metal.data[0] > 0
    contrast = (t - case.prior.data[0])[lesion].mean()
    assert abs((warm - t)[lesion].mean()) < 0.2 * contrast
    wrong = Volume(case.prior.data[0].flip(0).roll(8, 1) * 2, case.grid)
    dropped, notes = solved(method, replace(case, prior=wrong))
    assert notes["start"] == "rough image"
    assert psnr(dropped, t) > psnr(cold, t) - 0.5


def test_intratomo_refines_what_its_field_says():
    case = Projections.toy(2, views=8)
    t = truth(case)
    method = IntraTomo(net=Positive(GRID), steps=60, lr=1e-2, misfit="l1", rounds=1, views=30, inner=40, tv=0.03)
    run = Run()
    once = method.solve(case, run).data[0]
    assert [s["stage"] for s in run.stages] == ["A 1", "B 1"]
    assert once.min() >= 0
    alone = replace(method, refine=False).solve(case, Run()).data[0]
    assert psnr(once, t) > psnr(alone, t) + 0.2
    run = Run()
    twice = replace(method, rounds=2).solve(case, run).data[0]
    assert [s["stage"] for s in run.stages] == ["A 1", "B 1", "A 2", "B 2"]
    assert not torch.equal(once, twice)
    with pytest.raises(InputError, match="one round is the least"):
        IntraTomo(rounds=0)


def test_uncertainr_is_less_sure_where_it_is_wrong():
    case = replace(Projections.toy(1, views=8), photons=0.0)
    t = truth(case)
    net = MLP(Fourier(size=32, sigma=3.0), width=48, depth=2, activation="silu")
    method = UncertaINR(net=net, steps=80, lr=1e-2, final=0.1, members=2, passes=6, held_out=0.25)
    run = Run()
    field = method.solve(case, run)
    assert field.names == ("attenuation", "std") and field.unit == "1/mm"
    mean, std = values(field, case)
    error = (mean - t).abs()
    rank = [v.flatten().argsort().argsort().float() for v in (error, std)]
    assert torch.corrcoef(torch.stack(rank))[0, 1] > 0.25
    assert 0.004 < run.notes["noise"] < 0.02  # 0.005, and edges
    single = UncertaINR(net=net, steps=50, lr=1e-2, final=0.1, dropout=0.0, passes=1, held_out=0.25)
    assert values(single.solve(case, Run()), case)[1].std() < 1e-6  # one answer: one std for all


def test_uncertainr_walks_from_the_fit():
    case = replace(Projections.toy(1, size=16, views=8), photons=0.0)
    net = MLP(Fourier(size=8, sigma=2.0), width=12, depth=1, activation="silu")
    run = Run()
    method = UncertaINR(net=net, steps=60, lr=1e-2, sampler="hmc", burn=20, passes=10, leaps=5, held_out=0.25)
    mean, std = values(method.solve(case, run), case)
    assert run.notes["member 1 acceptance"] > 0.3 and std.min() > 0
    assert psnr(mean, truth(case)) > 15


def test_neurec_learns_from_others_and_adapts():
    """What was learned on other patients beats the same network untaught, before and after adapting, and the image it reads is what helps."""
    cohort = [Projections.toy(seed, views=24) for seed in range(1, 7)]
    case = Projections.toy(20, views=24).subset(slice(None, None, 3))
    t = truth(case)
    method = NeuRec(encoding=Fourier(size=8, sigma=1.0), features=8, width=32, filters=16, layers=2, views=8, learn_steps=80,
                    learn_lr=5e-3, steps=20)
    taught = method.learn(cohort, Run())
    before = {k: v.clone() for k, v in taught.state_dict().items()}

    def score(m: NeuRec, prior: nn.Module | None) -> float:
        return psnr(values(m.solve(case, Run(), prior), case)[0], t)

    still = replace(method, steps=None)
    assert score(still, taught) > score(still, None) + 4
    assert score(method, taught) > score(method, None) + 2
    assert all(torch.equal(v, before[k]) for k, v in taught.state_dict().items())
    with pytest.raises(InputError, match="other sizes"):
        replace(method, width=16).solve(case, Run(), taught)
    with pytest.raises(InputError, match="nobody to learn from"):
        method.learn([], Run())


def test_the_reader_sees_streaks_from_afar() -> None:
    """Five layers reach 32 voxels, where plain ones end at 6."""
    reader = Reader(NeuRec()._spec(Grid.from_spacing((1, 1, 1), 1.0)), 8, 5)
    image = torch.rand(80, 80, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (pull,) = torch.autograd.grad(reader.features(image)[1:, 40, 40].sum(), image)
    assert pull[40, :, 0].nonzero().ravel().tolist()[0] < 15
