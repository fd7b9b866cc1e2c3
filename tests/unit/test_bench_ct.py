"""The CT bench on a generated patient: what methods get is what was projected, and scores say what they claim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from medfields import plugins
from medfields.evaluate import asked_ct, bench, results, scans_ct
from medfields.evaluate.tasks import ct
from medfields.io import write_volume
from medfields.operators.projections import Projector
from medfields.space import Grid, Volume

SOURCE = ct.Source("body.nii.gz", 1, 1, 64)


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three slices of water with bone, lung and fat, in HU, in a data folder of its own; returns the cache."""
    grid = Grid.from_spacing((60, 56, 3), (2.0, 2.0, 3.0))
    x = grid.points().numpy() - grid.centre
    r = np.hypot(x[..., 0] / 50, x[..., 1] / 44)
    hu = np.where(r < 1, 0.0, -1000.0)
    for place, radius, value in (((-20, 5), 12, -800), ((22, -8), 10, 700), ((0, 24), 8, -100), ((4, -22), 6, 300)):
        hu[np.hypot(x[..., 0] - place[0], x[..., 1] - place[1]) < radius] = value
    data = tmp_path / "data/b_ct"
    write_volume(Volume(scipy.ndimage.gaussian_filter(hu, (0.6, 0.6, 0)), grid, "HU"), tmp_path / "data/body.nii.gz")
    write_volume(Volume(np.full((60, 50, 61), -300.0), Grid.from_spacing((60, 50, 61), 2.0), "HU"), data / "plastimatch_4dct_t0.nii.gz")
    monkeypatch.setenv("MEDFIELDS_DATA", str(tmp_path / "data"))
    return tmp_path


