"""What a bending-energy step costs: forward-mode jets against autograd's double backward, in units of a plain training step.

IDIR-type setting: SIREN 3 -> 256 -> 256 -> 256 -> 3, 10,000 points, Adam. All kinds of step are timed in the same run, in turn,
and the best of each counts.

    python benchmarks/derivatives.py [--threads 2] [--repeats 9] [--no-save]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

from medfields.fields import Siren
from medfields.space import Box

RESULTS = Path(__file__).parent / "results" / "derivatives.jsonl"


def plain(net: nn.Module, u: Tensor) -> Tensor:
    """Mean squared value."""
    return (net(u) ** 2).mean()


def bending_by_jets(net: nn.Module, u: Tensor) -> Tensor:
    """Mean squared second derivatives, by one forward sweep."""
    _, _, hessian = net.jet(u, 2)
    return (hessian**2).mean()


def bending_by_autograd(net: nn.Module, u: Tensor) -> Tensor:
    """The same by differentiating twice: 3 + 9 backward sweeps before the one of the training step."""
    u = u.clone().requires_grad_()
    y = net(u)
    first = [torch.autograd.grad(y[:, c].sum(), u, create_graph=True)[0] for c in range(3)]
    second = [torch.autograd.grad(j[:, i].sum(), u, create_graph=True)[0] for j in first for i in range(3)]
    return (torch.stack(second) ** 2).mean()


def gradient_by_autograd(net: nn.Module, u: Tensor) -> Tensor:
    """Mean squared Jacobian, by double backward."""
    u = u.clone().requires_grad_()
    y = net(u)
    return (torch.stack([torch.autograd.grad(y[:, c].sum(), u, create_graph=True)[0] for c in range(3)]) ** 2).mean()


def gradient_by_jets(net: nn.Module, u: Tensor) -> Tensor:
    """Mean squared Jacobian, by one forward sweep."""
    return (net.jet(u, 1)[1] ** 2).mean()


def seconds(loss: Callable[[nn.Module, Tensor], Tensor], device: torch.device) -> Callable[[], float]:
    """A function that times one whole training step."""
    torch.manual_seed(0)
    net = Siren(width=256, depth=3).build(Box((-1, -1, -1), (1, 1, 1)), 3).to(device)
    optimiser = torch.optim.Adam(net.parameters(), 1e-5)
    u = (torch.rand(10_000, 3) * 2 - 1).to(device)

    def step() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        optimiser.zero_grad()
        loss(net, u).backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    kinds = {"plain": plain, "gradient, jets": gradient_by_jets, "gradient, autograd": gradient_by_autograd,
             "bending, jets": bending_by_jets, "bending, autograd": bending_by_autograd}
    steps = {name: seconds(loss, device) for name, loss in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for step in steps.values():
        step()
    for repeat in range(options.repeats):
        for name, step in steps.items():
            if name != "bending, autograd" or repeat < 2:
                times[name] += [step(), step()] if name == "plain" else [step()]
    best = {name: min(t) for name, t in times.items()}  # of all statistics, the least disturbed by what else the machine does
    print(f"{'step':<22}{'ms':>10}{'x plain':>10}")
    for name, t in best.items():
        print(f"{name:<22}{1e3 * t:>10.1f}{t / best['plain']:>10.1f}")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    row = {"benchmark": "derivatives", "net": "Siren 3x256, 3 -> 3", "points": 10_000, "threads": options.threads,
           "ms": {n: round(1e3 * t, 2) for n, t in best.items()}, "ratio": {n: round(t / best["plain"], 2) for n, t in best.items()},
           "machine": machine, "load": round(os.getloadavg()[0], 1), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    if not options.no_save:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
