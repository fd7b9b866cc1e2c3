"""Networks: structure, initial statistics, and that each can fit what it is for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medfields.fields import MLP, Finer, Fourier, MultiHead, NeRFEncoding, Siren, parameter_count
from medfields.space import Box

BOX = Box((0, 0, 0), (40, 20, 30))


def unit(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, generator=g) * 2 - 1


def test_mlp_is_the_formula():
    torch.manual_seed(0)
    net, u = MLP(width=5, depth=2).build(BOX, 2), unit(4)
    (w1, b1), (w2, b2) = net.body.weights()
    head = net.branches[0].last
    wanted = torch.relu(torch.relu(u @ w1.T + b1) @ w2.T + b2) @ head.weight.T + head.bias
    torch.testing.assert_close(net(u), wanted)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_many_points_take_the_chunked_way_to_the_same_answer(activation, monkeypatch):
    monkeypatch.setattr("medfields.kernels.mlp._chosen", "fp32")
    net, u = MLP(width=24, depth=3, activation=activation).build(BOX, 2), unit(9000).reshape(3, 3000, 3)
    wanted = net.branches[0](net.body(u))
    torch.testing.assert_close(net(u), wanted, rtol=1e-4, atol=1e-5)
    parameters = list(net.parameters())
    got, slow = (torch.autograd.grad((y**2).mean(), parameters) for y in (net(u), wanted))
    torch.testing.assert_close(got, slow, rtol=1e-3, atol=1e-5)


def test_skips_read_the_encoding():
    """NeRF: 8 layers, the encoding again at layer 5."""
    net = MLP(encoding=NeRFEncoding(octaves=10), width=256, depth=8, skips=(5,)).build(BOX, 4)
    assert [layer.in_features for layer in net.body.layers] == [63, 256, 256, 256, 256, 319, 256, 256]
    with torch.no_grad():
        net.body.layers[4].weight.zero_()  # what came before is forgotten; the skip still sees the place
        net.body.layers[4].bias.zero_()
    assert net(unit(50)).std() > 1e-3


def test_split_heads_are_independent():
    """McGinnis: 512 features, 5 layers of 1024, then 1024 -> 512 -> 1 for each contrast."""
    given = MLP(encoding=Fourier(size=256), width=1024, depth=5, split=2)
    trunk = 512 * 1024 + 1024 + 4 * (1024 * 1024 + 1024)
    assert parameter_count(given, BOX, 2) == trunk + 2 * (1024 * 512 + 512 + 512 + 1)
    net = MLP(width=16, depth=2, split=2).build(BOX, 2)
    net(unit(9))[:, 0].sum().backward()
    own = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(n.startswith("branches.0") for n in own) and not any(n.startswith("branches.1") for n in own)


def test_siren_initialisation():
    """Section 3.2 of the paper: weight bounds; the sine's input is about standard normal in every layer after the first."""
    torch.manual_seed(0)
    net = Siren(width=512, depth=5).build(BOX, 1)
    layers = [*net.body.layers, net.branches[0].last]
    assert layers[0].weight.abs().max().item() == pytest.approx(1 / 3, rel=0.01)
    for layer in layers[1:]:
        assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 512) / 30, rel=0.01)
    h = unit(2000)
    for k, (weight, bias) in enumerate(net.body.weights()):
        z = nn.functional.linear(h, weight, bias)
        h = torch.sin(z)
        if k:
            assert 0.75 < (z - 30 * layers[k].bias).std().item() < 1.25
    torch.testing.assert_close(net(unit(5)), net.branches[0].last(net.body(unit(5))))


def test_siren_gains():
    net = Siren(width=7, depth=3, omega_first=11.0, omega=5.0).build(BOX, 1)
    first, second = net.body.layers[:2]
    h = torch.sin(11 * first(unit(4)))
    h = torch.sin(5 * second(h))
    h = torch.sin(5 * net.body.layers[2](h))
    torch.testing.assert_close(net(unit(4)), net.branches[0].last(h))


