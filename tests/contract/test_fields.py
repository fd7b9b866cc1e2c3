"""Every registered spec makes a field that keeps the promises of `medfields.testing.check_field`."""

from __future__ import annotations

import pytest
import torch

from medfields.fields import Field
from medfields.fields.spec import SPECS
from medfields.space import Box
from medfields.testing import check_field

BOX = Box((-30.0, -25.0, 10.0), (30.0, 40.0, 50.0))


FUNCTIONS = sorted(n for n, cls in SPECS.items() if cls.__module__.startswith("medfields.") and not cls.__module__.endswith(".encodings"))


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if SPECS[n].example(BOX) is not None])
def test_field(name: str) -> None:
    spec = SPECS[name].example(BOX)
    assert spec is not None
    scale, offset = torch.tensor([3.0, 50.0, 20.0]), torch.tensor([0.0, 100.0, -40.0])
    field = Field(spec, BOX, 3, scale=scale, offset=offset, unit="HU", names=("a", "b", "c"), seed=0)  # three: warps have no other number
    if all(not p.any() for p in field.net.parameters()):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in field.net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
    check_field(field)
