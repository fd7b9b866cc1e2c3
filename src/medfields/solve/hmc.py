"""Hamiltonian Monte Carlo: draws from the posterior of a problem's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError


class HMC(nn.Module):
    """A chain on all parameters of a module, with density proportional to exp(-energy) (Neal 2011, algorithm of section 5.3.2).

    While burning in, the step size follows the acceptance rate by dual averaging (Hoffman & Gelman, JMLR 2014, section 3.2, their
    constants); afterwards its average stays. Each trajectory's step is jittered by a fifth, so that none closes on itself. Random numbers
    come from torch's global generator, which belongs to the stage of `Run.steps`.

    Args:
        module: its parameters are the position; they are where the chain starts, and where it stands after each `step`.
        energy: of the module as it is; a differentiable scalar.
        burn: number of steps that adapt.
        leaps: of a trajectory.
        size: of the first leap.
        target: acceptance rate that is aimed at.
    """

    log_size: Tensor
    log_average: Tensor
    shortfall: Tensor
    count: Tensor
    accepted: Tensor

    def __init__(self, module: nn.Module, energy: Callable[[], Tensor], burn: int, leaps: int, size: float = 1e-3, target: float = 0.8):
        super().__init__()
        if burn < 1 or leaps < 1 or not size > 0:
            raise InputError(f"a chain needs at least one step of burn-in and one leap, got {burn} and {leaps}, of size {size:g}")
        self.module, self.energy, self.burn, self.leaps, self.size, self.target = module, energy, burn, leaps, size, target
        for name, value in (("log_size", math.log(size)), ("log_average", 0.0), ("shortfall", 0.0), ("count", 0.0), ("accepted", 0.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    @property
    def acceptance(self) -> float:
        """Mean probability of acceptance after the burn-in."""
        return float(self.accepted / (self.count - self.burn).clamp_min(1))

    def step(self) -> Tensor:
        """One trajectory, accepted or not; gives the energy where the chain stands."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in parameters]
        momentum = [torch.randn_like(p) for p in parameters]
        adapting = bool(self.count < self.burn)
        size = float((self.log_size if adapting else self.log_average).exp()) * (0.8 + 0.4 * float(torch.rand(())))
        first, force = self._force(parameters)
        kinetic = self._kinetic(momentum)
        energy = first
        for _ in range(self.leaps):
            self._add(momentum, force, -size / 2)
            self._add(parameters, momentum, size)
            energy, force = self._force(parameters)
            self._add(momentum, force, -size / 2)
        gain = float(first + kinetic - energy - self._kinetic(momentum))
        chance = math.exp(min(0.0, gain)) if math.isfinite(gain) else 0.0
        if float(torch.rand(())) >= chance:
            with torch.no_grad():
                for p, q in zip(parameters, start, strict=True):
                    p.copy_(q)
            energy = first
        self._adapt(chance, adapting)
        return energy

    def _adapt(self, chance: float, adapting: bool) -> None:
        self.count += 1
        if not adapting:
            self.accepted += chance
            return
        t = float(self.count)
        self.shortfall.mul_(1 - 1 / (t + 10)).add_((self.target - chance) / (t + 10))
        self.log_size.copy_(math.log(10 * self.size) - math.sqrt(t) / 0.05 * self.shortfall)
        share = t**-0.75
        self.log_average.mul_(1 - share).add_(share * self.log_size)

    def _force(self, parameters: list[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
        energy = self.energy()
        return energy.detach(), list(torch.autograd.grad(energy, parameters))

    @staticmethod
    def _kinetic(momentum: list[Tensor]) -> Tensor:
        return torch.stack([m.square().sum() for m in momentum]).sum() / 2

    @staticmethod
    @torch.no_grad()
    def _add(to: list[nn.Parameter] | list[Tensor], what: list[Tensor] | list[nn.Parameter], times: float) -> None:
        for a, b in zip(to, what, strict=True):
            a.add_(b, alpha=times)
