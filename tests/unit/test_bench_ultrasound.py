"""The bench of tracked sweeps: what is held out is not shown, and scores and requirements say what they claim."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medfields import plugins
from medfields.evaluate import asked_ultrasound, bench, results, scans_us
from medfields.evaluate.tasks import ultrasound
from medfields.fields import Field, Siren
from medfields.space import Box, Volume
from sweep_samples import calibration, fields, places, ramp, write

TOY = ultrasound.Task("toy", "toy", "toy.igs.mha", spacing=1.0)


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep over a ramp, in a data folder of its own, acquired."""
    (tmp_path / "h_ultrasound").mkdir()
    calibration(tmp_path / scans_us.CALIBRATION)
    write(tmp_path / "toy.igs.mha", ramp(places()).round(), fields())
    monkeypatch.setenv("MEDFIELDS_DATA", str(tmp_path))
    monkeypatch.setitem(ultrasound.TASKS, "toy", TOY)
    return ultrasound.acquire(TOY, tmp_path)


def test_held_out_frames_are_not_shown_and_lie_where_they_lay(scan: Path) -> None:
    shown, held = scans_us.sweeps(TOY, scan)
    assert scan.stem == scans_us.scan_name(TOY) and len(shown.frames) == 8 and len(held.frames) == 1
    truth = torch.tensor(ramp(places()).round(), dtype=torch.float32)
    assert torch.equal(held.frames[0], truth[5]) and torch.equal(shown.frames, truth[[0, 1, 2, 3, 4, 6, 7, 8]])
    x = np.array([-1.0, -1.0, 1.0]) * places()[5].reshape(-1, 3)
    assert np.allclose(held.points(0).numpy(), x, atol=1e-3)


def test_scores_of_the_truth_of_a_shift_and_of_nothing(scan: Path) -> None:
    _, held = scans_us.sweeps(TOY, scan)

    def true(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(ramp(np.array([-1.0, -1.0, 1.0]) * x.double().numpy()), dtype=torch.float32)[:, None]

    span = float(held.frames.max() - held.frames.min())
    assert ultrasound.score(true, held)["ncc"] > 0.999
    shifted = ultrasound.score(lambda x: true(x) + 20, held)
    assert shifted["psnr"] == pytest.approx(20 * np.log10(span / 20), abs=0.02) and shifted["ncc"] > 0.999
    assert ultrasound.score(lambda x: 0 * x[:, :1] + 5, held)["ncc"] == 0
    assert ultrasound.score(lambda x: -true(x), held)["ncc"] < -0.999


def test_sizes_are_those_of_the_file_and_of_the_voxels(scan: Path) -> None:
    shown, _ = scans_us.sweeps(TOY, scan)
    assert ultrasound.stored(Volume(torch.zeros(shown.grid.shape), shown.grid)) == 4 * shown.grid.size
    small, large = (ultrasound.stored(Field(Siren(width=w, depth=2), Box((0, 0, 0), (1, 1, 1)))) for w in (8, 64))
    assert 4 * 64 * 64 < large < 4 * 64 * 64 + 8000 and small < large


def test_a_run_gives_a_whole_row(scan: Path) -> None:
    row = json.loads(json.dumps(bench.run_here(bench.Job("ultrasound", "toy", "compounding", "frames alone", 0, str(scan)))))
    assert 20 < row["psnr"] < 80 and row["ncc"] > 0.9 and row["share"] == 1 and row["fidelity"] == "classical"
    assert results.is_current("ultrasound", row) and not results.is_current("ultrasound", {**row, "scan": "another"})
    assert "| **compounding (frames alone)** *classical* |" not in results.section("ultrasound", [row])
    assert "compounding (frames alone) *classical*" in results.section("ultrasound", [row])


def test_every_method_of_the_kind_takes_part_once() -> None:
    for task in (ultrasound.TASKS["spine"], ultrasound.TASKS["nwire"]):
        pairs = list(ultrasound.plan(task))
        assert len(pairs) == len(set(pairs)) and {m for m, _ in pairs} == {n for n, e in plugins.entries().items() if e.task == "ultrasound"}
        for method, variant in pairs:
            assert not variant or ultrasound.configured(method, variant).config() != ultrasound.configured(method, "").config()


def test_requirements_judge_the_rows() -> None:
    def row(method: str, psnr: float, variant: str = "", share: float = 1.0) -> dict[str, object]:
        return {"task": "spine", "method": method, "variant": variant, "psnr": psnr, "share": share, "fidelity": plugins.find(method).fidelity}

    rows = [row("us-field", 25.0, share=0.04), row("nearest", 23.0), row("compounding", 24.9), row("compounding", 23.4, "frames alone")]
    told = {line[0]: line[1:] for line in asked_ultrasound.requirements(rows)}  # type: ignore[arg-type]
    assert told["us-field over compounding of frames alone, `spine`"] == [">= +1.5 dB", "+1.60 dB", "yes"]
    assert told["us-field over the best classical, compounding, `spine`"] == [">= +0 dB", "+0.10 dB", "yes"]
    assert told["us-field over nearest, `spine`"] == [">= +1.5 dB", "+2.00 dB", "yes"]
    assert told["file of us-field, of the voxels, `spine`"] == ["<= 25 %", "4.0 %", "yes"]
    assert told["us-field over nearest, `nwire`"] == [">= +1.5 dB", "not measured", "**no**"]
