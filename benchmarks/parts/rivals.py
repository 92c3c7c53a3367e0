"""What a capture is measured against: eager softmax copied to the host, and attention-map-diffusers 1.0.0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from sd35h5.gates.attention import finish_joint, project_joint

ATTENTION_MAP_DIFFUSERS = {  # row -> settings of its AttentionCapture
    "amd fast/cuda": {"mode": "fast", "offload": None},
    "amd fast/cpu": {"mode": "fast", "offload": "cpu"},
    "amd exact/mean": {"mode": "exact", "heads": "mean"},
    "amd exact/all": {"mode": "exact", "heads": "all"},
}


class EagerProcessor:
    """Attention as people write it to look at it: softmax of the whole matrix, the text's columns to the host."""

    def __init__(self, kept: dict[str, Tensor], name: str) -> None:
        self.kept, self.name = kept, name

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        joint = project_joint(attn, hidden_states, encoder_hidden_states)
        scores = joint.query @ joint.key.transpose(-1, -2) * joint.query.shape[-1] ** -0.5
        shares = scores.softmax(-1)
        self.kept[self.name] = shares[:, :, : joint.image_tokens, joint.image_tokens :].cpu()
        return finish_joint(attn, shares @ joint.value, hidden_states, encoder_hidden_states)


@contextmanager
def eager(pipe: StableDiffusion3Pipeline) -> Iterator[None]:
    """Attend eagerly and keep the last step's probabilities on the host."""
    before, kept = dict(pipe.transformer.attn_processors), {}
    pipe.transformer.set_attn_processor({name: EagerProcessor(kept, name) for name in before})
    try:
        yield
    finally:
        pipe.transformer.set_attn_processor(dict(before))


@contextmanager
def attention_map_diffusers(pipe: StableDiffusion3Pipeline, settings: dict[str, object]) -> Iterator[None]:
    """Capture A[image, text] of all layers and steps with that package."""
    from attention_map_diffusers import AttentionCapture

    with AttentionCapture(
        pipe, relations=["image->text"], timesteps="all", allow_large_maps=True,
        max_capture_bytes=64 << 30, max_map_elements=1 << 40, **settings,
    ):  # fmt: skip
        yield
