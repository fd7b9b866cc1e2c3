"""The grid encoding: the twin against its definition, the compiled kernels against the twin."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from medfields.errors import InputError, UnknownName
from medfields.kernels import dispatch, memory
from medfields.kernels.grid import grid_encode
from medfields.kernels.grid_layout import PRIMES, GridLayout
from medfields.kernels.grid_torch import grid_encode_torch

MIXED = {  # dense and hashed levels in each; unequal axes where there are several
    1: GridLayout(((5,), (40,), (100,)), log2_table=6, features=2),
    2: GridLayout(((4, 6), (9, 7), (40, 30)), log2_table=8, features=2),
    3: GridLayout(((4, 3, 5), (8, 8, 8), (40, 30, 20)), log2_table=10, features=2),
    4: GridLayout(((2, 3, 2, 4), (3, 3, 3, 3), (9, 12, 10, 8)), log2_table=9, features=2),
}


def points(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Inside, outside and exactly on the borders and vertices."""
    rng = torch.Generator().manual_seed(seed)
    u = torch.rand(n, dim, generator=rng) * 1.4 - 0.2
    u[: n // 8] = u[: n // 8].clamp(0, 1).round()
    u[n // 8 : n // 4] = (u[n // 8 : n // 4].clamp(0, 1) * 4).round() / 4
    return u


def test_levels_are_dense_while_they_fit_and_hashed_above() -> None:
    layout = MIXED[3]
    assert layout.hashed == (False, False, True)
    assert layout.offsets == (0, 5 * 4 * 6, 5 * 4 * 6 + 9**3, 5 * 4 * 6 + 9**3 + 1024) and layout.rows == layout.offsets[-1]
    assert layout.multipliers(0) == (24, 6, 1) and layout.multipliers(2) == PRIMES[:3]
    assert GridLayout.geometric(3, 5, 16, 256, 19).resolutions == tuple((n,) * 3 for n in (16, 32, 64, 128, 256))
    assert hash(layout) == hash(GridLayout(layout.resolutions, 10, 2))


@pytest.mark.parametrize("wrong", [
    {"resolutions": ()}, {"resolutions": ((4,), (4, 4))}, {"resolutions": ((4,) * 5,)}, {"resolutions": ((0, 4),)},
    {"resolutions": ((4,),), "log2_table": 31}, {"resolutions": ((4,),), "features": 0},
])
def test_a_layout_that_cannot_be_meant_is_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        GridLayout(**{"log2_table": 10, **wrong})


@pytest.mark.parametrize("encode", [grid_encode_torch, grid_encode])
def test_a_dense_level_is_linear_interpolation_of_a_lattice(encode) -> None:
    for cells in ((5, 7), (5, 7, 6)):
        layout = GridLayout((cells,), log2_table=12, features=3)
        table, u = torch.randn(layout.rows, 3), points(400, len(cells))
        lattice = table.reshape(*(n + 1 for n in cells), 3).movedim(-1, 0)[None]
        at = (2 * u - 1).flip(-1).reshape(1, *(1,) * (len(cells) - 1), -1, len(cells))
        expected = F.grid_sample(lattice, at, align_corners=True, padding_mode="border").reshape(3, -1).T
        torch.testing.assert_close(encode(u, table, layout), expected, atol=1e-5, rtol=0)


def test_a_hashed_level_follows_its_formula() -> None:
    layout = MIXED[4]
    table, u = torch.randn(layout.rows, 2), torch.rand(1, 4)
    x = u[0] * torch.tensor(layout.resolutions[2])
    base, expected = x.floor().long().tolist(), torch.zeros(2)
    for corner in itertools.product((0, 1), repeat=4):
        row, weight = 0, 1.0
        for d in range(4):
            row ^= (base[d] + corner[d]) * PRIMES[d] % 2**32
            weight *= float(x[d]) - base[d] if corner[d] else 1 - float(x[d]) + base[d]
        expected += weight * table[layout.offsets[2] + row % 2**9]
    torch.testing.assert_close(grid_encode_torch(u, table, layout)[0, 4:], expected)


@pytest.mark.parametrize(("dim", "features"), [(1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (4, 2)])
@pytest.mark.parametrize("mask", [None, (0.5, 1.0, 0.0)])
def test_numba_agrees_with_the_twin(dim: int, features: int, mask: tuple[float, ...] | None) -> None:
    layout = GridLayout(MIXED[dim].resolutions, MIXED[dim].log2_table, features)
    rng = torch.Generator().manual_seed(1)
    table, weight = torch.randn(layout.rows, features, generator=rng), torch.randn(700, layout.width, generator=rng)
    results = []
    for encode in (grid_encode, grid_encode_torch):
        u, t = points(700, dim).requires_grad_(), table.clone().requires_grad_()
        out = encode(u, t, layout, None if mask is None else torch.tensor(mask))
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), (u, t))))
    for ours, twin in zip(*results, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5 * float(twin.abs().max()))


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_the_twin_is_differentiable_twice(dim: int) -> None:
    layout = GridLayout(((2,) * dim, (3,) * dim), log2_table=3, features=2)
    rng = torch.Generator().manual_seed(2)
    u = (0.03 + 0.28 * torch.rand(3, dim, generator=rng, dtype=torch.float64)).requires_grad_()  # inside one cell of both levels
    table = torch.randn(layout.rows, 2, generator=rng, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, t: grid_encode_torch(u, t, layout), (u, table))
    assert torch.autograd.gradgradcheck(lambda u, t: grid_encode_torch(u, t, layout), (u, table))


