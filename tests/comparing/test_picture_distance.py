"""Image differences of pairs: RMS and SSIM against loops over windows in float64, beside the altered mass."""

from __future__ import annotations

import numpy as np
import pytest
from making.stores import make_store

from sd35h5 import open_store
from sd35h5.comparing.paired_samples import pair
from sd35h5.comparing.picture_distance import altered_mass, image_differences, image_rms, ssim
from sd35h5.errors import StoreError


def _images(seed=0, shape=(17, 23, 3)):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, shape).astype(np.uint8)
    noise = rng.normal(0, 40, shape)
    return first, (first + noise).clip(0, 255).round().astype(np.uint8)


def _ssim_by_loops(first, second):
    """Wang et al. (2004) window by window, each with its own weighted moments."""
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for channel in range(first.shape[2]):
        for top in range(first.shape[0] - 10):
            for left in range(first.shape[1] - 10):
                here = slice(top, top + 11), slice(left, left + 11), channel
                a, b = first[here].astype(float), second[here].astype(float)
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
                both = (weights * (a - mean_a) * (b - mean_b)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
                found.append(luminance * (2 * both + c2) / (var_a + var_b + c2))
    return np.mean(found)


def test_ssim_is_the_published_formula_window_by_window():
    first, second = _images()
    assert ssim(first, second) == pytest.approx(_ssim_by_loops(first, second), abs=1e-6)
    assert ssim(first, second) == ssim(second, first)


def test_equal_images_do_not_differ_and_black_and_white_do_entirely():
    first, _ = _images()
    assert image_rms(first, first) == 0 and ssim(first, first) == pytest.approx(1)
    black, white = np.zeros((11, 12, 3), np.uint8), np.full((11, 12, 3), 255, np.uint8)
    assert image_rms(black, white) == 1 and ssim(black, white) < 1e-3
    changed = first.copy()
    changed[0, 0, 0] ^= 255
    step = abs(int(changed[0, 0, 0]) - int(first[0, 0, 0])) / 255
    assert image_rms(first, changed) == pytest.approx(step / np.sqrt(first.size))


def test_images_that_cannot_be_compared_are_told_by_their_sizes():
    first, _ = _images()
    with pytest.raises(StoreError, match=r"\(17, 23\) and \(17, 22\)"):
        image_rms(first, first[:, :-1])
    with pytest.raises(StoreError, match="11 × 11 pixels or more"):
        ssim(first[:10], first[:10])


def test_pairs_of_stores_without_an_intervention_have_no_altered_mass(tmp_path):
    stores = [open_store(make_store(tmp_path / f"{name}.h5")) for name in "ab"]
    table = image_differences(*stores, pair(*stores))
    assert table["rms"].tolist() == [0, 0] and table["ssim"].tolist() == pytest.approx([1, 1])
    assert table["altered_mass"].isna().all() and table["other_sample"].tolist() == [0, 1]
    with pytest.raises(StoreError, match="without an intervention"):
        altered_mass(stores[0])
