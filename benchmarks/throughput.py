"""Training throughput of a grid field on the CPU, beside the same net in eager torch and a published-size Fourier network.

One step is forward, backward and optimiser on 65,536 points in 3-D, squared error to a random target:
  ours     grid_encode (12 levels x 2, table 2^17) + mlp_forward (2 x 64) + solve.optimise.Adam
  textbook the same net in eager torch as it is usually written: one nn.Embedding for each level, all corners of a point at once,
           nn.Sequential, torch.optim.Adam
  twin     the same with our plain torch twin of the grid instead, which is written for speed as far as eager torch goes
  fourier  256 Fourier features into a ReLU network 6 x 256 in eager torch with torch.optim.Adam
A query is the forward pass alone, of the same points under inference mode: fields are read that way.
They take turns in one process with 2 threads, so a busy machine slows all of them; the figure is the median. Processor time (all
threads) is given too: it hardly depends on what else runs. Peak memory is the growth of ru_maxrss over five steps, each net in a process
of its own, counted from just before the net is built.

    python benchmarks/throughput.py            prints the table, appends a row to benchmarks/results/throughput.jsonl
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import datetime
import itertools
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
import torch
from torch import nn

from medfields.kernels import mlp
from medfields.kernels.grid import grid_encode
from medfields.kernels.grid_layout import GridLayout
from medfields.kernels.grid_torch import grid_encode_torch
from medfields.solve.optimise import Adam

POINTS, LAYOUT = 65_536, GridLayout.geometric(dim=3, levels=12, coarsest=16, finest=512, log2_table=17, features=2)
REQUIRED = {("textbook", "ratio"): 20.0, ("fourier", "ratio"): 60.0, ("textbook", "query_ratio"): 20.0}


def relu_net(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def ours() -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.optim.Optimizer]:
    net, table = relu_net(LAYOUT.width, 64, 64, 1), nn.Parameter(1e-4 * torch.randn(LAYOUT.rows, LAYOUT.features))
    linear = [m for m in net if isinstance(m, nn.Linear)]
    weights, biases = [m.weight for m in linear], [m.bias for m in linear]
    return lambda u: mlp.mlp_forward(grid_encode(u, table, LAYOUT), weights, biases), Adam([table, *net.parameters()], lr=1e-3)


def twin() -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.optim.Optimizer]:
    net, table = relu_net(LAYOUT.width, 64, 64, 1), nn.Parameter(1e-4 * torch.randn(LAYOUT.rows, LAYOUT.features))
    return lambda u: net(grid_encode_torch(u, table, LAYOUT)), torch.optim.Adam([table, *net.parameters()], lr=1e-3)


class TextbookGrid(nn.Module):
    """The same grid from nn.Embedding, for dense and hashed levels alike."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Embedding(b - a, LAYOUT.features) for a, b in itertools.pairwise(LAYOUT.offsets))
        self.corners = torch.tensor(list(itertools.product((0, 1), repeat=LAYOUT.dim)))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        columns = []
        for level, embedding in enumerate(self.levels):
            cells = torch.tensor(LAYOUT.resolutions[level])
            x = u * cells
            base = x.floor().long().minimum(cells - 1)
            vertex = (base[:, None] + self.corners) * torch.tensor(LAYOUT.multipliers(level))
            hashed = vertex[..., 0] ^ vertex[..., 1] ^ vertex[..., 2]
            row = hashed % 2**LAYOUT.log2_table if LAYOUT.hashed[level] else vertex.sum(-1)
            weight = torch.where(self.corners.bool(), (x - base)[:, None], 1 - (x - base)[:, None]).prod(-1, keepdim=True)
            columns.append((weight * embedding(row)).sum(1))
        return torch.cat(columns, dim=-1)


def textbook() -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.optim.Optimizer]:
    net = nn.Sequential(TextbookGrid(), *relu_net(LAYOUT.width, 64, 64, 1))
    return net, torch.optim.Adam(net.parameters(), lr=1e-3)