def test_a_gradient_of_the_kernel_can_be_differentiated() -> None:
    layout, table = MIXED[3], torch.randn(MIXED[3].rows, 2)
    found = []
    for encode in (grid_encode, grid_encode_torch):
        u, t = points(64, 3).requires_grad_(), table.clone().requires_grad_()
        slope, = torch.autograd.grad((encode(u, t, layout) ** 2).sum(), u, create_graph=True)
        found.append(torch.autograd.grad((slope**2).sum(), (u, t)))
    for ours, twin in zip(*found, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5 * float(twin.abs().max()))


def test_outside_the_cube_the_border_value_holds_without_a_gradient() -> None:
    layout, table = MIXED[2], torch.randn(MIXED[2].rows, 2)
    u = torch.tensor([[-0.5, 0.3], [0.0, 0.3], [1.7, 0.3], [1.0, 0.3]]).requires_grad_()
    out = grid_encode(u, table, layout)
    assert torch.equal(out[0], out[1]) and torch.equal(out[2], out[3])
    slope, = torch.autograd.grad(out.sum(), u)
    assert (slope[[0, 2], 0] == 0).all() and (slope[[0, 2], 1] != 0).all() and (slope[[1, 3]] != 0).all()


@pytest.mark.parametrize("encode", [grid_encode_torch, grid_encode])
def test_nan_and_infinity_are_seen_and_read_no_foreign_memory(encode) -> None:
    layout = MIXED[3]
    u = torch.tensor([[0.5, float("nan"), 0.5], [float("inf"), -float("inf"), 0.5], [0.2, 0.2, 0.2]]).requires_grad_()
    table = torch.randn(layout.rows, 2).requires_grad_()
    out = encode(u, table, layout)
    assert out[0].isnan().all() and out[1:].isfinite().all()
    out[1:].sum().backward()


def test_the_same_input_gives_the_same_bytes_with_any_number_of_threads() -> None:
    """In a process of its own: Numba never has more threads than it starts with, and the suite starts it with one."""
    found = subprocess.run([sys.executable, "-c", THREADS], env={**os.environ, "NUMBA_NUM_THREADS": "4"}, capture_output=True, text=True,
                           check=False)
    assert found.returncode == 0, found.stderr[-2000:]


