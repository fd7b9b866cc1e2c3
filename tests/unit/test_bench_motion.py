"""The bench of slices that moved: what is simulated is what is stated, and tables and requirements say what rows say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfields import plugins
from medfields.evaluate import asked_motion, results, scans_motion
from medfields.evaluate.scans_motion import Task
from medfields.evaluate.tasks import motion
from medfields.io import write_volume
from medfields.space import Grid, Volume

DEFAULT = plugins.DEFAULT["motion"]


def head(x: np.ndarray) -> np.ndarray:
    return 300 + 50 * np.sin(x[..., 0] / 7) * np.cos(x[..., 1] / 9) + 40 * np.sin(x[..., 2] / 8 + x[..., 0] / 11)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path]:
    """A small smooth subject, scanned through known poses."""
    folder = tmp_path_factory.mktemp("data")
    grid = Grid.from_spacing((64,) * 3, 1.0, [-31.5] * 3)
    write_volume(Volume(head(grid.points().double().numpy()), grid), folder / "head.nii.gz")
    task = Task("small", "small", "head.nii.gz", (20, 20, 20), (24, 24, 24), 4.0, 5.0, 2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scans_motion, "data_folder", lambda: folder)
        patch.setattr(scans_motion, "SEEDS", 1)
        return task, scans_motion.acquire(task, folder)


def test_a_slice_shows_the_subject_where_its_true_pose_puts_it(scan: tuple[Task, Path]) -> None:
    this = motion.trial(*scan, 0)
    z = np.linspace(-8, 8, 65)
    weight = np.exp(-4 * np.log(2) * (z / 4) ** 2)
    for s, pose in list(zip(this.case.slices, this.poses, strict=True))[::4]:
        affine = pose @ s.image.grid.affine
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        index = np.argwhere(s.mask.numpy())
        x = index @ affine[:3, :2].T + affine[:3, 3]
        seen = (head(x[:, None] + z[:, None] * normal / np.linalg.norm(normal)) * weight).sum(1) / weight.sum()
        assert np.abs(seen - s.values[s.mask].numpy()).mean() < 2.5  # noise of 1 % of a range of about 180
    assert np.abs(this.poses[:, :3, 3]).max() > 0.5


def test_seeds_draw_noise_and_corruption_of_their_own(scan: tuple[Task, Path]) -> None:
    from dataclasses import replace

    task = replace(scan[0], corrupted=0.3)
    a, b = motion.trial(task, scan[1], 0), motion.trial(task, scan[1], 1)
    assert a.bad.any() and not a.bad.all() and not np.array_equal(a.bad, b.bad)
    for s, bad in zip(a.case.slices, a.bad, strict=True):
        assert (float(s.values[s.mask].mean()) < 150) == bool(bad)


def test_a_result_is_scored_wherever_the_subject_lies_as_a_whole(scan: tuple[Task, Path]) -> None:
    from medfields.evaluate import moved
    from medfields.space.rigid import maps_of

    this = motion.trial(*scan, 0)
    whole = maps_of(np.array([[0.05, -0.03, 0.04, 1.0, -0.5, 0.7]]), this.case.middle)[0]
    g = moved.frame(this.case, whole @ this.poses, this.poses)
    np.testing.assert_allclose(g, whole, atol=1e-6)
    truth = moved.truth_at(this.truth, this.case.grid, g)
    back = np.linalg.inv(whole)
    x = this.case.grid.points().double().numpy() @ back[:3, :3].T + back[:3, 3]
    assert np.abs(truth - head(x))[this.mask].max() < 2 < np.abs(this.truth.data[0].numpy() - head(x))[this.mask].max()


def test_ablations_can_be_configured_and_the_default_and_the_yardstick_take_part_everywhere() -> None:
    for a in motion.ABLATIONS:
        assert set(a.tasks) <= set(motion.TASKS)
        for method in a.methods:
            motion.configured(method, a.name)
    for task in motion.TASKS.values():
        assert {DEFAULT, "svr"} <= {method for method, _ in motion.plan(task)}


def row(task: str, method: str, psnr: float, variant: str = "", **more: float) -> dict[str, object]:
    fidelity = plugins.entries()[method].fidelity
    return {"task": task, "method": method, "variant": variant, "seed": 0, "psnr": psnr, "fidelity": fidelity, "mm": 0.5, "mm_before": 2.0,
            "degrees": 1.0, "degrees_before": 4.0, **more}


def test_requirements_say_what_rows_say() -> None:
    rows = [row("forrest-4", DEFAULT, 30.0), row("forrest-4", "svr", 28.5), row("forrest-4", "svr", 29.5, "weight 0.04"),
            row("forrest-4", "cubic-mean", 20.0), row("forrest-4-bad", DEFAULT, 28.8)]
    told = {line[0]: line[2:] for line in asked_motion.requirements(rows)}
    assert told[f"{DEFAULT} over cubic-mean, `forrest-4`"] == ["+10.00 dB", "yes"]
    assert told[f"{DEFAULT} over the best classical (svr weight 0.04), `forrest-4`"] == ["+0.50 dB", "**no**"]
    assert told[f"less pose error (mm) by {DEFAULT}, `forrest-4`"] == ["75 %", "yes"]
    assert told[f"less pose error (mm) by {DEFAULT}, `forrest-6`"] == ["not measured", "**no**"]
    assert told["what corrupted slices cost, `forrest-4`"] == ["1.20 dB", "**no**"]


def test_tables_show_poses_before_and_after() -> None:
    full = {**row("forrest-4-bad", DEFAULT, 30.0), "ssim": 0.9, "seconds": 3.0, "peak_mb": 100.0, "caught": 4, "corrupted": 5, "lost": 1}
    table = results._table("motion", motion.TASKS["forrest-4-bad"], [full])
    assert "| 0.500 ± 0.000 | 2.00 | 1.00 | 4.00 | 4 of 5 | 1 |" in table
