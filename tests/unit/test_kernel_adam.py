"""Adam for fields: torch's Adam where everything has a gradient, nothing moved where nothing has."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from medfields.errors import InputError
from medfields.kernels.adam import adam_
from medfields.solve import optimise
from medfields.solve.optimise import Adam


def table(rows: int = optimise.LAZY_ROWS + 5, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed)))


def gradients(steps: int, shape: torch.Size) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=rng) for _ in range(steps)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_where_every_entry_has_a_gradient_it_is_torchs_adam(decay: float) -> None:
    ours, theirs = [table(), nn.Parameter(torch.ones(8, 3))], [table(), nn.Parameter(torch.ones(8, 3))]
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": decay}
    pair = Adam(ours, **options), torch.optim.AdamW(theirs, **options)
    for g, h in zip(gradients(7, ours[0].shape), gradients(7, ours[1].shape), strict=True):
        for parameters, optimiser in zip((ours, theirs), pair, strict=True):
            parameters[0].grad, parameters[1].grad = g.clone(), h.clone()
            optimiser.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_entries_without_a_gradient_stay_put() -> None:
    p, q = table(), table()
    lazy, dense = Adam([p], lr=0.1), Adam([q], lr=0.1, lazy=False)
    first, later = gradients(2, p.shape)
    later[100:] = 0
    later[50, 0] = 0
    for optimiser, parameter in ((lazy, p), (dense, q)):
        parameter.grad = first.clone()
        optimiser.step()
    kept = p.detach().clone(), lazy.state[p]["exp_avg"].clone(), lazy.state[p]["exp_avg_sq"].clone()
    for optimiser, parameter in ((lazy, p), (dense, q)):
        parameter.grad = later.clone()
        optimiser.step()
    for now, before in zip((p, lazy.state[p]["exp_avg"], lazy.state[p]["exp_avg_sq"]), kept, strict=True):
        assert torch.equal(now[100:], before[100:]) and torch.equal(now[50, 0], before[50, 0])
        assert (now[:50] != before[:50]).all() and now[50, 1] != before[50, 1]
    torch.testing.assert_close(p[:50], q[:50], rtol=1e-5, atol=1e-6)
    assert (q[100:] != kept[0][100:]).all()  # what laziness changes: Adam drifts on with the old momentum


@pytest.mark.parametrize("lazy", [True, False])
def test_compiled_and_plain_update_agree(monkeypatch: pytest.MonkeyPatch, lazy: bool) -> None:
    grad = gradients(1, torch.Size((1000, 3)))[0]
    grad[::3] = 0
    results = []
    for name in ("numba", "torch"):
        monkeypatch.setenv("MEDFIELDS_KERNELS", name)
        p, m, v = torch.ones(1000, 3), torch.full((1000, 3), 0.1), torch.full((1000, 3), 0.2)
        adam_(p, grad, m, v, step=3, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, lazy=lazy)
        results.append((p, m, v))
    for ours, twin in zip(*results, strict=True):
        torch.testing.assert_close(ours, twin)


def test_a_nan_gradient_is_not_hidden() -> None:
    p = table()
    p.grad = torch.zeros_like(p)
    p.grad[3, 1] = float("nan")
    Adam([p]).step()
    assert p[3, 1].isnan() and p.isnan().sum() == 1


def test_groups_and_dense_parameters_keep_their_own_rates() -> None:
    p, w = table(), nn.Parameter(torch.ones(4, 4))
    optimiser = Adam([{"params": [p], "lr": 0.0}, {"params": [w]}], lr=0.1)
    before = p.detach().clone()
    p.grad, w.grad = torch.ones_like(p), torch.ones_like(w)
    optimiser.step()
    assert torch.equal(p, before)
    torch.testing.assert_close(w.detach(), torch.full((4, 4), 0.9))


def test_a_loaded_state_goes_on_to_the_same_bytes() -> None:
    def fit(p: nn.Parameter, w: nn.Parameter, optimiser: Adam, steps: list[torch.Tensor]) -> None:
        for g in steps:
            p.grad, w.grad = g.clone(), g[:4].clone()
            optimiser.step()

    p, w = table(), nn.Parameter(torch.ones(4, 2))
    optimiser, steps = Adam([p, w], lr=0.01), gradients(6, p.shape)
    fit(p, w, optimiser, steps[:3])
    saved = copy.deepcopy(optimiser.state_dict())
    p2, w2 = nn.Parameter(p.detach().clone()), nn.Parameter(w.detach().clone())
    other = Adam([p2, w2], lr=0.5)
    other.load_state_dict(saved)
    fit(p, w, optimiser, steps[3:])
    fit(p2, w2, other, steps[3:])
    assert torch.equal(p, p2) and torch.equal(w, w2)


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1.0}, {"weight_decay": -0.1}])
def test_numbers_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        Adam([table()], **wrong)