THREADS = """
import torch
from medfields.kernels.dispatch import use_threads
from medfields.kernels.grid import grid_encode
from medfields.kernels.grid_layout import GridLayout
from medfields.kernels.grid_torch import grid_encode_torch
layout = GridLayout(((4, 3, 5), (8, 8, 8), (40, 30, 20)), log2_table=10, features=2)  # 3 levels: shared out evenly by 1 and 3 threads only
points, table, weight = torch.rand(20_001, 3) * 1.2 - 0.1, torch.randn(layout.rows, 2), torch.randn(20_001, layout.width)
def run(encode):
    u, t = points.clone().requires_grad_(), table.clone().requires_grad_()
    out = encode(u, t, layout)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), (u, t))]
results = []
for n in (1, 2, 3, 4, 4):
    torch.set_num_threads(n)
    assert use_threads() == n
    results.append(run(grid_encode))
assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
for a, b in zip(results[0], run(grid_encode_torch)):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_used_again_only_when_nobody_uses_it(dtype: torch.dtype) -> None:
    shape = (memory.SMALL, 3)
    first = memory.empty(shape, dtype)
    place = first.data_ptr()
    assert first.shape == shape and first.dtype == dtype and place % 64 == 0
    del first
    second = memory.empty(shape, dtype)
    assert second.data_ptr() == place
    part = second.detach()[5:]
    del second
    assert memory.empty(shape, dtype).data_ptr() != place
    del part
    assert place in {t.data_ptr() for t in [memory.empty(shape, dtype) for _ in range(3)]}


def test_memory_that_is_kept_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_held", [])
    monkeypatch.setattr(memory, "LIMIT", 3 * memory.SMALL)
    alive = [memory.empty((memory.SMALL // 4,)) for _ in range(5)]
    assert len(memory._held) == 2 and len({t.data_ptr() for t in alive}) == 5


def test_gradients_that_are_still_in_use_are_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMALL", 0)
    layout, u = MIXED[3], points(100, 3)
    table = torch.randn(layout.rows, 2).requires_grad_()

    def gradient(scale: float) -> torch.Tensor:
        return torch.autograd.grad((scale * grid_encode(u, table, layout)).sum(), table)[0]

    first = gradient(1.0)
    kept = first.clone()
    second = gradient(2.0)
    assert torch.equal(first, kept) and torch.equal(second, 2 * kept)
    alias = second.detach()[3:]
    del first, second
    assert torch.equal(gradient(4.0), 4 * kept) and torch.equal(alias, 2 * kept[3:])
    for _ in range(2):
        grid_encode(u, table, layout).sum().backward()  # adds up
    torch.testing.assert_close(table.grad, 2 * kept)


def test_strided_and_empty_input() -> None:
    layout = MIXED[3]
    table, u = torch.randn(2, layout.rows).T, points(64, 6)[:, ::2]
    torch.testing.assert_close(grid_encode(u, table, layout), grid_encode_torch(u, table, layout), rtol=1e-4, atol=1e-5)
    nobody, rows = torch.empty(0, 3, requires_grad=True), table.clone().requires_grad_()
    empty = grid_encode(nobody, rows, layout)
    empty.sum().backward()
    assert empty.shape == (0, layout.width) and rows.grad is not None and not rows.grad.any()


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    layout = MIXED[2]
    with pytest.raises(InputError):
        grid_encode(torch.rand(4, 3), torch.zeros(layout.rows, 2), layout)
    with pytest.raises(InputError):
        grid_encode(torch.rand(4, 2), torch.zeros(layout.rows - 1, 2), layout)
    with pytest.raises(InputError):
        grid_encode(torch.rand(4, 2), torch.zeros(layout.rows, 2), layout, torch.ones(2))


def test_the_implementation_follows_type_and_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    monkeypatch.delenv("MEDFIELDS_KERNELS", raising=False)
    assert dispatch.backend(single) == "numba" and dispatch.backend(single, double) == "torch"
    monkeypatch.setenv("MEDFIELDS_KERNELS", "torch")
    assert dispatch.backend(single) == "torch"
    monkeypatch.setenv("MEDFIELDS_KERNELS", "triton")
    assert dispatch.backend(single) == "torch"
    monkeypatch.setenv("MEDFIELDS_KERNELS", "numbat")
    with pytest.raises(UnknownName, match="numba"):
        dispatch.backend(single)


def test_a_kernel_that_cannot_be_kept_on_disk_still_runs() -> None:
    scope: dict = {}
    exec("def double(x):\n    return 2 * x", scope)  # has no file, so Numba finds no place for a cache
    assert dispatch.jit()(scope["double"])(21) == 42


def test_triton_agrees_with_the_twin() -> None:
    """In Triton's interpreter, in a process of its own, as the interpreter is chosen when Triton is imported."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed; it comes with the CUDA builds of torch")
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}
    found = subprocess.run([sys.executable, "-c", TRITON], env=interpreted, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]


TRITON = """
import torch
from medfields.kernels import grid_triton
from medfields.kernels.grid_layout import GridLayout
from medfields.kernels.grid_torch import grid_encode_torch
rng = torch.Generator().manual_seed(0)
for dim in (1, 2, 3, 4):
    for features in (1, 2):
        layout = GridLayout(((4,) * dim, (6,) * dim, (40,) * dim), log2_table=10 if dim > 1 else 4, features=features)
        assert layout.hashed[2] and not layout.hashed[0]
        u = torch.rand(300, dim, generator=rng) * 1.4 - 0.2
        u[:40] = u[:40].clamp(0, 1).round()
        table, mask = torch.randn(layout.rows, features, generator=rng), torch.tensor([1.0, 0.0, 0.5])
        weight = torch.randn(300, layout.width, generator=rng)
        v, t = u.clone().requires_grad_(), table.clone().requires_grad_()
        out = grid_encode_torch(v, t, layout, mask)
        slopes = torch.autograd.grad((out * weight).sum(), (v, t))
        ours = (grid_triton.forward(u, table, layout, mask), grid_triton.point_gradient(u, table, weight, layout, mask),
                grid_triton.table_gradient(u, weight, layout, mask))
        for a, b in zip(ours, (out, *slopes)):
            torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5 * float(b.abs().max()))
u[0, 0] = float("nan")
assert grid_triton.forward(u, table, layout, mask)[0, [0, 4]].isnan().all()
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_twin() -> None:
    layout, rng = MIXED[3], torch.Generator().manual_seed(3)
    table, weight = torch.randn(layout.rows, 2, generator=rng).cuda(), torch.randn(700, layout.width, generator=rng).cuda()
    results = []
    for encode in (grid_encode, grid_encode_torch):
        u, t = points(700, 3).cuda().requires_grad_(), table.clone().requires_grad_()
        out = encode(u, t, layout)
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), (u, t))))
    for ours, twin in zip(*results, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5 * float(twin.abs().max()))