def fourier() -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.optim.Optimizer]:
    net, waves = relu_net(256, *[256] * 6, 1), 10 * torch.randn(3, 128)

    def forward(u: torch.Tensor) -> torch.Tensor:
        phase = 2 * torch.pi * u @ waves
        return net(torch.cat((phase.cos(), phase.sin()), dim=-1))

    return forward, torch.optim.Adam(net.parameters(), lr=1e-3)


NETS = {"ours": ours, "textbook": textbook, "twin": twin, "fourier": fourier}


def make_step(name: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step and a query."""
    torch.manual_seed(0)
    forward, optimiser = NETS[name]()
    points, target = torch.rand(POINTS, 3), torch.rand(POINTS, 1)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        nn.functional.mse_loss(forward(points), target).backward()
        optimiser.step()

    def query() -> None:
        with torch.inference_mode():
            forward(points)

    return step, query


def peak_mb(name: str) -> float:
    """Megabytes by which five steps raise the peak of a fresh process."""
    found = subprocess.run([sys.executable, __file__, "--memory", name], check=True, capture_output=True, text=True)
    return float(found.stdout)


def measure_memory(name: str) -> None:
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes, Linux kilobytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step, _ = make_step(name)
    for _ in range(5):
        step()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit)


def measure_time(rounds: int) -> dict[str, dict[str, float]]:
    """Median wall and processor milliseconds of a step and of a query, the nets in turn; ours several times a round, as it is short."""
    calls = {name: dict(zip(("", "query_"), make_step(name), strict=True)) for name in NETS}
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in NETS}
    for name, both in calls.items():
        for call in both.values():
            for _ in range(10 if name == "ours" else 2):  # compile, choose the precision, fill the allocator
                call()
    for _ in range(rounds):
        for name, both in calls.items():
            for kind, call in both.items():
                for _ in range(5 if name == "ours" else 1):
                    cpu, start = time.process_time(), time.perf_counter()
                    call()
                    taken[name].setdefault(f"{kind}ms", []).append(1e3 * (time.perf_counter() - start))
                    taken[name].setdefault(f"{kind}cpu_ms", []).append(1e3 * (time.process_time() - cpu))
    return {name: {what: statistics.median(ms) for what, ms in own.items()} for name, own in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", choices=NETS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.memory)
        return
    torch.set_num_threads(2)
    peak = {name: peak_mb(name) for name in NETS}  # first, as a child counts from what its parent holds
    rows = measure_time(arguments.rounds)
    heads = "".join(f" {what:>9} {'points/s':>12} {'x ours':>7} {'cpu x':>7}" for what in ("ms/step", "ms/query"))
    print(f"{'':8}{heads} {'peak MB':>8}")
    for name, row in rows.items():
        row |= {f"{kind}{what}ratio": row[f"{kind}{what}ms"] / rows["ours"][f"{kind}{what}ms"] for kind in ("", "query_") for what in ("", "cpu_")}
        row["peak_mb"] = peak[name]
        parts = (f" {row[f'{kind}ms']:9.1f} {1e3 * POINTS / row[f'{kind}ms']:12,.0f} {row[f'{kind}ratio']:7.1f} {row[f'{kind}cpu_ratio']:7.1f}"
                 for kind in ("", "query_"))
        print(f"{name:8}{''.join(parts)} {row['peak_mb']:8.0f}")
    for (name, what), bar in REQUIRED.items():
        found = rows[name][what]
        print(f"{name} / ours, {what} = {found:.1f}, required {bar:.0f}: {'met' if found >= bar else 'NOT met'}")
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "rows": rows, "mlp_policy": mlp.policy(),
        "threads": torch.get_num_threads(), "load": os.getloadavg()[0], "machine": platform.machine(), "processor": processor_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__},
    }
    path = Path(__file__).parent / "results" / "throughput.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def processor_name() -> str:
    """The model line of /proc/cpuinfo where there is one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
