"""What every field promises, whatever its spec."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch

from ..fields import Field
from ..io import read_field, write_field
from ..space import Grid


def check_field(field: Field, seed: int = 0) -> None:
    """Assert that a field answers any batch shape, alike in any chunking, with true derivatives, and survives a file.

    Raises:
        AssertionError: that says which promise is broken.
    """
    x = field.box.random(40, torch.Generator().manual_seed(seed)).to(field.centre.device)
    with torch.no_grad():
        value = field(x)
        assert value.shape == (40, field.channels), f"40 points gave the shape {tuple(value.shape)}, expected (40, {field.channels})"
        assert torch.isfinite(value).all(), "values inside the box are not finite"
        scale = float(value.std()) + 1e-6
        for shape in ((4, 10), (2, 2, 10)):
            batched = field(x.reshape(*shape, -1)).reshape(40, -1)
            assert _close(batched, value, scale), f"points in a batch of shape {shape} give other values"
        assert _close(torch.cat([field(p) for p in x.split(7)]), value, scale), "points in chunks of 7 give other values"
    _check_derivatives(field, x)
    if field.box.ndim == 3:
        _check_grid(field, scale)
    _check_file(field, x)
    twin = copy.deepcopy(field)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
        assert torch.equal(field(x), value), "changing the weights of a deep copy changes the field: they share tensors"
        same = any(True for _ in twin.parameters()) and torch.equal(twin(x), value)
        assert not same, "a deep copy calls the weights of the original: is a closure its forward?"


def _close(a: torch.Tensor, b: torch.Tensor, scale: float) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * scale + 1e-5 * float(b.abs().max()))


def _check_derivatives(field: Field, x: torch.Tensor) -> None:
    """The Jacobian against central differences, along one random direction and with the step that suits float32."""
    value, jacobian = field.value_and_jacobian(x)
    assert jacobian.shape == (*value.shape, field.box.ndim), f"the Jacobian has the shape {tuple(jacobian.shape)}"
    direction = torch.nn.functional.normalize(torch.linspace(1, 2, field.box.ndim, device=x.device), dim=0) * field.radius
    with torch.no_grad():
        steps = [1e-2, 3e-3, 1e-3]
        slopes = [(field(x + h * direction) - field(x - h * direction)) / (2 * h) for h in steps]
        stated = jacobian @ direction
        # The best step differs from spec to spec, and piecewise ones bend at a few points: the median must agree for one step.
        errors = [float((s - stated).abs().median()) for s in slopes]
    assert min(errors) <= 0.03 * float(stated.abs().median()) + 1e-4 * float(value.detach().std() + 1e-6), (
        f"the Jacobian disagrees with finite differences: median error {min(errors):.3g} of slopes of {float(stated.abs().median()):.3g}"
    )


def _check_grid(field: Field, scale: float) -> None:
    side = field.box.sides
    grid = Grid.from_spacing((4, 5, 3), (side / 8).tolist(), origin=(field.box.centre - side / 8).tolist())
    with torch.no_grad():
        direct = field(grid.points(field.centre.device)).movedim(-1, 0).cpu()
    assert _close(field.on(grid, chunk=16).volume().data, direct, scale), "field.on(grid) differs from the field at the voxel centres"


def _check_file(field: Field, x: torch.Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.field"
        write_field(field, path)
        again = read_field(path).to(x.device)
    with torch.no_grad():
        assert torch.equal(again(x), field(x)), "the field read back from its file gives other values"
    assert (again.unit, again.names, again.box) == (field.unit, field.names, field.box), "unit, names or box changed in the file"
