"""Runs against each other, as `sd35h5.compare`: pairs, differences, effects. The names here are public."""

from sd35h5.comparing.effects import (
    bootstrap_interval,
    false_discovery,
    layer_effects,
    overall_effect,
    paired_effects,
    sign_flip_p,
    standardised,
    surviving_cells,
)
from sd35h5.comparing.paired_samples import (
    Pairing,
    difference,
    pair,
    paired_values,
    sentence,
)
from sd35h5.comparing.picture_distance import altered_mass, image_differences, image_rms, ssim
from sd35h5.comparing.run_settings import setting_differences

__all__ = [
    "altered_mass",
    "bootstrap_interval",
    "difference",
    "false_discovery",
    "image_differences",
    "image_rms",
    "layer_effects",
    "overall_effect",
    "pair",
    "paired_effects",
    "paired_values",
    "Pairing",
    "sentence",
    "setting_differences",
    "sign_flip_p",
    "ssim",
    "standardised",
    "surviving_cells",
]  # fmt: skip
