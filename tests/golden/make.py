"""Write golden `.field` files, with the values they must give at fixed points: old files stay readable for good.

Run as `python tests/golden/make.py` after adding a spec or a format version. A golden file that exists is never written again: if a change
breaks it, the change is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from medfields.fields import (
    MLP,
    Affine,
    Agreed,
    BSpline,
    Composed,
    Conditional,
    Dropout,
    Field,
    Finer,
    Flow,
    Fourier,
    Gaussians,
    GridEncoding,
    Harmonics,
    Hybrid,
    InPlane,
    MultiHead,
    NeRFEncoding,
    Positive,
    Siren,
    Spec,
    Tube,
    displacement,
)
from medfields.io import write_field
from medfields.io.field import VERSION
from medfields.space import Box, Grid

HERE = Path(__file__).parent
BOX = Box((-40, -30, -20), (20, 30, 50))
LATTICE = Grid((4, 5, 6), Grid.from_spacing((4, 5, 6), (15, 14, 13), (-35, -25, -15)).affine)
SPECS: dict[str, Spec] = {
    "siren": Siren(width=8, depth=2),
    "finer": Finer(width=8, depth=2),
    "fourier": MLP(encoding=Fourier(size=6, sigma=2.0), width=8, depth=2),
    "nerf": MLP(encoding=NeRFEncoding(octaves=3), width=8, depth=2, activation="silu"),
    "hash": MLP(encoding=GridEncoding(levels=3, finest_mm=6.0, coarsest_mm=30.0, log2_table=6), width=8, depth=1),
    "relu": MLP(width=8, depth=3),
    "multihead": MultiHead(cells=(2, 1, 3), width=8, depth=2, alpha=4),
    "bspline": BSpline.on(LATTICE, degree=3),
    "hybrid": Hybrid(BSpline.on(LATTICE, degree=1), Siren(width=8, depth=1)),
    "positive": Positive(MLP(encoding=Harmonics(3), width=8, depth=1), "squareplus", 1.0),
    "gaussians": Gaussians(count=5),
    "dropout": Dropout(MLP(width=8, depth=2, activation="silu"), 0.3),
    "conditional": Conditional(BSpline.on(LATTICE, degree=3), features=2, width=8, depth=1),
}
WARPS: dict[str, Spec] = {
    "composed": Composed(BSpline.on(LATTICE, degree=3), Affine((0.9, -0.1, 0, 4, 0.1, 0.9, 0.05, -3, 0, 0, 1.1, 2))),
    "flow": Flow(Siren(width=8, depth=2, omega_first=3.0, omega=3.0), steps=5, timed=True, backwards=True),
    "inplane": InPlane(Siren(width=8, depth=1), axis=1),
    "tube": Tube((-10, 0, -15, -12, 3, 5, -8, 5, 25, -10, 0, 45), 12.0, Siren(width=8, depth=1, omega_first=3.0), smooth="polynomial"),
    "agreed": Agreed(Siren(width=8, depth=2, omega_first=3.0, omega=3.0), BSpline.on(LATTICE, degree=2)),
}


def make(name: str, field: Field) -> None:
    path = HERE / f"v{VERSION}-{name}.field"
    if path.exists():
        return
    with torch.no_grad():  # a fresh lattice is zero everywhere
        for n, p in enumerate(field.net.parameters()):
            p.add_(0.1 * torch.sin(torch.arange(p.numel()).reshape(p.shape) + n))
    field.grid = Grid(LATTICE.shape, LATTICE.affine, "1.2.840.7")
    points = BOX.random(16, torch.Generator().manual_seed(3))
    write_field(field, path, {"method": "golden", "paper": "none"})
    with torch.no_grad():
        expected = {"points": points.tolist(), "values": field(points).tolist()}
    path.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    for name, spec in SPECS.items():
        make(name, Field(spec, BOX, 2, scale=torch.tensor([200.0, 3.0]), offset=torch.tensor([50.0, -1.0]), unit="HU", names=("ct", "mask"), seed=7))
    for name, spec in WARPS.items():
        make(name, displacement(spec, BOX, seed=7))
