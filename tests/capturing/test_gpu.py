"""On CUDA: the picture stays the plain pipeline's to the bit, whichever backend attends, and rows of A sum to 1."""

from __future__ import annotations

import pytest
import torch
from making.pipelines import make_pipeline, torch_generator

import sd35h5

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [32, 64])
def test_cuda_images_are_those_of_the_plain_pipeline_to_the_bit(head_dim, dtype, call, tmp_path):
    pipe = make_pipeline(attention_head_dim=head_dim, caption_projection_dim=2 * head_dim).to("cuda", dtype)
    call = call | {"output_type": "pt"}
    plain = pipe("a red apple left of a cat", generator=torch_generator(3), **call).images
    with sd35h5.capture(pipe, tmp_path / "run.h5") as generate:
        captured = generate("a red apple left of a cat", seed=3, **call).images
    assert torch.equal(plain, captured)
    store = sd35h5.open_store(tmp_path / "run.h5")
    assert store.samples["row_sum_error"].max() < 1e-5
    assert abs(store.read("sinks/mass_group").sum("group") - 1).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_on_cuda_is_the_plain_pipelines_to_the_bit_and_measured_sample_by_sample(
    dtype, call, tmp_path
):
    pipe = make_pipeline().to("cuda", dtype)
    call = call | {"output_type": "pt", "max_sequence_length": 23}
    prompts = ["a red apple", "a cat left of a dog", "a tree"]
    plain = pipe(prompts, generator=[torch_generator(3 + sample) for sample in range(3)], **call).images
    with sd35h5.capture(pipe, tmp_path / "batch.h5", precision="exact") as generate:
        assert torch.equal(generate(prompts, seed=3, **call).images, plain)
    with sd35h5.capture(pipe, tmp_path / "single.h5", precision="exact") as generate:
        for sample, prompt in enumerate(prompts):
            generate(prompt, seed=3 + sample, **call)
    batch, single = (sd35h5.open_store(tmp_path / f"{name}.h5") for name in ("batch", "single"))
    for name in ("sinks/mass_group", "sinks/mass_image", "maps/image_to_text"):
        first, alone = (store.read(name, step=0) if name.startswith("sinks/") else store.read(name, map_step=0)
                        for store in (batch, single))  # fmt: skip
        difference = abs(first - alone)
        assert difference.max() < (1e-4 if dtype == torch.float32 else 1e-2) * abs(alone).max(), name


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offloaded_models_draw_what_models_on_the_device_draw_while_captured(
    tiny_folder, call, tmp_path, how
):
    from dataclasses import replace

    from sd35h5.capturing.pipeline import load
    from sd35h5.planning.options import Model
    from sd35h5.weights.model_facts import read_facts

    model = Model(model_id=str(tiny_folder), transformer="transformer_headwise", device="cuda")
    pipes = [load(each, read_facts(each)).pipe for each in (model, replace(model, offload=how))]
    call = call | {"output_type": "pt"}
    plain = pipes[0]("a red apple", generator=torch_generator(0), **call).images
    with sd35h5.capture(pipes[1], tmp_path / "run.h5") as generate:
        assert torch.equal(plain, generate("a red apple", seed=0, **call).images)
    assert sd35h5.open_store(tmp_path / "run.h5").samples["row_sum_error"].max() < 1e-5
    assert pipes[1].text_encoder_3.device.type == ("cpu" if how == "model" else "meta")


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("use_stream", [False, True])
def test_groups_that_come_to_the_device_in_turn_draw_what_the_whole_draws(kind, use_stream, call, tmp_path):
    pipe, call = make_pipeline().to("cuda"), call | {"output_type": "latent"}
    plain = pipe("a red apple", generator=torch_generator(0), **call).images
    pipe.to("cpu")
    pipe.enable_group_offload("cuda", offload_type=kind, num_blocks_per_group=1, use_stream=use_stream)
    with sd35h5.capture(pipe, tmp_path / "run.h5") as generate:
        for seed in (0, 1):  # streams bring the next group in advance from the second call on
            latents = generate("a red apple", seed=seed, **call).images
            assert seed or torch.equal(latents, plain)
    store = sd35h5.open_store(tmp_path / "run.h5")
    assert store.samples["row_sum_error"].max() < 1e-5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_layers_on_two_devices_are_captured_to_the_bit(call, tmp_path):
    from accelerate import dispatch_model

    pipe, call = make_pipeline(dual_attention_layers=(0, 1)), call | {"output_type": "latent"}
    names = [name for name, _ in pipe.transformer.named_children() if name != "transformer_blocks"]
    places = dict.fromkeys((*names, "transformer_blocks.0"), 0)
    pipe.to("cuda:0")
    pipe.transformer = dispatch_model(
        pipe.transformer, places | {"transformer_blocks.1": 1, "transformer_blocks.2": 1}
    )
    plain = pipe("a red apple", generator=torch_generator(0), **call).images
    with sd35h5.capture(pipe, tmp_path / "run.h5", atlas=True, top_steps="all") as generate:
        assert torch.equal(generate("a red apple", seed=0, **call).images, plain)
    store = sd35h5.open_store(tmp_path / "run.h5")
    assert store.samples["row_sum_error"].max() < 1e-5
    assert abs(store.read("sinks/mass_group").sum("group") - 1).max() < 1e-5
