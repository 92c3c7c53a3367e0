"""MMDiT-X in the original layout without gates: who wrote the file tells how attn2 is computed, or it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from making.mmdit import PlainMMDiT, original_state
from making.published import sparse_file
from making.weights import DIT, REAL_TRANSFORMERS, save, small_pipeline
from safetensors.torch import save_file

from sd35h5.capturing.pipeline import load
from sd35h5.errors import ConfigError
from sd35h5.gates.decision import Attn2
from sd35h5.gates.gate_options import GateOptions
from sd35h5.planning.describing import describe
from sd35h5.planning.job import resolve
from sd35h5.planning.options import CaptureConfig, Model
from sd35h5.planning.prompts import Prompt
from sd35h5.weights.attn2_origin import attn2_of
from sd35h5.weights.model_facts import read_facts
from sd35h5.weights.sources import find_part

# as sd-scripts' save_models writes, through its build_metadata, older and newer; as trainers of networks do
BY_SCRIPTS = (
    {
        "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion-3-3-5-medium",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "Checkpoint@1730000000.0", "modelspec.prediction_type": "epsilon",
    },
    {
        "modelspec.architecture": "stable-diffusion-v3.5-medium", "modelspec.author": "Stability AI",
        "modelspec.implementation_version": "sd-scripts/1234567",
    },
    {"ss_base_model_version": "sd3.5-medium"},
)  # fmt: skip
BY_STABILITY = {
    "modelspec.architecture": "stable-diffusion-v3.5-medium", "modelspec.author": "Stability AI",
    "modelspec.title": "Stable Diffusion 3.5 Medium",
}  # fmt: skip
UNTOLD = ({}, {"format": "pt"}, {"prompt": "{}", "workflow": "{}"}, {"modelspec.title": "my merge"})
QUESTION = "dit.safetensors is an MMDiT-X in the original layout, .* --attn2_layout sd-scripts if .* diffusers if not"


@pytest.fixture(scope="module")
def small():
    """Two heads of 8: as heads of 2 channels in sd-scripts. Its second attentions are made sharp and loud."""
    pipe = small_pipeline(dual=(0, 1))
    with torch.no_grad():
        for block in pipe.transformer.transformer_blocks[:2]:
            for norm in (block.attn2.norm_q, block.attn2.norm_k, block.attn2.to_out[0]):
                norm.weight *= 20
    return pipe


@pytest.fixture(scope="module")
def small_folder(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attn2") / "small"
    small.save_pretrained(folder)
    return folder


def _file(small, folder: Path, metadata: dict[str, str]) -> Path:
    state = {key: each.contiguous() for key, each in original_state(small.transformer.state_dict()).items()}
    save_file(state, folder / "dit.safetensors", metadata)
    return folder / "dit.safetensors"


def _inputs() -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    shapes = (1, 16, 8, 12), (1, 7, 192), (1, 192)
    latents, text, pooled = (torch.randn(*shape, generator=random) for shape in shapes)
    return latents, torch.tensor([500.0]), text, pooled


def _drawn(small_folder: Path, file: Path, options: GateOptions | None = None) -> torch.Tensor:
    model = Model(model_id=str(small_folder), dit_path=str(file), device="cpu")
    latents, timestep, text, pooled = _inputs()
    transformer = load(model, read_facts(model), options).pipe.transformer
    with torch.no_grad():
        return transformer(
            hidden_states=latents, timestep=timestep, encoder_hidden_states=text, pooled_projections=pooled
        ).sample


def _by_formula(small, head: int) -> torch.Tensor:
    plain = PlainMMDiT(original_state(small.transformer.state_dict()), 8, lambda *_: 1.0, head)
    return plain(*_inputs()).float()


@pytest.mark.parametrize(
    ("metadata", "options", "head"),
    [
        *((metadata, GateOptions(), 2) for metadata in BY_SCRIPTS),
        (BY_STABILITY, GateOptions(), 8),
        ({}, GateOptions(attn2_layout="sd-scripts"), 2),
        ({}, GateOptions(attn2_layout="diffusers"), 8),
        (BY_SCRIPTS[0], GateOptions(attn2_layout="diffusers"), 8),  # who says it knows it
    ],
)
def test_attn2_is_computed_as_the_files_writer_did(metadata, options, head, small, small_folder, tmp_path):
    drawn = _drawn(small_folder, _file(small, tmp_path, metadata), options)
    torch.testing.assert_close(drawn, _by_formula(small, head), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(drawn, _by_formula(small, 10 - head), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("metadata", UNTOLD)
def test_where_nothing_tells_it_is_asked_before_weights_are_read(metadata, small, small_folder, tmp_path):
    model = Model(model_id=str(small_folder), dit_path=str(_file(small, tmp_path, metadata)))
    with pytest.raises(ConfigError, match=QUESTION):
        resolve(CaptureConfig(model), [Prompt("a", "a cat")], read_facts(model))


def test_the_plan_and_the_picture_agree(small, small_folder, tmp_path):
    model = Model(
        model_id=str(small_folder), dit_path=str(_file(small, tmp_path, BY_SCRIPTS[0])), device="cpu"
    )
    job = resolve(CaptureConfig(model), [Prompt("a", "a cat")], read_facts(model))
    assert job.gates.attn2_layout == "sd-scripts" and describe(job)


def test_a_file_in_diffusers_layout_and_one_without_a_second_attention_are_not_asked_about(
    small_folder, tmp_path
):
    assert attn2_of(find_part("transformer", Model(), small_folder)) == Attn2()
    state = original_state(small_pipeline().transformer.state_dict())
    part = find_part("transformer", Model(dit_path=str(save(tmp_path / "a.safetensors", state))), None)
    assert attn2_of(part) == Attn2()


@pytest.mark.parametrize(
    "sha256",
    [
        "11fe06e22364b823dfeedc275912336b932b32a293a0b2f35ffac071990cc4de",
        "3bb7f21bc5fb450220f4eb78a2f276b15422309d5166a4bdeb8c3b763a3a0581",
    ],
)
def test_stabilitys_own_file_is_known_by_its_hash(sha256, tmp_path):
    shapes = REAL_TRANSFORMERS["stabilityai/stable-diffusion-3.5-medium"]
    file = sparse_file(
        tmp_path / "a.safetensors", {DIT + key: each for key, each in shapes.items()}, sha256=sha256
    )
    part = find_part("transformer", Model(dit_path=str(file)), None)
    assert attn2_of(part) == Attn2("a.safetensors", "diffusers")
