"""Forward-mode jets equal autograd and finite differences, in double precision, for every kind of network."""

from __future__ import annotations

import pytest
import torch

from medfields.errors import InputError
from medfields.fields import MLP, Finer, Fourier, GridEncoding, Identity, MultiHead, NeRFEncoding, Siren
from medfields.fields.jet import CPU_CHUNK
from medfields.space import Box

SMOOTH = [
    Siren(width=16, depth=3, omega_first=3.0, omega=3.0),
    Siren(width=16, depth=2, omega=4.0, encoding=Fourier(size=8, sigma=0.5)),
    MLP(width=12, depth=2, activation="silu"),
    MLP(width=12, depth=4, activation="silu", skips=(2, 3), encoding=NeRFEncoding(octaves=2)),
    MLP(width=12, depth=3, activation="silu", split=3, encoding=Fourier("basic")),
    MLP(width=12, depth=2, activation="silu", encoding=Fourier("positional", size=9, sigma=3.0), skips=(1,)),
    MLP(width=12, depth=3, activation="silu", skips=(1,), encoding=Identity()),
    Finer(width=12, depth=2, omega=2.0, bias=1.0),
    MultiHead(cells=(2, 1, 3), width=16, depth=2, alpha=5, activation="silu"),
]
KINKED = [MLP(width=16, depth=3, encoding=Fourier(size=6, sigma=0.5)), MultiHead(cells=(2, 2, 2), width=16, depth=2, alpha=16)]
BOX = Box((0, 0, 0), (30, 20, 25))


def built(given, channels=2):
    torch.manual_seed(3)
    return given.build(BOX, channels).double()


def points(n=7):
    g = torch.Generator().manual_seed(1)
    return (torch.rand(n, 3, generator=g, dtype=torch.float64) * 2 - 1) * torch.tensor([0.99, 0.66, 0.8])


def autograd(net, u):
    """Jacobian and Hessian [n, C, D(, D)] by torch's own double backward."""
    jac = torch.autograd.functional.jacobian
    one = [u[k] for k in range(len(u))]
    J = torch.stack([jac(lambda p: net(p[None])[0], p) for p in one])
    H = torch.stack([jac(lambda p: jac(lambda q: net(q[None])[0], p, create_graph=True), p) for p in one])
    return J, H


def differences(net, u, h=1e-4):
    """The same by central differences."""
    step = h * torch.eye(3, dtype=u.dtype)
    J = torch.stack([(net(u + e) - net(u - e)) / (2 * h) for e in step], -1)
    H = torch.stack([torch.stack([(net(u + a + b) - net(u + a - b) - net(u - a + b) + net(u - a - b)) / (4 * h * h)
                                  for b in step], -1) for a in step], -2)
    return J, H


