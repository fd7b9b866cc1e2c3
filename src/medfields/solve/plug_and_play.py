"""Plug and play: a denoiser in the place of a penalty's proximal step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .tomography import RaySystem

WIDE = 32  # pixels


class PlugAndPlay(nn.Module):
    """A reconstruction and a denoiser by turns, half-quadratic splitting with falling noise levels; a `step` is one turn.

        z = D(x, sigma),   x = argmin_{x >= 0} 1/2 |A x - y|_W^2 + mu/2 |x - z|^2,   mu = trust s^2 / sigma^2,  s^2 = |W (A z - y)|^2 / |W|

    Venkatakrishnan, Bouman & Wohlberg, GlobalSIP 2013; the levels of Zhang and Others, IEEE TPAMI 2022 (DPIR), who are told the noise of y.
    Here it is what the denoised image leaves of the data: with real noise s comes to rest there, without noise it falls on with sigma.
    The second problem is solved by some conjugate gradients from z, then cut off at zero. From step to step the image is mirrored, transposed and, if
    a volume, cut into planes across another axis.

    Args:
        system: A, y and W; x counts in `system.level`.
        denoise: D, a function of the image, sigma and the axis across which its planes lie.
        x: start.
        steps: there will be.
        first, last: sigma of the first and the last of them, between which it falls geometrically.
        trust: see above.
        gradients: conjugate ones in a step.
    """

    x: Tensor
    count: Tensor
    residual: Tensor

    def __init__(self, system: RaySystem, denoise: Callable[[Tensor, float, int], Tensor], x: Tensor, steps: int, first: float, last: float,
                 trust: float, gradients: int = 6):
        super().__init__()
        self.system, self.denoise, self.steps, self.first, self.last = system, denoise, steps, first, last
        self.trust, self.gradients = trust, gradients
        # Only where a plane is wide enough to look like an image.
        self.axes = [d for d in (2, 1, 0) if min(n for e, n in enumerate(x.shape) if e != d) >= WIDE] or [2]
        self.rays = float(system.weight.sum())
        self.size = float((system.weight * system.y).norm())
        self.register_buffer("x", x)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("residual", torch.ones(()))

    @torch.no_grad()
    def step(self) -> None:
        """One turn. `residual` is |W (A z - y)| / |W y|."""
        k = int(self.count)
        sigma = self.first * (self.last / self.first) ** (k / max(1, self.steps - 1))
        z = self.turned(k, sigma)
        misfit = self.system.residual(z)
        self.residual = misfit.norm() / self.size
        mu = self.trust * float(misfit.square().sum()) / self.rays / sigma**2
        self.x = self.nearest(z, misfit, mu).clamp_min(0)
        self.count += 1

    def turned(self, k: int, sigma: float) -> Float[Tensor, "I J K"]:
        """z of the k-th step: mirrored and transposed planes by turns, so that what a network does to one orientation does not add up."""
        axis = self.axes[k % len(self.axes)]
        a, b = (d for d in range(3) if d != axis)
        kind = k // len(self.axes) % 8
        mirrored = [d for d, bit in ((a, 1), (b, 2)) if kind & bit]
        x = self.x.flip(mirrored)
        z = self.denoise(x.transpose(a, b), sigma, axis).transpose(a, b) if kind & 4 else self.denoise(x, sigma, axis)
        return z.flip(mirrored).contiguous()

    def nearest(self, z: Float[Tensor, "I J K"], misfit: Float[Tensor, "V R C"], mu: float) -> Float[Tensor, "I J K"]:
        """The x that explains the data and is near z, of which `misfit` = W (y - A z) is known."""
        s = self.system
        x, r = z, s.adjoint(misfit)
        p, power = r, r.square().sum()
        for _ in range(self.gradients):
            h = s.adjoint(s.weight * s.apply(p)) + mu * p
            a = power / (p * h).sum().clamp_min(1e-30)
            x, r = x + a * p, r - a * h
            power, before = r.square().sum(), power
            p = r + power / before.clamp_min(1e-30) * p
        return x
