"""What the methods are for: on a generated head with known truth, each idea earns its place. Figures are margins, with room."""

import dataclasses

import numpy as np
import pytest
import scipy.ndimage
import torch

from medfields.cases import Stacks
from medfields.evaluate import metrics, simulate
from medfields.evaluate.measure import solve
from medfields.methods.ppn import transfer
from medfields.plugins import load
from medfields.solve import Run
from medfields.space import Grid, Volume


@pytest.fixture(scope="module", params=[(0.0, 0.0, 0.0), (9.0, -7.0, 5.0)], ids=["upright", "oblique"])
def trial(request):
    """Folded sheets and blobs, 64 voxels of 1 mm, seen in two stacks of 4 mm slices, upright or tilted, with 1 % noise."""
    rng = np.random.default_rng(0)
    field = [scipy.ndimage.gaussian_filter(rng.normal(size=(64,) * 3), s, mode="wrap") for s in (3, 2, 5)]
    field = [f / f.std() for f in field]
    tissue = 40 + 60 * (np.abs(field[0]) < 0.5) + 40 * (field[1] > 1.2) + 20 * field[2]
    truth = Volume(scipy.ndimage.gaussian_filter(tissue, 0.5), Grid.from_spacing((64,) * 3, 1.0))
    scene = simulate.Scene(truth)
    crop = truth.grid.crop((18, 18, 18), (28, 28, 28))
    stacks = [simulate.thick_stack(scene, simulate.stack_grid(crop, axis, 4.0, tilt=request.param), 4.0, noise=1.5, seed=axis) for axis in (2, 0)]
    return Stacks(tuple(stacks), crop), truth.on(crop).data[0].numpy()


def _psnr(trial, name, profile="gauss", **config):
    case, truth = trial
    result = solve(load(name)(**config), dataclasses.replace(case, profile=profile), Run())
    inner = np.zeros(truth.shape, bool)
    inner[4:-4, 4:-4, 4:-4] = True
    return metrics.psnr(result.data[0].numpy(), truth, inner)


def test_least_squares_beats_interpolation_and_needs_the_profile(trial):
    cubic, ours, points = _psnr(trial, "cubic-mean"), _psnr(trial, "srr-cg"), _psnr(trial, "srr-cg", profile="none")
    assert ours > cubic + 1.5
    assert ours > points + 1.5


@pytest.mark.slow
@pytest.mark.parametrize("trial", [(0.0, 0.0, 0.0)], indirect=True, ids=["upright"])
def test_a_field_beats_interpolation_and_needs_the_profile(trial):
    config = {"steps": 250, "samples": 4096, "nodes": 6}
    ours = _psnr(trial, "hash", **config)
    assert ours > _psnr(trial, "cubic-mean") + 1.0
    assert ours > _psnr(trial, "hash", profile="none", **config) + 1.0


@pytest.mark.slow
@pytest.mark.parametrize("trial", [(0.0, 0.0, 0.0)], indirect=True, ids=["upright"])
def test_own_slices_learn_something(trial):
    """Without lessons the network is the identity, and the answer the linear reconstruction."""
    untaught, taught = (_psnr(trial, "own-slices", steps=n, lr=lr) for n, lr in ((1, 1e-9), (1500, 1e-3)))
    assert taught > untaught + 0.4


def test_transfer_carries_a_drawing_by_its_volume():
    """A label that fills two coarse voxels and a third of another is found in two; a shift by the warp moves it."""
    fine, coarse = Grid.from_spacing((48, 48, 48), 0.25, (-0.375,) * 3), Grid.from_spacing((12, 12, 12), 1.0)
    x = fine.points()
    drawn = ((x[..., 0] > 2.5) & (x[..., 0] < 4.83) & (x[..., 1:] > 4.5).all(-1) & (x[..., 1:] < 6.5).all(-1)).float() * 7
    found = transfer(Volume(drawn, fine), coarse)
    assert found.data.unique().tolist() == [0, 7]
    assert torch.argwhere(found.data[0] > 0).tolist() == [[i, j, k] for i in (3, 4) for j in (5, 6) for k in (5, 6)]
    moved = transfer(Volume(drawn, fine), coarse, lambda p: p - torch.tensor([2.0, 0, 0]))
    assert torch.argwhere(moved.data[0] > 0)[:, 0].unique().tolist() == [5, 6]
