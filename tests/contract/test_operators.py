"""Every operator keeps the promises of `medfields.testing`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medfields.operators import SliceAverage, SliceOperator
from medfields.space import Grid
from medfields.testing import check_adjoint, check_operator


@pytest.mark.parametrize("profile", ["gauss", "box", "none"])
def test_slice_average(profile: str) -> None:
    rng = torch.Generator().manual_seed(0)
    operator = SliceAverage(profile, [4.0, 6.0], np.eye(3)[:2], 8).eval()
    at = {
        "x": torch.randn(50, 3, generator=rng) * 20,
        "stack": torch.randint(2, (50,), generator=rng),
        "channel": torch.zeros(50, dtype=torch.long),
    }
    check_operator(operator, at)


@pytest.mark.parametrize("exact", [True, False], ids=["separable", "walking"])
@pytest.mark.parametrize("profile", ["gauss", "box", "none"])
def test_slice_operator(profile: str, exact: bool) -> None:
    lattice = Grid.from_spacing((16, 15, 20), 1.0)
    stack = Grid.from_spacing((12, 11, 4), (1, 1, 4), origin=(2, 2, 4))
    operator = SliceOperator(lattice, stack, 2, profile, 4.0, exact=exact)
    check_adjoint(operator.apply, operator.adjoint, torch.zeros(lattice.shape))
