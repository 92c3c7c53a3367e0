"""Which program wrote a checkpoint, by what the file says of itself: it tells how attn2 was computed. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping


def attn2_layout_by_writer(metadata: Mapping[str, str]) -> str:
    """The layout of attn2 that the writing program computes with; empty where nothing tells.

    sd-scripts calls the architecture `stable-diffusion-3-…`, Stability `stable-diffusion-v3…`. Stability as an
    implementation tells nothing: sd-scripts writes that, too. (https://github.com/Stability-AI/ModelSpec)
    """
    told = {key: value.lower() for key, value in metadata.items()}
    architecture = told.get("modelspec.architecture", "")
    by_scripts = any(key.startswith("ss_") for key in told) or any(
        "sd-scripts" in each for each in told.values()
    )
    if by_scripts or architecture.startswith("stable-diffusion-3-"):
        return "sd-scripts"
    by_stability = "stability" in told.get("modelspec.author", "")
    return "diffusers" if by_stability and architecture.startswith("stable-diffusion-v3") else ""
