"""Sweeps without a tracker: how planes are compared, that poses feel it, that they are found, and that a new field leaves them alone."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from skimage.metrics import structural_similarity

from medfields.cases import Slices
from medfields.evaluate import asked_sweep, moved, scans_sweep
from medfields.evaluate.tasks import sweep
from medfields.fields import MLP, Fourier, GridEncoding, Positive
from medfields.losses import ssim
from medfields.methods.implicitvol import ImplicitVol
from medfields.solve import Run
from medfields.solve.sensorless import SweepFit
from medfields.solve.slice_fit import SlicePoses
from medfields.space import Grid
from medfields.space.rigid import maps_of

GRID = Grid.from_spacing((24, 24, 24), 2.0, [-23.0, -23.0, -23.0])
REST = np.eye(4)  # a pose


def subject(x: np.ndarray) -> np.ndarray:
    """Blobs that are known everywhere."""
    rng = np.random.default_rng(5)
    centres, widths, heights = rng.uniform(-20, 20, (60, 3)), rng.uniform(4.0, 7.0, 60), rng.uniform(-1, 1, 60)
    return 300 + 100 * (heights * np.exp(-((x[..., None, :] - centres) ** 2).sum(-1) / (2 * widths**2))).sum(-1)


@functools.cache
def swept(degrees: float = 3.0, planes: int = 16) -> tuple[Slices, np.ndarray]:
    """Planes of the subject whose headers are off, and their true poses."""
    rng, affines = np.random.default_rng(2), scans_sweep.fan(GRID, planes)
    pixel = np.stack(np.meshgrid(np.arange(24), np.arange(24), indexing="ij"), -1)
    pictures = np.stack([subject(pixel @ a[:3, :2].T + a[:3, 3]) for a in affines])
    poses = maps_of(np.c_[np.radians(rng.normal(0, degrees, (planes, 3))), rng.normal(0, degrees / 2, (planes, 3))], np.zeros(3))
    return scans_sweep.guessed(pictures, affines, poses, GRID), poses


def problem(**more: float) -> SweepFit:
    torch.manual_seed(0)
    case = swept()[0]
    poses = SlicePoses(case, np.tile(REST, (len(case.slices), 1, 1)))
    return SweepFit(Positive(MLP(Fourier(size=16, sigma=1.0), 32, 2)), case, poses, 3, **more)


@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (5, 0.6)])
def test_ssim_is_that_of_scikit_image(window: int, sigma: float) -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 50, (2, 31, 26))
    b = a + rng.normal(0, 6, a.shape)
    wanted = [structural_similarity(x, y, data_range=50.0, gaussian_weights=True, sigma=sigma, use_sample_covariance=False)
              for x, y in zip(a, b, strict=True)]
    assert float(ssim(torch.from_numpy(a), torch.from_numpy(b), window, sigma, span=50.0)) == pytest.approx(np.mean(wanted), abs=1e-10)


def test_ssim_sees_nothing_outside_its_mask() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b, mask = torch.rand(2, 20, 20, generator=rng), torch.rand(2, 20, 20, generator=rng), torch.zeros(2, 20, 20, dtype=torch.bool)
    mask[:, 3:15, 4:18] = True
    other = torch.where(mask, b, 7.0)
    assert float(ssim(a, b, 5, mask=mask)) == float(ssim(a, other, 5, mask=mask))
    assert float(ssim(a, a, 5, mask=mask)) == pytest.approx(1)
    inner = ssim(a[:, 3:15, 4:18], b[:, 3:15, 4:18], 5)
    assert float(ssim(a, b, 5, mask=mask)) != pytest.approx(float(inner), abs=1e-4)  # windows around pixels at the rim count too


def test_poses_feel_what_planes_look_like() -> None:
    fit = problem(hold=0.5).double()
    batch = torch.tensor([1, 4, 9])
    with torch.no_grad():
        fit.poses.moves.normal_(0, 0.03, generator=torch.Generator().manual_seed(1))

    def cost() -> torch.Tensor:
        return torch.stack(list(fit.losses(batch, 0.5).values())).sum()

    cost().backward()
    slope, step = fit.poses.moves.grad, 1e-5
    assert slope is not None
    for plane in (4, 9, 2):
        for number in range(6):
            with torch.no_grad():
                fit.poses.moves[plane, number] += step
                more = float(cost())
                fit.poses.moves[plane, number] -= 2 * step
                less = float(cost())
                fit.poses.moves[plane, number] += step
            assert float(slope[plane, number]) == pytest.approx((more - less) / (2 * step), rel=1e-3, abs=1e-7)
    assert float(slope[4].abs().max()) > 10 * float(slope[2].abs().max())  # plane 2 is not in the batch: only its start holds it


def test_pixels_lie_where_slice_poses_say() -> None:
    fit, (case, _) = problem(), swept()
    with torch.no_grad():
        fit.poses.moves.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
        x = moved.placed(case, fit.poses.maps())
        field = fit.field(torch.from_numpy(x).float())[:, 0].reshape(16, 24, 24)
        shown = fit.offset + fit.scale * fit.seen(torch.arange(16))
    assert torch.allclose(shown, field, atol=1e-2)
    assert float(shown.std()) > 1


def test_planes_of_a_sweep_hold_the_axis_and_lie_where_their_true_poses_put_them() -> None:
    case, poses = swept()
    true = poses @ case.affines
    np.testing.assert_allclose(true, scans_sweep.fan(GRID, 16), atol=1e-9)
    for affine, s in zip(true, case.slices, strict=True):
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        assert abs(normal @ (affine[:3, 3] - GRID.centre)) < 1e-6 and abs(normal[2]) < 1e-9
        np.testing.assert_allclose(s.values.numpy()[5, 7], subject(affine[:3, :2] @ [5, 7] + affine[:3, 3]), rtol=1e-5)


def test_poses_are_found_and_planes_across_foretold() -> None:
    case, true = swept()
    results = {}
    for motion in (True, False):
        run = Run(seed=0)
        method = ImplicitVol(levels=4, finest=2.0, coarsest=8.0, open=(0.5, 1.0), rounds=2, steps=50, last=60 if motion else 25,
                             pose_lr=6e-3, motion=motion)
        field = method.solve(case, run)
        note = run.notes["motion"]
        found = maps_of(np.array(note["poses"]), np.array(note["about"]))
        wrong = [float(np.median(e)) for e in moved.errors(case, found, true)]
        back = np.linalg.inv(moved.frame(case, found, true))
        x = GRID.points().double().numpy()
        with torch.no_grad():
            image = field(torch.from_numpy(x).float())[..., 0].numpy()
        results[motion] = wrong, sweep.across(image, subject(x @ back[:3, :3].T + back[:3, 3]), sweep.counted(GRID)), note["likeness"]
    before = [float(np.median(e)) for e in moved.errors(case, np.tile(REST, (16, 1, 1)), true)]
    assert results[False][0] == pytest.approx(before)
    assert results[True][0][0] < 0.5 * before[0]  # mm
    assert results[True][0][1] < 0.7 * before[1]  # degrees
    assert results[True][1] > results[False][1] + 0.03
    assert np.mean(results[True][2]) > np.mean(results[False][2])


def test_a_new_field_leaves_the_poses_alone_and_the_old_one_is_forgotten() -> None:
    case = swept()[0]
    poses = SlicePoses(case, np.tile(REST, (16, 1, 1)))
    spec = MLP(GridEncoding(3, 4.0, 16.0), 16, 1)
    first = Run(seed=0).fit(SweepFit(spec, case, poses, 4), steps=10, lr={"field": 1e-2, "poses": 5e-3}, name="round")
    kept = first.poses.maps()
    second = SweepFit(spec, case, first.poses, 4)
    np.testing.assert_array_equal(second.poses.maps(), kept)
    assert np.abs(kept - REST).max() > 1e-3
    whole = torch.arange(16)
    with torch.no_grad():
        assert float(second.losses(whole, 0.0)["ssim"]) > float(first.losses(whole, 0.0)["ssim"])


def test_levels_open_from_coarse_to_fine() -> None:
    case = swept()[0]
    poses = SlicePoses(case, np.tile(REST, (16, 1, 1)))
    fit = SweepFit(MLP(GridEncoding(4, 4.0, 16.0), 16, 1), case, poses, 4, levels=(0.5, 1.0), coarse=0.5)
    opened = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        fit.before_step(progress)
        opened.append(float(fit.field.net.encoding.level_mask.sum()))
    assert opened == [2.0, 3.0, 4.0, 4.0]


def test_what_a_trial_gets_is_off_by_what_the_task_says(tmp_path: Path) -> None:
    affines = scans_sweep.fan(GRID, 300)
    scan = tmp_path / "scan.npz"
    np.savez(scan, truth=subject(GRID.points().double().numpy()), grid=GRID.affine, affines=affines, pictures=np.zeros((300, 24, 24)))
    case, _, poses = sweep.trial(sweep.TASKS["turn"], scan, 0)
    turns = np.degrees(Rotation.from_matrix(poses[:, :3, :3]).as_rotvec())
    assert turns.std() == pytest.approx(3.0, rel=0.1)
    np.testing.assert_allclose(poses @ case.affines, affines, atol=1e-9)


def test_everyone_in_the_plan_can_be_configured_and_requirements_say_what_rows_say() -> None:
    for task in sweep.TASKS.values():
        planned = list(sweep.plan(task))
        assert {("implicitvol", ""), ("implicitvol", "poses as guessed"), ("scattered", "")} <= set(planned)
        for method, variant in planned:
            sweep.configured(method, variant)

    def row(method: str, variant: str, ssim: float, degrees: float) -> dict[str, object]:
        return {"task": "turn", "method": method, "variant": variant, "seed": 0, "ssim": ssim, "degrees": degrees, "degrees_before": 4.0}

    rows = [row("implicitvol", "", 0.8, 1.0), row("implicitvol", "poses as guessed", 0.77, 4.0), row("scattered", "", 0.6, 4.0)]
    told = {line[0]: line[2:] for line in asked_sweep.requirements(rows)}
    assert told["less rotation error by implicitvol, `turn`"] == ["75 %", "yes"]
    assert told["SSIM of new planes, implicitvol over scattered at the poses as given, `turn`"] == ["+0.200", "yes"]
    assert told["SSIM of new planes, implicitvol over the same without finding poses, `turn`"] == ["+0.030", "**no**"]
    assert told["less rotation error by implicitvol, `turn-brainweb`"] == ["not measured", "**no**"]
