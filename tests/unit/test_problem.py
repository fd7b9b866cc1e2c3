"""Problem and Inverse: what is trained on, what is kept aside, what is checkpointed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medfields.errors import InputError
from medfields.solve import Inverse, Measured
from medfields.space import Samples


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * x


def read_points(field, at):
    return field(at)


def samples(n: int = 20, weight: torch.Tensor | None = None) -> Samples:
    x = torch.linspace(1, 2, n)[:, None]
    return Samples(x, 3 * x, weight)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_loss_is_the_weighted_mean_square():
    w = torch.tensor([1.0, 0.0, 0.0, 3.0])
    s = samples(4, w)
    p = Inverse(Line(), read_points, s, n=4)
    expected = (s.value[0] ** 2 + 3 * s.value[3] ** 2) / 4
    assert p.losses(p.batch(rng()), 0.0)["data"].item() == pytest.approx(expected.item())


def test_batches_are_random_and_replay():
    p = Inverse(Line(), read_points, samples(100), n=10)
    a, b, c = p.batch(rng()), p.batch(rng()), p.batch(torch.Generator().manual_seed(1))
    assert len(a) == 10 and torch.equal(a.at, b.at) and not torch.equal(a.at, c.at)


def test_held_out_measurements_are_never_trained_on():
    p = Inverse(Line(), read_points, samples(50), n=10, held_out=0.2)
    g = rng()
    trained = {v for _ in range(200) for v in p.batch(g).at.ravel().tolist()}
    kept = set(p.test_on.samples.at.ravel().tolist())
    assert len(kept) == 10 and not kept & trained and len(kept | trained) == 50
    again = Inverse(Line(), read_points, samples(50), n=10, held_out=0.2)
    assert set(again.test_on.samples.at.ravel().tolist()) == kept


def test_the_held_out_error_is_exact_and_zero_at_the_truth():
    p = Inverse(Line(), read_points, samples(50), n=3, held_out=0.2)
    assert p.held_out().item() == pytest.approx(p.test_on.value.square().mean().item())
    assert not p.held_out().requires_grad
    with torch.no_grad():
        p.field.slope.fill_(3.0)
    assert p.held_out() == pytest.approx(0)
    assert Inverse(Line(), read_points, samples(50), n=3).held_out() is None


def test_places_may_be_a_dict_and_move_with_the_problem():
    s = Samples({"x": torch.ones(6, 3), "stack": torch.arange(6)}, torch.ones(6, 1), torch.ones(6))
    p = Inverse(Line(), lambda field, at: field(at["x"][:, :1]), s, n=4, held_out=0.5)
    assert p.state_dict().keys() == {"field.slope"}
    assert {t.device.type for t in p.to("meta").buffers()} == {"meta"} and len(list(p.buffers())) == 8
    m = Measured(s).samples
    assert m.at.keys() == s.at.keys() and torch.equal(m.at["stack"], s.at["stack"]) and torch.equal(m.weight, s.weight)


def test_an_operator_with_parameters_is_part_of_the_problem():
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

        def forward(self, field, at):
            return self.gain * field(at)

    assert dict(Inverse(Line(), Gain(), samples(), n=4).named_parameters()).keys() == {"field.slope", "operator.gain"}


@pytest.mark.parametrize("change", [{"n": 0}, {"held_out": 1.0}, {"held_out": -0.1}, {"held_out": 1e-6}])
def test_impossible_shares_and_sizes(change):
    with pytest.raises(InputError):
        Inverse(Line(), read_points, samples(), **{"n": 4, **change})


def test_measurements_must_be_finite():
    bad = Samples(torch.ones(3, 1), torch.tensor([[1.0], [float("nan")], [2.0]]))
    with pytest.raises(InputError, match="NaN"):
        Inverse(Line(), read_points, bad, n=2)
