"""What is shared out among threads is the same with any number of them.

In a process of its own: the suite starts Numba with one thread, and it never gets more than it starts with.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

BEGIN = """
import torch
from medfields.kernels.dispatch import use_threads
def same(run, close=0.0):
    results = []
    for n in (1, 2, 3, 3):
        torch.set_num_threads(n)
        assert use_threads() == n
        results.append(run())
        assert torch.get_num_threads() == n  # the workers' own number stays theirs
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert float((a - b).abs().max()) <= close * float(a.abs().max()), (a - b).abs().max()
"""
MLP = """
from medfields.kernels import mlp
x, sizes = torch.randn(40_001, 24), [(64, 24), (64, 64), (1, 64)]
weights, biases = [torch.randn(s) / 6 for s in sizes], [torch.randn(s[0]) / 6 for s in sizes]
for policy in ("fp32", "bf16"):
    mlp.set_policy(policy)
    def run():
        leaves = [t.clone().requires_grad_() for t in (x, *weights, *biases)]
        y = mlp.mlp_forward(leaves[0], leaves[1:4], leaves[4:], "relu")
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]
    same(run)
"""
PLANES = """
from medfields.solve.planes import PlaneNet, PlanePairs, corrected
volume, planes = torch.randn(2, 1, 30, 26, 28), {(0, 1): (True,), (1, 2): (True,)}
net = PlaneNet(8, 2)
for p in net.parameters():
    torch.nn.init.normal_(p, std=0.1)
problem = PlanePairs(net, volume, volume.flip(0), torch.ones(1, 30, 26, 28), planes, 8, 16)
batch = problem.batch(torch.Generator().manual_seed(0))
def run():
    loss = problem.losses(batch, 0.0)["planes"]
    return [loss.detach(), *torch.autograd.grad(loss, list(net.parameters())), corrected(net, volume[0], planes)]
same(run)
"""
ADAM = """
from medfields.kernels.adam import adam_
start, grad = torch.randn(3, 300_001), torch.randn(300_001) * (torch.arange(300_001) // 5000 % 3 == 0)
def run(lazy):
    p, m, v = start.clone().abs()
    adam_(p, grad, m, v, 3, 1e-2, (0.9, 0.99), 1e-8, lazy=lazy)
    return p, m, v
for lazy in (False, True):
    same(lambda: run(lazy))
"""
SLICES = """
import numpy as np
from medfields.operators import SliceOperator
from medfields.space import Grid
lattice = Grid.from_spacing((26, 24, 28), 1.0, origin=(-12, -11, -13))
turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
affine = np.eye(4)
affine[:3, :3] = turn * [1.2, 0.9, 3.0]
affine[:3, 3] = -affine[:3, :3] @ [1, 4.5, 1.5]
operator = SliceOperator(lattice, Grid((2, 10, 4), affine), 2, "gauss", 3.0)  # fewer rows than threads
c, y = torch.randn(lattice.shape), torch.randn(operator.shape)
same(lambda: (operator.apply(c), operator.adjoint(y)), close=1e-6)  # the sum over parts depends on how many there are
"""
WINDOW = """
from medfields.kernels.window import window_sums
x = torch.randn(5, 23, 26, 31)
for radius in (1, 4, 40):
    def run():
        leaf = x.clone().requires_grad_()
        y = window_sums(leaf, radius)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaf)]
    same(run)
"""
TRILINEAR = """
from medfields.kernels.trilinear import trilinear
image, index = torch.randn(2, 20, 21, 22), 26 * torch.rand(20_003, 3) - 2
def run():
    leaf = index.clone().requires_grad_()
    y = trilinear(image, leaf)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaf)]
same(run)
"""


@pytest.mark.parametrize("code", [MLP, PLANES, ADAM, SLICES, WINDOW, TRILINEAR], ids=["mlp", "planes", "adam", "slices", "window", "trilinear"])
def test_as_with_one_thread(code: str) -> None:
    found = subprocess.run([sys.executable, "-c", BEGIN + code], env={**os.environ, "NUMBA_NUM_THREADS": "3"}, capture_output=True, text=True,
                           check=False)
    assert found.returncode == 0, found.stderr[-2000:]
