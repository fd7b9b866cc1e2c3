"""The registration bench: pairs are what they claim, a run gives a whole row, and requirements judge the rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medfields import plugins
from medfields.evaluate import asked_register, bench, families, pairs, results
from medfields.evaluate.tasks import register
from medfields.fields import Affine, Siren, displacement, from_lattice
from medfields.fields.warp import Flow
from medfields.solve import carry
from medfields.space import Box, Grid, Volume

DEFAULT = plugins.DEFAULT["register"]
PHANTOM = register.TASKS["phantom"]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs.acquire(PHANTOM, tmp_path_factory.mktemp("scan"))


def test_the_phantom_is_exact_and_its_motion_does_not_fold(scan: Path) -> None:
    this = register.trial(replace(PHANTOM, noise=0.0), scan, 0)
    a, grid = this.arrays, this.case.grid
    size = np.linalg.norm(a["truth"], axis=1) / pairs.VOXEL
    assert size.mean() == pytest.approx(5.2, abs=0.01) and 8 < size.max() < 12 and len(size) == 300
    x = grid.points().numpy().astype(np.float64)[this.case.inside.numpy()]
    scale = (np.linalg.norm(a["truth"], axis=1) / np.linalg.norm(pairs.breathing(a["points"]), axis=1)).mean()
    moved = torch.as_tensor(x + scale * pairs.breathing(x), dtype=torch.float32)
    seen = Volume(this.moving.data, this.moving.grid, interpolation="cubic")(moved)[:, 0]
    assert float((seen - this.fixed.data[0][this.case.inside]).abs().max()) < 0.05 * float(this.fixed.data.max())
    steps = [(pairs.breathing(x + h) - pairs.breathing(x - h)) / 2e-3 for h in 1e-3 * np.eye(3)]
    assert np.linalg.det(np.eye(3) + scale * np.stack(steps, -1)).min() > 0.2
    assert np.abs(this.case.grid.index(x + scale * pairs.breathing(x)) - 23.5).max() < 23.5


def test_the_far_motion_does_not_fold_either() -> None:
    far = register.TASKS["phantom-far"].motion
    a = pairs.phantom(register.TASKS["phantom-far"])
    x = Grid(a["fixed"].shape, a["fixed_affine"]).points().numpy().astype(np.float64)[a["mask"]]
    scale = (np.linalg.norm(a["truth"], axis=1) / np.linalg.norm(pairs.breathing(a["points"]), axis=1)).mean()
    steps = [(pairs.breathing(x + h) - pairs.breathing(x - h)) / 2e-3 for h in 1e-3 * np.eye(3)]
    assert np.linalg.norm(a["truth"], axis=1).mean() == pytest.approx(far * pairs.VOXEL)
    assert np.linalg.det(np.eye(3) + scale * np.stack(steps, -1)).min() == pytest.approx(0.03, abs=0.005)


def test_a_tube_is_read_as_it_was_made(tmp_path: Path) -> None:
    """Cubically, in the fit and in the score: read linearly, its thin wall would hide small errors, for the true motion would score 0.018."""
    task = register.TASKS["peristalsis"]
    this = register.trial(task, pairs.acquire(task, tmp_path), 0)
    assert this.case.fixed.interpolation == this.case.aligned.interpolation == "cubic"
    truth = torch.zeros(3, *this.case.grid.shape)
    truth[:, this.case.inside] = torch.as_tensor(this.arrays["truth"].T, dtype=torch.float32)
    row = register.score(task, from_lattice(Volume(truth, this.case.grid, "mm")), this)
    assert row["mae"] < 0.008 and row["unlike"] < 0.004 and row["tre"] < 1e-3


def test_each_seed_has_its_own_noise_and_scores_see_none(scan: Path) -> None:
    first, again, other = (register.trial(PHANTOM, scan, seed) for seed in (0, 0, 1))
    assert torch.equal(first.case.fixed.data, again.case.fixed.data) and not torch.equal(first.case.fixed.data, other.case.fixed.data)
    assert float((first.case.fixed.data - first.fixed.data).std()) == pytest.approx(0.02, rel=0.02)
    assert torch.equal(first.moving.data, other.moving.data)


def test_the_bias_is_on_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "BLOBS", 20)
    plain = dict(np.load(pairs.acquire(replace(PHANTOM, name="a", motion=2.31), tmp_path)))
    biased = dict(np.load(pairs.acquire(replace(PHANTOM, name="b", motion=2.31, bias=0.8), tmp_path)))
    ratio = biased["fixed"] / plain["fixed"]
    assert np.array_equal(biased["moving"], plain["moving"]) and ratio.min() == pytest.approx(np.exp(-0.8), rel=0.02)
    assert ratio.max() == pytest.approx(np.exp(0.8), rel=0.02) and np.abs(np.diff(np.log(ratio), axis=0)).max() < 0.1


def test_the_identity_misses_by_the_motion_and_the_truth_by_nothing(scan: Path) -> None:
    this = register.trial(PHANTOM, scan, 0)
    row = register.score(PHANTOM, register._still(this.case), this)
    assert row["tre"] == pytest.approx(5.2, abs=0.01) and row["folds"] == 0 and row["sd_log_jacobian"] == pytest.approx(0, abs=1e-5)
    shift = displacement(Affine.of(np.eye(4) + np.pad([[2.0], [0], [0]], ((0, 1), (3, 0)))), this.case.box())
    moved = replace(this, arrays={**this.arrays, "truth": np.tile([2.0, 0, 1.0], (300, 1))})
    assert register.score(PHANTOM, shift, moved)["tre"] == pytest.approx(0.5, abs=1e-4)


def test_a_flow_is_scored_with_itself_backwards() -> None:
    box = Box((-20.0,) * 3, (20.0,) * 3)
    warp = displacement(Flow(Siren(8, 1), 8), box, seed=1)
    points = np.random.default_rng(0).uniform(-8, 8, (50, 3))
    row = register._probed(warp, points, np.zeros((50, 3)))
    assert row["inverse"] < 0.02 and row["inverse"] < 0.1 * row["tre"]


def test_landmarks_are_scored_with_and_without_the_odd_one() -> None:
    grid = Grid.from_spacing((30, 30, 30), 2.0)
    fixed = grid.world(np.random.default_rng(0).integers(5, 20, (22, 3)).astype(float))
    moving = fixed + np.array([1.2, 0, 0])
    moving[register.ODD] += [0, 12.0, 0]
    warp = displacement(Affine.of(np.eye(4) + np.pad([[0.5], [0], [0]], ((0, 1), (3, 0)))), grid.box())
    row = register._landmarks(warp, fixed, moving, grid)
    assert row["tre_without"] == pytest.approx(0.7, abs=1e-4) and row["tre_max_without"] == pytest.approx(0.7, abs=1e-4)
    assert row["tre"] == pytest.approx((21 * 0.7 + np.hypot(0.7, 12)) / 22, abs=1e-4) and row["tre_snapped"] > row["tre"]


def test_labels_that_one_lacks_count_as_nothing() -> None:
    grid = Grid.from_spacing((12, 12, 12), (1.0, 1.0, 2.0))
    a, b = np.zeros((2, 12, 12, 12), int)
    a[2:6, 2:6, 2:6], b[2:6, 2:6, 3:7] = 1, 1
    b[9, 9, 9] = 4
    row = register._labelled(a, b, grid)
    assert row["labels"] == 2 and row["dice"] == pytest.approx(0.5 * 0.75) and row["hd95"] == pytest.approx(2.0)


def test_lungs_are_air_inside_a_body() -> None:
    x = np.stack(np.meshgrid(*(np.arange(n) for n in (50, 40, 24)), indexing="ij"), -1).astype(float)
    body = ((x[..., 0] - 25) / 22) ** 2 + ((x[..., 1] - 20) / 17) ** 2 < 1
    lung = np.linalg.norm((x - [17, 20, 12]) / [6, 9, 30], axis=-1) < 1
    hu = np.where(body, np.where(lung, -800.0, 30.0), -1000.0)
    hu[17:19, 20, :] = 40.0  # a vessel
    hu[35:37, 20:22, 10:12] = -900.0  # a bubble of gas elsewhere
    found = pairs.lungs(hu)
    assert (found & lung).sum() > 0.98 * lung.sum() and (found & ~lung).sum() < 0.08 * lung.sum()
    assert found[17:19, 20].all() and not found[35, 20, 10]


def test_a_run_gives_a_whole_row(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(register.BUDGETS, "bspline", {"spacing": 12.0, "levels": 2, "voxels": (8.0, 4.0), "blur": (4.0, 2.0), "steps": (25, 15)})
    row = bench.run_here(bench.Job("register", "phantom", "bspline", "", 0, str(scan)))
    assert row["tre"] < 3.0 and row["folds"] < 0.05 and row["seconds"] >= 0 and row["fidelity"] == "classical"
    again = json.loads(json.dumps(row))
    assert results.is_current("register", again) and not results.is_current("register", {**again, "scan": "another"})
    told = results.section("register", [again])
    assert "| **bspline** *classical* |" in told and "| method | TRE, voxels | most, voxels | inverse, voxels |" in told
    assert "`phantom`" in told and "### brains" not in told


def test_tables_put_the_smallest_error_first_and_the_largest_overlap() -> None:
    def row(task: str, method: str, **numbers: float) -> dict[str, object]:
        more = {"folds": 0.0, "sd_log_jacobian": 0.1, "seconds": 1.0, "peak_mb": 10.0, "hd95": 1.0, "tre_max": 2.0}
        return {"task": task, "method": method, "variant": "", "seed": 0, "fidelity": "ours", **more, **numbers}

    lines = results._table("register", PHANTOM, [row("phantom", "idir", tre=0.5), row("phantom", "cycle", tre=0.25)]).splitlines()
    assert lines[4].startswith("| **cycle** | 0.250 ± 0.000 | 2.00 ± 0.00 |") and lines[5].startswith("| idir | 0.500")
    lines = results._table("register", register.TASKS["brain"], [row("brain", "idir", dice=0.5), row("brain", "cycle", dice=0.25)]).splitlines()
    assert lines[4].startswith("| **idir** | 0.5000 ± 0.0000 |") and "| 0.000 | 0.100 | 1.0 | 10 | 1 |" in lines[4]
    assert families.scores(object()) == families.IMAGE_SCORES


def test_the_plan_has_no_doubles_and_ablations_differ(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(register.ANTS, raising=False)
    for task in register.TASKS.values():
        found = list(register.plan(task))
        assert found and len(found) == len(set(found)) and all(method != "ants" for method, _ in found)
        for method, variant in found:
            a = register.ablation(method, variant)
            assert a.name == variant
            if variant and not a.first:
                assert register.configured(method, variant).config() != register.configured(method, "").config()
    assert "slices: syn is left out: it registers volumes only" in capsys.readouterr().out
    assert (DEFAULT, "20 s") in list(register.plan(register.TASKS["lung"])) and ("dnvf", "cascaded") in list(register.plan(PHANTOM))
    assert not [m for m, _ in register.plan(register.TASKS["peristalsis"]) if m != "geometry-informed"]
    for a in register.ABLATIONS:
        assert set(a.tasks) <= set(register.TASKS) and (not a.first or a.first in plugins.entries())


def test_a_missing_library_leaves_its_method_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(register, "find_spec", lambda name: None)
    assert list(register.plan(PHANTOM, ["greedy", "bspline"])) == [("bspline", "")]
    assert capsys.readouterr().out == "phantom: greedy is left out: picsl_greedy is not installed\n"


def told(rows: list[dict[str, object]]) -> dict[str, list[str]]:
    return {line[0]: line[1:] for line in asked_register.requirements(rows)}  # type: ignore[arg-type]


def row_of(task: str, method: str, variant: str = "", seed: int = 0, **numbers: float) -> dict[str, object]:
    return {"task": task, "method": method, "variant": variant, "seed": seed, "fidelity": plugins.find(method).fidelity, "seconds": 30.0, **numbers}


def test_requirements_judge_the_rows() -> None:
    rows = [row_of("lung", DEFAULT, tre=1.4, tre_max=7.0, tre_max_without=3.0, folds=0.0), row_of("lung", "bspline", tre=1.6),
            row_of("lung", DEFAULT, "20 s", tre=1.5, folds=1e-5), row_of("lung", "syn", tre=2.0)]
    rows += [row_of("brain", DEFAULT, dice=0.62, folds=0.0), row_of("brain", "bspline", dice=0.61), row_of("brain", "syn", dice=0.615)]
    rows += [row_of("phantom-bias", "mirnf", tre=0.2), row_of("phantom-bias", "mirnf", "point NCC", tre=0.4)]
    rows += [row_of("peristalsis", "geometry-informed", variant, mae=mae, unlike=unlike)
             for variant, mae, unlike in (("", 0.8, 0.9), ("image chart", 1.0, 1.0))]
    found = told(rows)
    assert found[f"TRE of {DEFAULT}, `lung`, beside the best other, bspline, minus 10 %"] == ["<= 1.44 mm", "1.4 mm", "yes"]
    assert found["its worst landmark"][1:] == ["7 mm", "**no**"] and found["its worst landmark of 21"][1:] == ["3 mm", "yes"]
    assert found["its folds"] == ["<= 0 %", "0 %", "yes"] and found["folds of that"] == ["<= 0 %", "0.001 %", "**no**"]
    assert found["TRE in 20 s, beside the same"][2] == "**no**" and found["time of that"] == ["<= 20 s", "30 s", "**no**"]
    assert found[f"Dice of {DEFAULT}, `brain`, beside bspline"] == [">= 0.61", "0.62", "yes"]
    assert found[f"Dice of {DEFAULT}, `brain`, beside the best of syn, greedy and ants, plus 0.01"][2] == "**no**"
    assert found["mirnf by blocks, TRE over that by points, `phantom-bias`"] == ["<= 0.8", "0.5", "yes"]
    assert found["geometry-informed, MAE over that of the image chart"][2] == "yes"
    assert found["geometry-informed, 1 - SSIM over that of the image chart"][2] == "**no**"
    assert found[f"time of {DEFAULT} over syn's, `lung`"] == ["said", "30.0 s / 30.0 s = 1", "yes"]
    assert all(line[2] == "**no**" for line in told([]).values())


def test_ants_counts_when_nobody_else_is_better_and_failures_are_counted() -> None:
    rows = [row_of("lung", DEFAULT, tre=1.4, tre_max=4.0, tre_max_without=3.0, folds=0.0), row_of("lung", "syn", tre=2.0)]
    for seed in range(20):
        rows += [row_of("random-starts", "cycle", seed=seed, tre=0.5, spearman=0.4), row_of("random-starts", "idir", seed=seed, tre=0.5 + (seed < 3))]
    found = told(rows)
    assert found[f"TRE of {DEFAULT}, `lung`, beside the best other, ANTs, measured elsewhere, minus 10 %"][0] == "<= 1.52 mm"
    line = "cycle beside idir, 20 random starts that end above 1 voxel"
    assert found[line] == ["fewer", "0 / 3 of 20", "yes"]
    assert told([r for r in rows if r["seed"] != 19])[line][2] == "**no**"
    unsure = "cycle, rank correlation of error and uncertainty, "
    assert found[f"{unsure}`random-starts`"] == [">= 0.3", "0.4", "yes"] and found[f"{unsure}`phantom-far`"][1] == "not measured"
    assert told([row_of("phantom-far", "cycle", spearman=0.2)])[f"{unsure}`phantom-far`"] == [">= 0.3", "0.2", "**no**"]


def test_weak_penalties_are_compared_by_their_folds() -> None:
    rows = [row_of("phantom-far", "hyperelastic", "weak", tre=0.21, folds=0.0), row_of("phantom-far", "idir", "weak", tre=0.2, folds=1e-3)]
    found = told(rows)
    assert found["hyperelastic at a small weight, folds, `phantom-far`"][2] == "yes"
    assert found["idir (|det - 1|) at a small weight, folds in its worst seed, more than none"] == ["> 0 %", "0.1 %", "yes"]
    assert found["TRE of the former over that of the latter"] == ["<= 1.05", "1.05", "yes"]
    assert register.TASKS["phantom-far"].motion == asked_register.FAR_MOTION
    lost = told([row_of("phantom-far", "idir", "weak", tre=3.6, folds=0.2)])
    line = "TRE of the latter, which has to register for that to mean anything, beside a tenth of the motion"
    assert lost[line] == ["<= 0.8 voxels", "3.6 voxels", "**no**"]


def test_the_brains_the_other_way_round() -> None:
    """Everything changes places, the start is inverted, and the mask is where the image that is fixed now is."""
    start = np.array([[1.1, 0, 0, 2], [0, 1, 0.1, 3], [0, 0, 0.9, 4], [0, 0, 0, 1.0]])
    arrays = {"fixed": np.ones(2), "moving": np.array([0.0, 3.0, 4.0]), "fixed_affine": np.eye(4), "moving_affine": 2 * np.eye(4),
              "labels": np.arange(2), "moving_labels": np.arange(3), "mask": np.ones(2, bool), "start": start}
    turned = pairs.turned(arrays)
    assert turned["fixed"] is arrays["moving"] and turned["moving"] is arrays["fixed"]
    assert turned["labels"] is arrays["moving_labels"] and turned["moving_labels"] is arrays["labels"]
    assert turned["fixed_affine"] is arrays["moving_affine"] and turned["moving_affine"] is arrays["fixed_affine"]
    assert turned["mask"].tolist() == [False, True, True] and np.allclose(turned["start"] @ start, np.eye(4))
    rows = [row_of("brain-back", DEFAULT, dice=0.72), row_of("brain-back", "syn", dice=0.73)]
    assert told(rows)[f"Dice of {DEFAULT}, `brain-back`, beside syn, plus 0.01"] == [">= 0.74", "0.72", "**no**"]


def test_the_lung_starts_as_the_issue_says(data: Path, tmp_path: Path) -> None:
    task = register.TASKS["lung"]
    a = dict(np.load(pairs.acquire(task, tmp_path)))
    fixed, moving = a["landmarks"]
    started = fixed @ a["start"][:3, :3].T + a["start"][:3, 3]
    assert len(fixed) == 22 and np.linalg.norm(fixed - moving, axis=1).mean() == pytest.approx(36.3, abs=0.2)
    assert np.linalg.norm(started - moving, axis=1).mean() == pytest.approx(4.7, abs=0.05)
    case = register.trial(task, tmp_path / f"{pairs.scan_name(task)}.npz", 0).case
    whole = case.whole(register._still(case))
    row = register._landmarks(whole, fixed, moving, case.moving.grid)
    assert row["tre"] == pytest.approx(np.linalg.norm(started - moving, axis=1).mean(), abs=1e-3)
    assert carry.carried_image(whole, case.moving, case.grid).about["outside"] < 0.5
