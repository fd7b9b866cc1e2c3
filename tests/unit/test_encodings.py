"""Encodings say what their formulas say."""

from __future__ import annotations

import math

import pytest
import torch

from medfields.errors import InputError
from medfields.fields import MLP, Fourier, GridEncoding, Identity, NeRFEncoding
from medfields.space import Box

BOX = Box((0, 0, 0), (10, 10, 10))
U = torch.tensor([[0.3, -0.7, 0.1], [-1.0, 1.0, 0.0]])


def test_identity():
    torch.testing.assert_close(Identity().build(BOX, 1)(U), U)


def test_basic():
    v = (U + 1) / 2
    wanted = torch.cat([torch.cos(2 * math.pi * v), torch.sin(2 * math.pi * v)], -1)
    torch.testing.assert_close(Fourier("basic").build(BOX, 1)(U), wanted)


def test_positional_frequencies():
    net = Fourier("positional", size=12, sigma=16.0).build(BOX, 1)
    rows = net.frequencies
    assert rows.shape == (12, 3) and net.n_out == 24
    assert ((rows != 0).sum(1) == 1).all()
    for axis in range(3):
        torch.testing.assert_close(rows[rows[:, axis] != 0, axis], torch.tensor([1.0, 2.0, 4.0, 8.0]))


def test_gaussian_bandwidth_and_draw():
    torch.manual_seed(0)
    net = Fourier("gaussian", size=4000, sigma=3.0).build(BOX, 1)
    assert net.frequencies.std().item() == pytest.approx(3.0, rel=0.03) and abs(net.frequencies.mean().item()) < 0.1
    v = (U + 1) / 2
    torch.testing.assert_close(net(U)[:, :4000], torch.cos(2 * math.pi * v @ net.frequencies.T), rtol=1e-3, atol=1e-3)


def test_gaussian_matrix_is_saved_and_not_trained():
    a, b = (Fourier(size=8).build(BOX, 1) for _ in range(2))
    assert not torch.equal(a(U), b(U)) and not list(a.parameters())
    b.load_state_dict(a.state_dict())
    torch.testing.assert_close(a(U), b(U), rtol=0, atol=0)


def test_nerf_octaves():
    net = NeRFEncoding(octaves=3).build(Box((0,), (1,)), 1)
    u = torch.tensor([[0.3]])
    wanted = [0.3, *(math.cos(2**k * math.pi * 0.3) for k in range(3)), *(math.sin(2**k * math.pi * 0.3) for k in range(3))]
    torch.testing.assert_close(net(u)[0], torch.tensor(wanted))
    assert NeRFEncoding().build(BOX, 1).n_out == 63


GRID = GridEncoding(levels=4, finest_mm=2.0, coarsest_mm=16.0, log2_table=9)


def test_levels_in_millimetres():
    """Cells of 16, 8, 4 and 2 mm on a box of 64 x 32 x 20 mm; 9 x 5 x 4 vertices fit in 2^9 rows, 17 x 9 x 6 do not."""
    layout = GRID.layout(Box((0, 0, 0), (64, 32, 20)))
    assert layout.resolutions == ((4, 2, 2), (8, 4, 3), (16, 8, 5), (32, 16, 10))
    assert layout.hashed == (False, False, True, True)


def test_time_is_cut_as_finely_as_space_in_unit_coordinates():
    layout = GRID.layout(Box((0, 0, 0, 0.0), (64, 64, 32, 0.9)))
    assert layout.resolutions[-1] == (32, 32, 16, 32)


def test_dense_level_interpolates_its_vertices_in_the_box():
    """A level whose vertices hold 3x - 2y + z is that function everywhere in the box, and continues with the border value."""
    box = Box((-10, 0, 5), (22, 16, 29))
    net = GridEncoding(levels=1, finest_mm=8.0, coarsest_mm=8.0, features=1).build(box, 1)
    axes = zip(box.lo, box.hi, net.layout.resolutions[0], strict=True)
    vertices = torch.cartesian_prod(*(torch.linspace(a, b, n + 1) for a, b, n in axes))
    slope = torch.tensor([3.0, -2.0, 1.0])
    with torch.no_grad():
        net.table.copy_((vertices @ slope)[:, None])
    x = box.random(50, torch.Generator().manual_seed(0))
    unit = lambda x: (x - torch.tensor(box.centre).float()) / torch.tensor(box.radius).float()  # noqa: E731
    torch.testing.assert_close(net(unit(x))[:, 0], x @ slope)
    _, jacobian = net.jet(unit(x), 1)
    torch.testing.assert_close(jacobian[:, 0], (slope * 16).expand(50, 3), rtol=1e-3, atol=1e-3)
    beyond = torch.tensor([[30.0, 8.0, 60.0]])
    torch.testing.assert_close(net(unit(beyond)), net(unit(torch.tensor([[22.0, 8.0, 29.0]]))))
    torch.testing.assert_close(net.jet(unit(beyond), 1)[1][0, 0], torch.tensor([0.0, -32.0, 0.0]), rtol=1e-3, atol=1e-3)


def test_levels_fade_in():
    net = GRID.build(BOX, 1)
    everything = net(U)
    net.set_levels(2.25)
    torch.testing.assert_close(net.level_mask, torch.tensor([1.0, 1.0, 0.25, 0.0]))
    torch.testing.assert_close(net(U), everything * torch.tensor([1, 1, 1, 1, 0.25, 0.25, 0, 0]))
    torch.testing.assert_close(net.jet(U, 1)[0], net(U))
    assert (net.jet(U, 1)[1][:, 6:] == 0).all()
    net.set_levels(99)
    torch.testing.assert_close(net(U), everything)
    assert "level_mask" in net.state_dict()


def test_growth_gives_the_number_of_levels():
    """NeSVoR: from 16 mm to 0.5 mm by 1.3819."""
    made = GridEncoding.growing(1.3819, finest_mm=0.5, coarsest_mm=16.0, log2_table=19)
    assert made.levels == 12 and made.log2_table == 19
    assert GridEncoding.growing(2.0, 1.0, 8.0).levels == 4
    assert GridEncoding.growing(2.0, 1.0, 1.0).levels == 1


@pytest.mark.parametrize("make", [
    lambda: GridEncoding(finest_mm=4.0, coarsest_mm=2.0), lambda: GridEncoding(log2_table=27), lambda: GridEncoding(levels=0),
    lambda: GridEncoding(levels=32, features=16, log2_table=26), lambda: GridEncoding.growing(1.0, 1.0, 2.0),
    lambda: GridEncoding(finest_mm=1e-6, coarsest_mm=1e-6).build(BOX, 1), lambda: GRID.build(Box((0,) * 5, (1,) * 5), 1),
    lambda: GRID.build(BOX, 1).jet(U, 2), lambda: MLP(encoding=GRID, width=4).build(BOX, 1).jet(U, 2),
])
def test_what_a_grid_cannot_be(make):
    with pytest.raises(InputError):
        make()
