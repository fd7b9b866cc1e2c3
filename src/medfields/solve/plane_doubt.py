"""How far a subject that was rebuilt from slices may be off: samples of a posterior whose noise is what the slices themselves leave over."""

from __future__ import annotations

import torch

from ..cases.slices import Slices
from ..space import Volume
from .linear import gradient, gradient_adjoint
from .motion import Found
from .plane_system import PlaneSystem
from .run import Run
from .settle import coarsest

ANSWERS, STEPS = 10, 12  # samples, and conjugate gradient steps for each
SHARE = 0.5  # of a slice's thickness: the size of the details that are judged. Finer ones no slice knows for sure anywhere, which would hide the rest
FIRST = 0.005  # weight of the squared gradient in the subject whose roughness is measured


@torch.no_grad()
def uncertainty(case: Slices, found: Found, run: Run) -> Volume:
    """One standard deviation of the subject at the scale of half a slice's thickness, in its unit, on the result's grid.

    The model is Gaussian: sqrt(w) g A c = sqrt(w) y + e, and differences of neighbours are normal with the mean square they have in a subject
    rebuilt by least squares. A sample of its posterior is the least-squares answer to noise of the data and of the differences (Papandreou and
    Yuille, NIPS 2010). As noise of the data serves what that subject leaves over of each slice, with a sign drawn for the slice as a whole (a
    wild bootstrap by clusters: Cameron, Gelbach and Miller, Review of Economics and Statistics 2008), so that slices that lie wrong, and all
    that errs alike within one, count as what they are. Where no slice looks, what is left is the spread of the differences.

    Args:
        case: the slices.
        found: where they lie; those that are worth nothing do not count.
        run: the engine; its seed draws the signs.
    """
    mm = SHARE * coarsest(case)
    coarse = case.coarser(max(1, round(0.8 * mm / case.pixel)))
    system = PlaneSystem(coarse, found, finer=mm / float(case.grid.spacing.max()))
    start = torch.zeros(system.lattice.shape)
    c = system.solver(FIRST, steps=STEPS)(system.adjoint(system.y), start)
    residual, rng = system.residual(c) * system.root, torch.Generator().manual_seed(run.seed)
    noise = float(residual.square().sum() / system.root.square().sum().clamp_min(1e-9))
    rough = float(gradient(c[system.inner]).square().mean())
    smooth = max(noise, 1e-8) / max(rough, 1e-8)
    solve, total = system.solver(smooth, steps=STEPS), torch.zeros_like(c)
    for _ in run.steps(ANSWERS, "uncertainty"):
        sign = torch.randint(0, 2, (len(case.slices),), generator=rng) * 2.0 - 1
        slope = torch.randn((3, *c.shape), generator=rng) * rough**0.5
        b = system.adjoint([residual * sign[system.plane]]) + smooth * gradient_adjoint(slope)
        total += solve(b, start.clone()).square()
    variance = Volume(total / ANSWERS, system.lattice).blurred(mm / 2.3548 * 2).on(case.grid).data[0]  # a few samples tell little of one voxel
    return Volume(system.scale * variance.clamp_min(0).sqrt(), case.grid, case.unit)
