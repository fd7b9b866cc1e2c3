"""What several answers say together: their mean, their spread, and whether the spread fits what kept measurements show."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases import Projections
from ..fields import Spec, drawing
from .projections import ProjectionFit


class Posterior(ProjectionFit):
    """mean_r (A f - y)_r^2 / (2 noise^2) + rate / R sum_n |D f|_1 / level: minus the log posterior of a field, for each of R rays.

    While it trains, units of `Dropout` networks are left out at random.

    Args:
        spec, case, held_out: as in `ProjectionFit`.
        noise: sd of a line integral.
        rate: of the Laplace prior on the differences of neighbours on the lattice, in levels.
    """

    def __init__(self, spec: Spec, case: Projections, noise: float, rate: float, held_out: float):
        super().__init__(spec, case, held_out=held_out)
        self.noise, self.rate = noise, rate

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        with drawing(self):
            lattice = self.on_lattice()
        return self.terms(lattice)

    def terms(self, lattice: Tensor) -> dict[str, Tensor]:
        z = (self.projector(lattice).reshape(-1, 1) - self.data) / self.noise
        steps = torch.stack([lattice.diff(dim=d).abs().sum() for d in range(3)]).sum()
        return {"likelihood": (self.weight * z[:, 0].square()).sum() / 2 / len(z), "variation": self.rate * steps / self.case.level / len(z)}

    def energy(self) -> Tensor:
        """Minus the log posterior, with a normal prior of sd 1 on each weight: what a chain walks on."""
        weights = torch.stack([p.square().sum() for p in self.field.parameters()]).sum() / 2
        return len(self.data) * torch.stack(list(self.terms(self.on_lattice()).values())).sum() + weights


class Spread(nn.Module):
    """Mean and variance of images, and of what each image says that the kept-aside views would measure.

    Args:
        case: whose grid the images lie on.
        kept: views that no image was fitted to, or None.
    """

    count: Tensor
    mean: Tensor
    square: Tensor
    ray_mean: Tensor
    ray_square: Tensor

    def __init__(self, case: Projections, kept: Projections | None):
        super().__init__()
        self.case, self.kept = case, kept
        self.projector = None if kept is None else kept.projector()
        rays = (0,) if kept is None else kept.data.shape
        for name, shape in (("count", ()), ("mean", case.grid.shape), ("square", case.grid.shape), ("ray_mean", rays), ("ray_square", rays)):
            self.register_buffer(name, torch.zeros(shape))

    @torch.no_grad()
    def add(self, image: Float[Tensor, "I J K"]) -> None:
        """One more answer (Welford, Technometrics 1962)."""
        self.count += 1
        pairs = [(self.mean, self.square, image)]
        if self.projector is not None:
            pairs.append((self.ray_mean, self.ray_square, self.projector.apply(image)))
        for mean, square, value in pairs:
            before = value - mean
            mean += before / self.count
            square += before * (value - mean)

    @property
    def std(self) -> Float[Tensor, "I J K"]:
        """Of the images; 0 for a single one."""
        return (self.square / (self.count - 1).clamp_min(1)).sqrt()

    def calibrated(self, noise: float) -> tuple[Float[Tensor, "I J K"], float]:
        """The std, times one factor by which the spread of the kept rays matches their errors, beyond noise of this sd; and the factor.

        factor^2 = (mean (A x - y)^2 - noise^2) / mean var(A x). Of one answer, or equal ones, it is the constant that white errors
        of the image would need to explain the kept rays (white errors are tried out as random signs). Without kept views: 1.
        """
        if self.kept is None:
            return self.std, 1.0
        weight, clean = self.kept.weight.to(self.mean), self.kept.clean.to(self.mean)
        beyond = ((weight * (self.ray_mean - clean).square()).sum() / weight.sum() - noise**2).clamp_min(0)
        variance = (weight * self.ray_square).sum() / weight.sum() / (self.count - 1).clamp_min(1)
        if variance > 1e-12 * (weight * clean.square()).mean():
            factor = (beyond / variance).sqrt()
            return factor * self.std, float(factor)
        assert self.projector is not None
        signs = torch.randint(0, 2, self.mean.shape, generator=torch.Generator().manual_seed(0)).to(self.mean) * 2 - 1
        white = (weight * self.projector.apply(signs).square()).sum() / weight.sum()
        return torch.full_like(self.mean, float((beyond / white).sqrt())), 1.0


def noise_of(case: Projections, floor: float) -> float:
    """The sd of a line integral: from the photons if they are known, else from second differences along the detector's rows.

    Photons: the root of the mean of exp(p) / I0. Differences: the median of |p_(c-1) - 2 p_c + p_(c+1)| / sqrt(6) / 0.6745, which edges
    of the object hardly move. At least `floor`.
    """
    good = case.weight > 0
    if case.photons:
        return max(floor, float((case.clean[good].clamp(0, 12).exp() / case.photons).mean().sqrt()))
    if case.data.shape[2] < 3:
        return floor
    d = case.clean[..., 2:] - 2 * case.clean[..., 1:-1] + case.clean[..., :-2]
    d = d[good[..., 2:] & good[..., 1:-1] & good[..., :-2]]
    return max(floor, float(d.abs().median()) / 6**0.5 / 0.6745) if len(d) else floor