def test_finer_scale_is_detached():
    torch.manual_seed(0)
    net, u = Finer(width=6, depth=1, omega=3.0, bias=2.0).build(BOX, 1), unit(3)
    layer, last = net.body.layers[0], net.branches[0].last
    assert 1 < layer.bias.abs().max() <= 2
    z = layer(u)
    torch.testing.assert_close(net(u), last(torch.sin(3 * (z.abs() + 1) * z)))
    got = torch.autograd.grad(net(u).sum(), layer.bias)[0]
    scale = 3 * (z.abs() + 1)
    torch.testing.assert_close(got, (last.weight[0] * torch.cos(scale * z) * scale).sum(0))


def test_one_cell_with_all_units_is_a_plain_mlp():
    torch.manual_seed(0)
    multi, plain = MultiHead(cells=(1, 1, 1), width=16, depth=3, alpha=16).build(BOX, 2), MLP(width=16, depth=3).build(BOX, 2)
    plain.body.load_state_dict(multi.body.state_dict())
    with torch.no_grad():
        plain.branches[0].last.weight.copy_(multi.weight[0])
        plain.branches[0].last.bias.copy_(multi.bias[0])
    u = unit(20)
    inside = u * torch.tensor([1.0, 0.5, 0.75])  # the box is 40 x 20 x 30: the cell's own coordinate fills each axis
    torch.testing.assert_close(multi(inside), plain(u))


def test_cells_share_local_coordinates():
    """`heads` at t gives what `forward` gives at the n places that t stands for, cells in C order."""
    torch.manual_seed(0)
    cells = (2, 3, 4)
    net = MultiHead(cells=cells, width=16, depth=2, alpha=6).build(BOX, 2)
    with torch.no_grad():
        net.bias.normal_()
    t = unit(5) * 0.999
    all_cells = net.heads(t).unflatten(-1, (24, 2))
    half = torch.tensor([1.0, 0.5, 0.75])
    for k, index in enumerate(torch.cartesian_prod(*(torch.arange(n) for n in cells))):
        u = ((index + (t + 1) / 2) / torch.tensor(cells) * 2 - 1) * half
        assert (net.locate(u)[0] == k).all()
        torch.testing.assert_close(net(u), all_cells[:, k], rtol=1e-4, atol=1e-5)


def test_heads_are_sparse_and_kept():
    net = MultiHead(cells=(4, 4, 4), width=32, depth=1, alpha=5).build(BOX, 1)
    assert net.units.shape == (64, 5) and all(len(set(row.tolist())) == 5 for row in net.units)
    assert len({tuple(sorted(row.tolist())) for row in net.units}) > 32
    assert net.weight.numel() == 64 * 5
    twin = MultiHead(cells=(4, 4, 4), width=32, depth=1, alpha=5).build(BOX, 1)
    twin.load_state_dict(net.state_dict())
    torch.testing.assert_close(twin(unit(9)), net(unit(9)), rtol=0, atol=0)


def test_border_cells_go_on_beyond_the_box():
    net = MultiHead(cells=(2, 2, 2), width=8, depth=1, alpha=8).build(BOX, 1)
    assert torch.isfinite(net(torch.full((1, 3), 5.0))).all() and net.locate(torch.full((1, 3), 5.0))[0].item() == 7


def fitted_error(given, steps, lr, frequency):
    """Relative squared error after a short fit of a wave along x."""
    torch.manual_seed(0)
    net, u = given.build(Box((0, 0, 0), (1, 1, 1)), 1), unit(512)
    target = torch.sin(frequency * u[:, :1])
    optimiser = torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        loss = ((net(u) - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(((net(u).detach() - target) ** 2).mean() / target.var())


@pytest.mark.parametrize("given", [
    Siren(width=64, depth=2, omega_first=10.0), Finer(width=64, depth=2, omega=5.0),
    MLP(width=64, depth=2, encoding=Fourier(size=64, sigma=2.0)), MultiHead(cells=(8, 1, 1), width=64, depth=2, alpha=64),
], ids=lambda s: type(s).__name__)
def test_fits_a_wave_that_a_plain_relu_mlp_cannot(given):
    assert fitted_error(given, 150, 3e-3, 12.0) < 0.1
    assert fitted_error(MLP(width=64, depth=2), 150, 3e-3, 12.0) > 0.4
