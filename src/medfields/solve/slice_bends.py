"""Slices of a subject that bends: beside its pose every slice has a displacement of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..fields import GridEncoding
from ..losses import orthogonality
from ..space import Box

OWN = 8  # numbers that a slice has for itself
FINEST, COARSEST = 8.0, 32.0  # mm, cells of the grid
STEP = 2.0  # mm of the differences that slopes are told from
CHECKED = 1024  # places where they are


class Bends(nn.Module):
    """u(x, n) in mm: a coarse hash grid of the place and numbers of the slice, through a small network (Xu et al., IEEE TMI 2023).

    Args:
        box: of the subject.
        slices: how many there are.
        width: of the network.
    """

    centre: Tensor
    radius: Tensor

    def __init__(self, box: Box, slices: int, width: int = 64):
        super().__init__()
        self.encoding = GridEncoding.growing(1.3819, FINEST, COARSEST, 14, 4).build(box, 3)
        self.own = nn.Parameter(0.1 * torch.randn(slices, OWN))
        last = nn.Linear(width, 3)
        self.net = nn.Sequential(nn.Linear(self.encoding.n_out + OWN, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), last)
        for parameter in last.parameters():
            nn.init.uniform_(parameter, -1e-4, 1e-4)
        self.register_buffer("centre", torch.as_tensor(box.centre).float(), persistent=False)
        self.register_buffer("radius", torch.as_tensor(box.radius).float(), persistent=False)

    def forward(self, x: Float[Tensor, "S 3"], plane: Int[Tensor, "S"]) -> Float[Tensor, "S 3"]:
        read = self.encoding((x - self.centre) / self.radius)
        moved: Tensor = self.net(torch.cat([read, self.own.index_select(0, plane)], 1))
        return moved

    def stretch(self, x: Float[Tensor, "S 3"], plane: Int[Tensor, "S"]) -> Float[Tensor, ""]:
        """Mean |J^T J - 1|^2 of x + u(x) at the first `CHECKED` places: what bending costs, and turning does not."""
        x, plane = x[:CHECKED].detach(), plane[:CHECKED]
        here = self.forward(x, plane)
        steps = STEP * torch.eye(3, device=x.device, dtype=x.dtype)
        slope = torch.stack([(self.forward(x + step, plane) - here) / STEP for step in steps], -1)
        return orthogonality(torch.eye(3, device=x.device, dtype=x.dtype) + slope)