def toy(kind: str = "plain", **more: object) -> ct.Task:
    return ct.Task("toy", "toy", SOURCE, 24, kind=kind, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("turned", [False, True])
def test_each_slice_of_a_stack_has_its_own_views(patient: Path, turned: bool) -> None:
    """Slices that differ, with the same views or with views of their own: the truth explains the data, and scores of the middle are its own."""
    grid = Grid.from_spacing((60, 56, 3), (2.0, 2.0, 3.0))
    x = grid.points().numpy() - grid.centre
    hu = np.where(np.hypot(x[..., 0] - 6 * x[..., 2], x[..., 1] + 10) < 25 + 3 * x[..., 2], 0.0, -1000.0)
    write_volume(Volume(scipy.ndimage.gaussian_filter(hu, (0.6, 0.6, 0)), grid, "HU"), patient / "data/body.nii.gz")
    task = toy(turned=turned)
    task = replace(task, source=replace(SOURCE, first=0, slices=3))
    this = ct.trial(task, ct.acquire(task, patient), 0)
    geometry = this.case.geometry
    assert (geometry.views, geometry.shape[0]) == ((72, 1) if turned else (24, 3))
    assert len(np.unique(np.round(geometry.towards, 6), axis=0)) == (72 if turned else 24)
    found = Projector(this.case.grid, geometry, 4).apply(this.truth.data[0])
    assert (found - this.case.data).square().mean().sqrt() < 0.02 * this.case.data.max()
    truth = this.truth.data[0]
    spoilt = truth.clone()
    spoilt[..., 1] += 0.1 * truth.max() * (torch.arange(truth.shape[1]) % 2)
    score = ct.score(task, this.truth.with_data(spoilt), this)
    assert score["psnr_middle"] < score["psnr"] - 3


@pytest.mark.parametrize("beam", ["parallel", "fan", "cone"])
def test_the_case_explains_the_truth(patient: Path, beam: str) -> None:
    """The simulator and the projector are different code for one thing: grid, geometry and unit fit together."""
    task = toy(beam=beam)
    if beam == "cone":
        task = replace(task, source=replace(SOURCE, first=0, slices=3))
    this = ct.trial(task, ct.acquire(task, patient), 0)
    predicted = this.case.projector(2).apply(this.truth.data[0])
    error = (predicted - this.case.data).abs()
    # Of three slices two are at the border, where the simulator ends at a voxel's face and the projector fades.
    assert error.mean() < (0.12 if beam == "cone" else 0.02) * this.case.data.abs().mean() and this.case.data.max() > 1
    assert ct.acquire(task, patient).stem == ct.scan_name(task)
    assert ct.score(task, this.truth, this)["ssim"] == pytest.approx(1.0) and ct.score(task, this.truth, this)["psnr"] > 100


def test_noise_is_of_the_seed_and_of_the_strength_that_was_asked(patient: Path) -> None:
    clean = ct.trial(toy(), ct.acquire(toy(), patient), 0).case.data
    task = toy(decibel=40.0)
    noisy = [ct.trial(task, ct.acquire(task, patient), seed).case.data for seed in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    ratio = float(clean.square().mean() / (noisy[0] - clean).square().mean())
    assert 10 * np.log10(ratio) == pytest.approx(40, abs=0.3)


def test_the_earlier_scan_lacks_the_lesion(patient: Path) -> None:
    task = toy("prior")
    scan = ct.acquire(task, patient)
    own, other, none = (ct.trial(task, scan, 0, prior=p).case.prior for p in ("own", "another", "none"))
    this = ct.trial(task, scan, 0)
    lesion = this.arrays["lesion"]
    assert none is None and own is not None and other is not None and lesion.sum() > 5
    assert float((this.truth.data[0] - own.data[0])[lesion].mean()) == pytest.approx(ct.LESION[1] * ct.WATER, rel=0.25)
    assert (own.data - other.data).abs().mean() > 0.2 * ct.WATER
    assert ct.score(task, this.truth, this)["lesion_error"] == 0
    assert ct.score(task, own, this)["lesion_error"] == pytest.approx(1, abs=0.25)


def test_true_poses_explain_a_moving_subject_and_alignment_forgives_the_frame(patient: Path) -> None:
    task = toy("motion")
    scan = ct.acquire(task, patient)
    misfits = []
    for oracle in (False, True):
        this = ct.trial(task, scan, 0, oracle=oracle)
        misfits.append(float((Projector(this.case.grid, this.case.geometry, 2).apply(this.truth.data[0]) - this.case.data).abs().mean()))
    assert misfits[1] < 0.25 * misfits[0]
    truth = this.truth.data[0].numpy()
    moved = scipy.ndimage.shift(scipy.ndimage.rotate(truth, 2.0, reshape=False, order=3), (1.3, -0.8, 0), order=3)
    raw, forgiven = (ct._scores(image, truth, this.mask)["psnr"] for image in (moved, ct.aligned(moved, truth, this.mask)))
    assert forgiven > raw + 8


def test_metal_is_told_to_the_method_and_not_scored(patient: Path) -> None:
    task = toy("metal", photons=1e6)
    this = ct.trial(task, ct.acquire(task, patient), 0)
    assert this.case.metal is not None and this.case.spectrum is not None and 50 < this.case.spectrum.mean < 80
    spoiled = this.truth.data.clone()
    spoiled[0][this.case.metal.data[0] > 0.5] = 0.5
    row = ct.score(task, Volume(0.8 * spoiled, this.truth.grid), this)
    assert row["psnr_scaled"] > row["psnr"] + 20  # a wrong scale is all that is wrong with it


def test_calibration_knows_a_true_standard_deviation() -> None:
    rng = np.random.default_rng(0)
    std = rng.uniform(0.5, 2.0, (40, 40, 4))
    truth = np.zeros(std.shape)
    good = ct.calibration(rng.normal(0, std), std, truth, np.ones(std.shape, bool))
    bad = ct.calibration(rng.normal(0, std), 0.1 + 0.1 * std, truth, np.ones(std.shape, bool))
    assert good["ece"] < 0.03 and good["spearman"] > 0.3 and bad["ece"] > 0.3


def test_real_projections_are_judged_by_the_views_that_were_left_out(data: Path, tmp_path: Path) -> None:
    task = ct.TASKS["tooth-45"]
    this = ct.trial(task, ct.acquire(task, tmp_path), 0)
    assert this.case.geometry.views == 45 and this.case.data.shape[2] == 320
    found = plugins.load("fbp")().solve(this.case, bench_run())
    row = ct.score(task, found, this)
    assert 20 < row["psnr"] < 60 and row["psnr"] > ct.score(task, found.with_data(0.7 * found.data), this)["psnr"] + 3


def bench_run():  # type: ignore[no-untyped-def]
    from medfields.solve import Run

    return Run()


def test_a_run_gives_a_whole_row(patient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = toy()
    monkeypatch.setitem(ct.TASKS, "toy", task)
    row = bench.run_here(bench.Job("ct", "toy", "fbp", "", 0, str(ct.acquire(task, patient))))
    assert 15 < row["psnr"] < 60 and row["fidelity"] == "classical" and row["seconds"] >= 0 and row["task"] == "toy"
    json.dumps(row)
    assert results.is_current("ct", json.loads(json.dumps(row))) and not results.is_current("ct", {**row, "scan": "another"})
    assert "| **fbp** *classical* |" in results.section("ct", [row])


def test_the_plan_has_no_doubles_and_ablations_differ() -> None:
    for task in ct.TASKS.values():
        pairs = list(ct.plan(task))
        assert len(pairs) == len(set(pairs)) and any(plugins.find(m).fidelity == "classical" or task.kind != "plain" for m, _ in pairs)
        for method, variant in pairs:
            a = ct.ablation(method, variant)
            assert a.name == variant
            if variant and a.prior == "own" and not a.oracle:
                assert ct.configured(method, variant).config() != ct.configured(method, "").config()


def test_requirements_judge_the_rows() -> None:
    def row(task: str, method: str, psnr: float, variant: str = "", **more: float) -> dict[str, object]:
        return {"task": task, "method": method, "variant": variant, "psnr": psnr, "fidelity": plugins.find(method).fidelity, "seconds": 30.0, **more}

    default = plugins.DEFAULT["ct"]
    rows = [row("prior", "nerp", 33.0, lesion_error=0.1), row("prior", "nerp", 31.0, "cold")]
    rows += [row("motion", "scnf", 30.0), row("motion", "scnf", 27.0, "naive")]
    rows += [row(f"slice-{k}", "sirt", 28.0) for k in "abc"] + [row(f"slice-{k}", default, 30.0) for k in "abc"]
    told = {line[0]: line[2:] for line in asked_ct.requirements(rows)}  # type: ignore[arg-type]
    assert told["nerp with the earlier scan over without, `prior`"] == ["+2.00 dB", "yes"]
    assert told["scnf over the same field without poses, `motion`"] == ["+3.00 dB", "**no**"]
    assert told["lesion that the earlier scan lacks, error of its contrast"] == ["10 %", "yes"]
    assert told["uncertainr, expected calibration error"] == ["not measured", "**no**"]
    assert told[f"time of {default}, `slice-a`, slowest seed"] == ["30.0 s", "yes"]
    assert scans_ct.scan_name(ct.TASKS["slice-a"]) != scans_ct.scan_name(ct.TASKS["slice-b"])


def test_a_limited_arc_is_what_the_views_cover(patient: Path) -> None:
    task = toy(arc=60.0)
    towards = ct.trial(task, ct.acquire(task, patient), 0).case.geometry.towards
    span = np.degrees(np.arccos(np.clip(towards[0] @ towards[-1], -1, 1)))
    assert span == pytest.approx(60 * 23 / 24, abs=0.01)
