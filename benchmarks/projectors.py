"""Projectors on the CPU, beside scikit-image, ASTRA and a ray march in torch; forward and adjoint are timed one by one.

2-D: a slice of 256^2, 180 parallel views of 256 pixels.
  ours     operators.projections.Projector (Joseph, exact transpose)
  skimage  radon and iradon without filter, each of which rotates or interpolates the whole image for each view
  astra    CPU projector "linear", in the process of the interpreter that MEDFIELDS_ASTRA_PYTHON names; left out if it cannot import astra
3-D: a volume of 128^3, 60 views of a cone beam on a detector of 128 x 128.
  ours     the same
  march    F.grid_sample at as many places of each ray's way through the lattice as ours visits, 128, in chunks of 8,192 rays; its adjoint is
           what autograd's backward pass adds to a forward pass that records
They take turns in one process with 2 threads (astra's in its own), so a busy machine slows all of them; the figure is the median, and the
processor time (all threads) is given too: it hardly depends on what else runs. Peak memory is the growth of ru_maxrss over one forward and
adjoint, in a process of its own after one on a tiny lattice has compiled everything, the lattice and the measurements left out.

    python benchmarks/projectors.py            prints the table, appends a row to benchmarks/results/projectors.jsonl
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import skimage
import torch
import torch.nn.functional as F
from throughput import processor_name

from medfields.operators.projections import LineIntegral, Projector
from medfields.space import Geometry, Grid

REQUIRED = {"3d march": 10.0}
Pair = tuple[Callable[[], object], Callable[[], object]]


def flat(size: int = 256, views: int = 180) -> tuple[Grid, Geometry]:
    """The slice and its parallel views."""
    grid = Grid.from_spacing((size, size, 1), 1.0, (-(size - 1) / 2, -(size - 1) / 2, 0))
    return grid, Geometry.parallel(np.linspace(0, np.pi, views, endpoint=False), size, 1.0)


def solid(size: int = 128, views: int = 60) -> tuple[Grid, Geometry]:
    """The volume and its cone-beam views."""
    grid = Grid.from_spacing((size,) * 3, 1.0, (-(size - 1) / 2,) * 3)
    return grid, Geometry.cone(np.linspace(0, 2 * np.pi, views, endpoint=False), (size, size), 2.0, 4 * size, 8 * size)


def ours(grid: Grid, geometry: Geometry) -> Pair:
    projector = Projector(grid, geometry)
    c, y = torch.rand(grid.shape), torch.rand(projector.shape)
    return lambda: projector.apply(c), lambda: projector.adjoint(y)


def scikit_image(grid: Grid, geometry: Geometry) -> Pair:
    from skimage.transform import iradon, radon

    image, sinogram = np.random.rand(*grid.shape[:2]).astype(np.float32), np.random.rand(grid.shape[0], geometry.views).astype(np.float32)
    angles = np.linspace(0, 180, geometry.views, endpoint=False)
    return lambda: radon(image, angles, circle=True), lambda: iradon(sinogram, angles, filter_name=None, circle=True)


def march(grid: Grid, geometry: Geometry, rays: int = 8192) -> Pair:
    """What one writes in torch: places along each ray between the faces of the lattice, read by grid_sample."""
    at = geometry.at(torch.arange(geometry.size))
    near, far = LineIntegral(grid.box(), 1.0).clip(at["origin"], at["direction"])
    n, half = max(grid.shape), torch.tensor((np.array(grid.shape) - 1) / 2).float()
    step, c, y = (far - near).clamp_min(0) / n, torch.rand(grid.shape), torch.rand(geometry.size)

    def chunk(c: torch.Tensor, k: int) -> torch.Tensor:
        o, d, first, part = (t[k:k + rays, None] for t in (at["origin"], at["direction"], near, step))
        x = (o + (first + part * (torch.arange(n) + 0.5))[..., None] * d) / half
        return F.grid_sample(c[None, None], x.flip(-1)[None, None], align_corners=True)[0, 0, 0].sum(-1) * part[:, 0]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([chunk(c, k) for k in range(0, geometry.size, rays)])

    def adjoint() -> torch.Tensor:
        """The gradient of <A c, y>, with the forward pass that it needs."""
        leaf = c.clone().requires_grad_()
        for k in range(0, geometry.size, rays):
            (chunk(leaf, k) * y[k:k + rays]).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    return forward, adjoint


CASES: dict[str, tuple[Callable[..., tuple[Grid, Geometry]], Callable[..., Pair]]] = {
    "2d ours": (flat, ours), "2d skimage": (flat, scikit_image), "3d ours": (solid, ours), "3d march": (solid, march),
}
ASTRA = """
import json, time, sys
import astra, numpy as np
volume = astra.create_vol_geom(256, 256)
projector = astra.create_projector("linear", astra.create_proj_geom("parallel", 1.0, 256, np.linspace(0, np.pi, 180, endpoint=False)), volume)
image, sinogram = np.random.rand(256, 256).astype(np.float32), np.random.rand(180, 256).astype(np.float32)
out = []
for run in (lambda: astra.create_sino(image, projector), lambda: astra.create_backprojection(sinogram, projector)):
    found = []
    for _ in range(int(sys.argv[1]) + 1):
        start, cpu = time.perf_counter(), time.process_time()
        run()
        found.append((1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - cpu)))
    out.append([sorted(f[k] for f in found[1:])[len(found) // 2 - 1] for k in (0, 1)])
print(json.dumps(out))
"""


def astra(rounds: int) -> list[list[float]] | None:
    """Median wall and processor milliseconds of forward and adjoint, or None where there is no ASTRA."""
    python = os.environ.get("MEDFIELDS_ASTRA_PYTHON", "")
    if not python or subprocess.run([python, "-c", "import astra"], capture_output=True, check=False).returncode:
        return None
    return json.loads(subprocess.run([python, "-c", ASTRA, str(rounds)], check=True, capture_output=True, text=True).stdout)


def peak_mb(name: str) -> float:
    """Megabytes by which a forward and an adjoint raise the peak of a fresh process."""
    found = subprocess.run([sys.executable, __file__, "--memory", name], check=True, capture_output=True, text=True)
    return float(found.stdout)


def measure_memory(name: str) -> None:
    """Print it."""
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes, Linux kilobytes
    case, make = CASES[name]
    for run in make(*case(16, 4)):
        run()
    pair = make(*case())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for run in pair:
        run()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit)


def measure_time(rounds: int) -> dict[str, dict[str, float]]:
    """Median wall and processor milliseconds, all in turn; ours several times a round, as it is short."""
    pairs = {name: make(*case()) for name, (case, make) in CASES.items()}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {(name, way): [] for name in pairs for way in ("forward", "adjoint")}
    for round_ in range(rounds + 1):  # the first compiles
        for name, pair in pairs.items():
            for way, run in zip(("forward", "adjoint"), pair, strict=True):
                for _ in range(5 if name.endswith("ours") else 1):
                    cpu, start = time.process_time(), time.perf_counter()
                    run()
                    if round_:
                        found[name, way].append((1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - cpu)))
    return {name: {f"{way}{kind}": statistics.median(t[k] for t in found[name, way])
                   for way in ("forward", "adjoint") for k, kind in enumerate(("_ms", "_cpu_ms"))} for name in pairs}


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.memory:
        measure_memory(arguments.memory)
        return
    peak = {name: peak_mb(name) for name in CASES}  # first, as a child counts from what its parent holds
    rows = measure_time(arguments.rounds)
    theirs = astra(5 * arguments.rounds)
    if theirs is not None:
        rows["2d astra"] = {f"{way}{kind}": theirs[i][k] for i, way in enumerate(("forward", "adjoint")) for k, kind in
                            enumerate(("_ms", "_cpu_ms"))}
    for kind in ("_ms", "_cpu_ms"):
        rows["3d march"][f"adjoint{kind}"] -= rows["3d march"][f"forward{kind}"]
    print(f"{'':11} {'forward':>9} {'adjoint':>9} {'both ms':>9} {'x ours':>7} {'cpu x':>7} {'peak MB':>8}")
    for name, row in rows.items():
        mine = rows[f"{name[:2]} ours"]
        for kind in ("_ms", "_cpu_ms"):
            row[f"both{kind}"] = row[f"forward{kind}"] + row[f"adjoint{kind}"]
            row["ratio" if kind == "_ms" else "cpu_ratio"] = row[f"both{kind}"] / mine[f"both{kind}"]
        row["peak_mb"] = peak.get(name, float("nan"))
        print(f"{name:11} {row['forward_ms']:9.1f} {row['adjoint_ms']:9.1f} {row['both_ms']:9.1f} {row['ratio']:7.1f} {row['cpu_ratio']:7.1f}"
              f" {row['peak_mb']:8.0f}")
    for name, bar in REQUIRED.items():
        print(f"{name} / ours = {rows[name]['ratio']:.1f}, required {bar:.0f}: {'met' if rows[name]['ratio'] >= bar else 'NOT met'}")
    if theirs is None:
        print("no ASTRA: MEDFIELDS_ASTRA_PYTHON names no interpreter that can import it")
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "rows": rows, "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0], "machine": platform.machine(), "processor": processor_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__, "skimage": skimage.__version__},
    }
    path = Path(__file__).parent / "results" / "projectors.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record).replace("NaN", "null") + "\n")


if __name__ == "__main__":
    main()
