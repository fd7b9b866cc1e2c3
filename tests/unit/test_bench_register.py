"""The bench of registration: phantoms are exact, and tables and requirements say what rows say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfields import plugins
from medfields.evaluate import asked_register, results
from medfields.evaluate.tasks import register
from medfields.fields import from_lattice
from medfields.space import Grid, Volume

DEFAULT = plugins.DEFAULT["register"]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return register.acquire(register.TASKS["phantom"], tmp_path_factory.mktemp("cache"))


def test_the_phantom_moves_by_what_its_task_says(scan: Path) -> None:
    with np.load(scan, allow_pickle=False) as arrays:
        assert np.linalg.norm(arrays["truth"], axis=1).mean() / 2 == pytest.approx(5.2, abs=0.01)
        fixed = Volume(arrays["fixed"], Grid(arrays["fixed"].shape, arrays["fixed_affine"]))
        moving = Volume(arrays["moving"], Grid(arrays["moving"].shape, arrays["moving_affine"]), interpolation="cubic")
        x, u = (torch.tensor(arrays[name], dtype=torch.float32) for name in ("points", "truth"))
    smooth = Volume(fixed.data, fixed.grid, interpolation="cubic")
    assert (smooth(x) - moving(x + u)).abs().mean() < 0.02 * fixed.data.std()


def test_no_displacement_scores_the_motion(scan: Path) -> None:
    this = register.trial(register.TASKS["phantom"], scan, 0)
    still = from_lattice(Volume(torch.zeros(3, *this.case.grid.shape), this.case.grid))
    row = register.score(register.TASKS["phantom"], still, this)
    assert row["tre"] == pytest.approx(5.2, abs=0.01) and row["folds"] == 0


def test_seeds_have_noise_of_their_own(scan: Path) -> None:
    a, b = (register.trial(register.TASKS["phantom"], scan, seed).case.fixed.data for seed in (0, 1))
    assert (a - b).std() == pytest.approx(0.02 * 2**0.5, rel=0.1)


def test_every_ablation_can_be_configured_and_belongs_to_a_task() -> None:
    for a in register.ABLATIONS:
        assert set(a.tasks) <= set(register.TASKS)
        for method in a.methods:
            register.configured(method, a.name)


def test_the_default_and_bspline_take_part_in_every_pair() -> None:
    for name in ("lung", "brain", "breath", "slices", "phantom"):
        assert {DEFAULT, "bspline"} <= {method for method, _ in register.plan(register.TASKS[name])}


def row(method: str, **numbers: float) -> dict[str, object]:
    fidelity = plugins.entries()[method].fidelity
    machine = {"cpu": "x", "threads": 1, "torch": "y"}
    own = {"task": "lung", "method": method, "variant": "", "seed": 0, "fidelity": fidelity, "seconds": 10.0, "peak_mb": 5.0, "machine": machine}
    return {**own, "config": register.configured(method, "").config(), "scan": register.scan_name(register.TASKS["lung"]), **numbers}


def test_requirements_without_rows_are_not_measured() -> None:
    lines = asked_register.requirements([])
    assert lines and all("not measured" in line[2] and line[3] == "**no**" for line in lines)


def test_the_margin_over_the_best_other_is_told() -> None:
    common = {"tre_median": 1.0, "tre_max": 2.0, "tre_snapped": 1.0, "tre_without": 1.0, "tre_max_without": 2.0, "folds": 0.0, "sd_log_jacobian": 0.1}
    rows = [row(DEFAULT, tre=0.9, **common), row("bspline", tre=1.2, **common)]
    first = next(line for line in asked_register.requirements(rows) if "lung" in line[0])
    assert first[3] == "yes"
    chapter = results.section("register", rows)
    assert chapter.index(DEFAULT) < chapter.index("| bspline") and "0.90 ± 0.00" in chapter
