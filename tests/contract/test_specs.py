"""What every registered spec keeps to. A new spec joins by being registered; `Spec.example(box)` gives its small instance, or None where it
does not fit that box."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

import medfields.fields
from medfields.errors import InputError
from medfields.fields import SPECS, Spec, from_json, to_json
from medfields.space import Box

BOXES = [Box((-30,), (50,)), Box((-30, 0), (50, 64)), Box((-30, 0, 5), (50, 64, 60)), Box((-30, 0, 5, 0), (50, 64, 60, 1.5))]
OURS = {name: kind for name, kind in SPECS.items() if kind.__module__.startswith("medfields.")}
CASES = [pytest.param(kind, box, id=f"{name}-{box.ndim}d") for name, kind in sorted(OURS.items()) for box in BOXES]


def example(kind: type[Spec], box: Box) -> Spec:
    given = kind.example(box)
    if given is None:
        pytest.skip(f"{kind.__name__} does not fit {box.ndim} coordinates")
    return given


def built(given: Spec, box: Box, channels: int, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return given.build(box, channels)


def inside(box: Box, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random unit coordinates of points in the box."""
    x = box.random(n, torch.Generator().manual_seed(1)).to(dtype)
    return (x - torch.tensor(box.centre, dtype=dtype)) / torch.tensor(box.radius, dtype=dtype)


def is_encoding(module: torch.nn.Module) -> bool:
    return hasattr(module, "n_out")


def test_the_registry_is_the_package():
    exported = {name for name in medfields.fields.__all__ if isinstance(getattr(medfields.fields, name), type)
                and issubclass(getattr(medfields.fields, name), Spec) and name != "Spec"}
    assert exported == {n for n, kind in OURS.items() if kind.__module__.startswith("medfields.fields.")}


@pytest.mark.parametrize("kind", [pytest.param(k, id=n) for n, k in sorted(OURS.items())])
def test_is_plain_data_with_a_docstring(kind):
    assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
    assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}("), "a docstring of its own"
    assert any(kind.example(box) is not None for box in BOXES), "fits at least one box"


@pytest.mark.parametrize(("kind", "box"), CASES)
def test_json_round_trip(kind, box):
    given = example(kind, box)
    again = from_json(json.loads(json.dumps(to_json(given))))
    assert again == given and hash(again) == hash(given)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(("kind", "box"), CASES)
def test_shapes_spread_and_state(kind, box, channels):
    """Any batch shape, even none or empty; finite values of sensible size; the weights are the whole state."""
    given = example(kind, box)
    if kind.channels not in (None, channels):
        pytest.skip(f"{kind.__name__} has {kind.channels} channels")
    net, u = built(given, box, channels), inside(box, 120)
    n_out = net.n_out if is_encoding(net) else channels
    y = net(u.reshape(2, 60, -1)).detach()
    assert y.shape == (2, 60, n_out) and y.dtype == torch.float32 and torch.isfinite(y).all()
    torch.testing.assert_close(net(u[7]), y[0, 7], rtol=1e-4, atol=1e-5)
    assert net(u[:0]).shape == (0, n_out)
    assert y.abs().max() <= 1 + 1e-6 if is_encoding(net) else y.std() < 3
    far = net(u * 3).detach()
    assert torch.isfinite(far).all()

    other = built(given, box, channels, seed=1)
    other.load_state_dict(net.state_dict(), strict=True)
    torch.testing.assert_close(other(u), net(u), rtol=0, atol=0)
    torch.testing.assert_close(built(given, box, channels)(u), net(u), rtol=0, atol=0, msg="the seed decides the weights")


@pytest.mark.parametrize(("kind", "box"), CASES)
def test_every_parameter_gets_a_gradient(kind, box):
    net, u = built(example(kind, box), box, kind.channels or 2), inside(box, 3000)
    if not list(net.parameters()):
        return
    (net(u) ** 2 + net(u)).sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("kind", "box"), CASES)
def test_nothing_is_allocated_on_meta(kind, box):
    """So that a file's header can be checked against its tensors before memory is asked for."""
    given = example(kind, box)
    with torch.device("meta"):
        shadow = given.build(box, kind.channels or 2)
    assert all(p.is_meta for p in shadow.parameters())
    real = built(given, box, kind.channels or 2)
    assert {n: t.shape for n, t in shadow.state_dict().items()} == {n: t.shape for n, t in real.state_dict().items()}


@pytest.mark.parametrize(("kind", "box"), CASES)
def test_jets_are_the_derivatives(kind, box):
    """Central differences in double precision, at points away from kinks; orders that a spec does not have are refused."""
    net = built(example(kind, box), box, kind.channels or 2).double()
    highest = getattr(net, "jet_order", 2)
    if highest < 2:
        with pytest.raises(InputError, match="order 2"):
            net.jet(inside(box, 2, torch.float64), 2)
    u, h = inside(box, 40, torch.float64), 1e-5
    jets = net.jet(u, highest)
    torch.testing.assert_close(jets[0], net(u))
    for d, step in enumerate(h * torch.eye(box.ndim, dtype=torch.float64)):
        plus, minus = net.jet(u + step, highest), net.jet(u - step, highest)
        for order in range(highest):
            wanted = (plus[order] - minus[order]) / (2 * h)
            off = (jets[order + 1][..., d] - wanted).abs().flatten(1).amax(1) > 1e-4 * (1 + wanted.abs().max())
            assert off.sum() <= 2, f"order {order + 1}, axis {d}: wrong at {int(off.sum())} of 40 points"


@pytest.mark.parametrize(("kind", "box"), CASES)
def test_copies_are_independent(kind, box):
    """deepcopy gives a module of its own: no closures, no shared weights."""
    net, u = built(example(kind, box), box, kind.channels or 1), inside(box, 20)
    before = net(u).detach().clone()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    torch.testing.assert_close(net(u), before, rtol=0, atol=0)
    if list(net.parameters()):
        assert not torch.equal(twin(u), before)
