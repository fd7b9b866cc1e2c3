"""Metrics: known values, the mask, and the head."""

from __future__ import annotations

import numpy as np
import pytest

from medfields.errors import InputError
from medfields.evaluate.metrics import data_range, head_mask, nrmse, otsu, psnr, scores, ssim


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).uniform(10, 30, (24, 20, 22))


def test_known_values_inside_the_mask_only(truth: np.ndarray) -> None:
    mask = np.zeros(truth.shape, bool)
    mask[4:12] = True
    truth[5, 3, 3], truth[6, 3, 3] = 10.0, 30.0
    result = truth + np.where(mask, 2.0, 1e6)  # nonsense outside must not count
    assert data_range(truth, mask) == 20.0
    assert nrmse(result, truth, mask) == pytest.approx(0.1)
    assert psnr(result, truth, mask) == pytest.approx(20.0)
    assert psnr(truth, truth, mask) == float("inf")


def test_ssim_is_one_for_the_truth_and_falls_with_error(truth: np.ndarray) -> None:
    mask = np.zeros(truth.shape, bool)
    mask[6:-6, 6:-6, 6:-6] = True
    assert ssim(truth, truth, mask) == pytest.approx(1.0)
    noise = np.random.default_rng(1).standard_normal(truth.shape)
    values = [ssim(truth + s * noise, truth, mask) for s in (0.5, 2.0, 8.0)]
    assert 1 > values[0] > values[1] > values[2]
    far = truth.copy()
    far[0] += 1e3  # more than the window away from the mask
    assert ssim(far, truth, mask) == pytest.approx(1.0)


def test_scores_refuse_another_grid_and_an_empty_mask(truth: np.ndarray) -> None:
    with pytest.raises(InputError, match="differ in shape"):
        scores(truth[1:], truth, np.ones(truth.shape, bool))
    with pytest.raises(InputError, match="empty"):
        psnr(truth, truth, np.zeros(truth.shape, bool))


def test_otsu_falls_between_two_classes() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(10, 2, 4000), rng.normal(100, 10, 2000)])
    assert 20 < otsu(values) < 80


def test_head_mask_fills_ventricles_and_drops_air_and_debris() -> None:
    x = np.stack(np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij"), -1) - 20
    r = np.linalg.norm(x, axis=-1)
    image = np.where(r < 14, 100.0, 0.0) + np.where(r < 5, -95.0, 0.0)  # head with a dark ventricle
    image[1:4, 1:4, 1:4] = 100  # a marker in the air
    image += np.random.default_rng(0).uniform(0, 4, image.shape)
    mask = head_mask(image)
    assert mask[20, 20, 20] and not mask[2, 2, 2]
    assert abs(mask.sum() - (r < 14).sum()) < 0.05 * (r < 14).sum()
