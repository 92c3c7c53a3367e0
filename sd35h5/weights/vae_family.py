"""Whose latents a VAE speaks: FLUX's has the shapes of SD3's, and draws wrong colours without an error. Torch-free.

Its config tells, or what the file says of itself, or the file's own hash; the tensors' names and shapes do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd35h5.errors import ConfigError
from sd35h5.weights.checkpoints import sha256_of
from sd35h5.weights.configs import COMPONENT_CONFIGS

_SD3, _FLUX = "SD3's", "FLUX's"
_SCALES = {0.3611: _FLUX, 0.18215: "Stable Diffusion 1's or 2's", 0.13025: "SDXL's", 1.5305: _SD3}
_FILES = {  # sha256 of published files
    "8f53304a79335b55e13ec50f63e5157fee4deb2f30d5fae0654e2b2653c109dc": _SD3,  # SD3.5's, diffusers' layout
    "f9b67a279283625caee39d61eacb5324243848477b4eb535355eaaa8423d4e09": _SD3,  # SD3 Medium's, diffusers' layout
    "6ad8546282f0f74d6a1184585f1c9fe6f1509f38f284e7c4f7ed578554209859": _SD3,  # SD3.5's, the original layout
    "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38": _FLUX,  # the original layout
    "f5b59a26851551b67ae1fe58d32e76486e1e812def4696a4bea97f16604d40a3": _FLUX,  # diffusers' layout
}
_UNSAID = 0.18215  # AutoencoderKL's own
_SHAPE = (
    "block_out_channels",
    "latent_channels",
    "layers_per_block",
    "use_quant_conv",
    "use_post_quant_conv",
)


def check_vae(
    said: str,
    files: tuple[Path, ...],
    config: Mapping[str, Any],
    derived: bool,
    metadata: Mapping[str, str],
    base_config: Mapping[str, Any] | None,
    is_sd3: bool,
) -> None:
    """Refuse a VAE given by itself whose latents are not those that the transformer draws; ask where nothing tells.

    Args:
        said: how it was given.
        derived: its config comes from its shapes, which tell no scaling.
        metadata: what the file says of itself.
        base_config: of the base model's own VAE, if there is one.
        is_sd3: the user says that it is SD3's.

    Raises:
        ConfigError: another family's, or one of which nothing tells the family.
    """
    if not derived:
        expected = base_config or COMPONENT_CONFIGS["vae"]
        there, wanted = (each.get("scaling_factor", _UNSAID) for each in (config, expected))
        if there != wanted:
            whose = f", which is {_SCALES[there]}" if there in _SCALES else ""
            raise ConfigError(
                f"{said} has scaling_factor {there}{whose}, but the model draws latents of {wanted}: it would draw "
                "wrong colours, give this model's VAE"
            )
        return
    is_published = all(_plain(config.get(name)) == _plain(COMPONENT_CONFIGS["vae"][name]) for name in _SHAPE)
    if not is_published or is_sd3:
        return
    whose = _told(metadata) or _FILES.get(sha256_of(files[0]))
    if whose == _FLUX:
        raise ConfigError(
            f"{said} holds FLUX's VAE, which has the shapes of SD3's and would draw wrong colours: give SD3's"
        )
    if whose is None:
        raise ConfigError(
            f"{said}: nothing in the file tells whether it is SD3's VAE or FLUX's, which has the same shapes and "
            "would draw wrong colours; if it is SD3's, say so with --vae_is_sd3, or give the folder with its "
            "config.json"
        )


def _told(metadata: Mapping[str, str]) -> str | None:
    """The family, by what the file says of itself (https://github.com/Stability-AI/ModelSpec)."""
    told = metadata.get("modelspec.architecture", "").lower()
    if told.startswith("flux"):
        return _FLUX
    return _SD3 if told.startswith("stable-diffusion-v3") else None


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value