@pytest.mark.parametrize("given", SMOOTH + KINKED, ids=str)
def test_equals_autograd_and_finite_differences(given):
    net, u = built(given), points()
    v, J, H = net.jet(u, 2)
    torch.testing.assert_close(v, net(u))
    with torch.no_grad():
        J_fd, H_fd = differences(net, u)
    torch.testing.assert_close(J, J_fd, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(H, H_fd, rtol=1e-3, atol=1e-3 * float(1 + H.detach().abs().max()))
    if not isinstance(given, Finer):  # whose training gradient is not its derivative
        J_ad, H_ad = autograd(net, u)
        torch.testing.assert_close(J, J_ad)
        torch.testing.assert_close(H, H_ad)
    v1, J1 = net.jet(u, 1)
    torch.testing.assert_close((v1, J1), (v, J))


@pytest.mark.parametrize("given", [*SMOOTH[:-2], SMOOTH[-1]], ids=str)
def test_can_be_trained_on(given):
    """The gradient of a bending energy plus a Jacobian and a value term, in all parameters and in u, equals double backward."""
    net, u = built(given), points(4).requires_grad_()
    g = torch.Generator().manual_seed(5)
    mix = [torch.randn(shape, dtype=torch.float64, generator=g) for shape in ((4, 2), (4, 2, 3), (4, 2, 3, 3))]

    def loss(v, J, H):
        return (v * mix[0]).sum() + ((J - mix[1]) ** 2).sum() + ((H - mix[2]) ** 2).sum()

    def slow(u):
        v = net(u)
        J = torch.stack([torch.autograd.grad(v[:, c].sum(), u, create_graph=True)[0] for c in range(2)], 1)
        H = torch.stack([torch.stack([torch.autograd.grad(J[:, c, i].sum(), u, create_graph=True)[0] for i in range(3)], 1)
                         for c in range(2)], 1)
        return v, J, H

    wanted = torch.autograd.grad(loss(*slow(u)), [u, *net.parameters()], allow_unused=True, materialize_grads=True)
    got = torch.autograd.grad(loss(*net.jet(u, 2)), [u, *net.parameters()], allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(got, wanted)


def test_first_order_can_be_trained_on():
    net, u = built(SMOOTH[0]), points(5).requires_grad_()
    v = net(u)
    J = torch.stack([torch.autograd.grad(v[:, c].sum(), u, create_graph=True)[0] for c in range(2)], 1)
    wanted = torch.autograd.grad((J**3).sum() + (v**2).sum(), list(net.parameters()), allow_unused=True, materialize_grads=True)
    v, J = net.jet(u, 1)
    got = torch.autograd.grad((J**3).sum() + (v**2).sum(), list(net.parameters()), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(got, wanted)


def test_finer_true_parameter_gradient():
    """The jet's own gradient is the true one: finite differences in a weight."""
    net, u = built(SMOOTH[7]), points(4)
    weight = net.body.layers[1].weight

    def energy():
        v, J, H = net.jet(u, 2)
        return (v**2).sum() + (J**2).sum() + (H**2).sum()

    slope = torch.autograd.grad(energy(), weight)[0][3, 2]
    with torch.no_grad():
        h = 1e-6
        weight[3, 2] += h
        up = energy()
        weight[3, 2] -= 2 * h
        down = energy()
    torch.testing.assert_close(slope, (up - down) / (2 * h), rtol=1e-5, atol=1e-6)


def test_points_beyond_one_sweep_and_any_batch():
    net = built(Siren(width=4, depth=1))
    u = torch.rand(2, CPU_CHUNK, 3, dtype=torch.float64)
    v, J, H = net.jet(u, 2)
    assert v.shape == (2, CPU_CHUNK, 2) and J.shape == (2, CPU_CHUNK, 2, 3) and H.shape == (2, CPU_CHUNK, 2, 3, 3)
    torch.testing.assert_close(H[1, 5], net.jet(u[1, 5], 2)[2])
    torch.testing.assert_close(H, H.mT)
    assert net.jet(u[:, :0], 1)[1].shape == (2, 0, 2, 3)


@pytest.mark.parametrize("order", [0, 3, -1])
def test_other_orders_are_refused(order):
    with pytest.raises(InputError, match="orders 1 and 2"):
        built(Siren(width=4, depth=1)).jet(points(), order)


@pytest.mark.parametrize("given", [
    GridEncoding(levels=4, finest_mm=1.0, coarsest_mm=8.0, log2_table=8),
    MLP(encoding=GridEncoding(levels=4, finest_mm=1.0, coarsest_mm=8.0, log2_table=8), width=8, depth=2, skips=(1,), activation="silu"),
], ids=lambda s: type(s).__name__)
def test_grid_gradient(given):
    """First order: equals autograd, in the value and in the gradient to the table, the weights and u."""
    net, u = built(given), points(9).requires_grad_()
    table = next(p for n, p in net.named_parameters() if n.endswith("table"))
    torch.nn.init.normal_(table)
    net.get_submodule("encoding" if isinstance(given, MLP) else "").set_levels(2.5)
    v = net(u)
    J = torch.stack([torch.autograd.grad(v[:, c].sum(), u, create_graph=True)[0] for c in range(v.shape[1])], 1)
    jets = net.jet(u, 1)
    torch.testing.assert_close(jets, (v, J))
    everything = [u, *net.parameters()]
    wanted = torch.autograd.grad((J**3).sum() + (v**2).sum(), everything, allow_unused=True, materialize_grads=True)
    got = torch.autograd.grad((jets[1]**3).sum() + (jets[0]**2).sum(), everything, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(got, wanted)
    with pytest.raises(InputError, match="no curvature"):
        net.jet(u, 2)


def test_grid_gradient_by_the_compiled_kernel():
    """In single precision the kernels of this machine run; they agree with the twin, which double precision takes."""
    net, u = built(GridEncoding(levels=4, finest_mm=1.0, coarsest_mm=8.0, log2_table=8)), points(50)
    torch.nn.init.normal_(net.table)
    wanted = net.jet(u, 1)
    got = net.float().jet(u.float(), 1)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)
