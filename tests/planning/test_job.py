"""A job is resolved once: what it plans is what the file then holds, and --dry_run refuses what the capture would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from making.pipelines import HEIGHT, LAYERS, T5_TOKENS, WIDTH, make_pipeline
from making.weights import original_mmdit
from safetensors.torch import save_file

import capture_cli
from sd35h5 import open_store
from sd35h5.capturing.run_job import run
from sd35h5.gates.forms import fuse_gates
from sd35h5.gates.gate_options import GateOptions
from sd35h5.gates.modules import build_gates, gate_tensors, save_gates
from sd35h5.planning.job import make_job
from sd35h5.planning.options import CaptureConfig, Output, Prompts, Sampling, Tiers
from sd35h5.weights.model_options import Model

SAMPLING = Sampling(steps=2, height=HEIGHT, width=WIDTH, max_sequence_length=T5_TOKENS)
FLAGS = [
    "--prompt",
    "a cat",
    "--steps",
    "2",
    "--height",
    str(HEIGHT),
    "--width",
    str(WIDTH),
    "--device",
    "cpu",
]
FLAGS += ["--max_sequence_length", str(T5_TOKENS)]


def _random(gates):
    torch.manual_seed(1)
    for _, _, gate in gates.all():
        for parameter in gate.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return gates


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    """An MMDiT-X whose first two layers have a second attention, and files of gates for it."""
    folder = tmp_path_factory.mktemp("medium")
    pipe = make_pipeline(dual_attention_layers=(0, 1))
    pipe.save_pretrained(folder / "model")
    for target in ("joint", "attn2", "all"):
        gates = _random(build_gates(pipe.transformer, "headwise", target=target))
        save_gates(folder / f"{target}.safetensors", gates, torch.float32)
        fused = fuse_gates(original_mmdit(pipe.transformer), gate_tensors(gates))
        save_file(
            {name: value.contiguous() for name, value in fused.items()},
            folder / f"{target}-fused.safetensors",
        )
    return folder


def _config(medium, out, **more) -> CaptureConfig:
    model = Model(model_id=str(medium / "model"), device="cpu", gates=more.pop("gates", ""))
    config = CaptureConfig(
        model=model, prompts=Prompts(("a cat",)), sampling=SAMPLING, output=Output(out=str(out))
    )
    return replace(config, **more)


@pytest.mark.parametrize(
    ("gates", "options"),
    [
        ("", {}),
        pytest.param("joint", {}, marks=pytest.mark.long),
        pytest.param("attn2", {}, marks=pytest.mark.long),
        pytest.param("all", {}, marks=pytest.mark.long),
        ("attn2", {"attn2_layout": "sd-scripts"}),
        pytest.param("", {"attn2_layout": "sd-scripts"}, marks=pytest.mark.long),
        ("all", {"gate_target": "joint", "gate_layers": "1"}),
        pytest.param("all", {"gate_type": "none"}, marks=pytest.mark.long),
        pytest.param(
            "",
            {"gate_type": "elementwise", "gate_init": "neutral", "gate_target": "attn2"},
            marks=pytest.mark.long,
        ),
    ],
)
def test_the_plan_names_what_the_file_will_hold(medium, tmp_path, gates, options):
    config = _config(
        medium, tmp_path / "a.h5", gates=str(medium / f"{gates}.safetensors") if gates else "",
        gating=GateOptions(**options),
        tiers=Tiers(topk=0 if gates == "all" else 4, map_heads="all", atlas=True, rows=("centre",)),
    )  # fmt: skip
    job = make_job(config)
    with open_store(run(job)) as store:
        held = {name for name in store.variables if not name.startswith("samples/")}
        assert {part.name for part in job.plan.parts} == held
        for part in job.plan.parts:
            sizes = dict(zip(store.read(part.name).dims, store.read(part.name).shape, strict=True))
            wanted = (
                {"branch", "query", "layer"} & set(part.shape) if part.name.startswith("attn2") else set()
            )
            assert {d: n for d, n in part.shape.items() if d not in wanted | {"branch"}} == {
                d: n for d, n in sizes.items() if d not in wanted | {"branch", "sample"}
            }, part.name


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dit_path", "all-fused"], "say --attn2_layout sd-scripts if it was trained with sd-scripts"),
        (
            ["--dit_path", "joint-fused", "--attn2_layout", "diffusers", "--gate_type", "elementwise"],
            "are headwise",
        ),
        (["--gates", "joint", "--gate_type", "elementwise"], "the gates of joint.safetensors are headwise"),
        (
            ["--gates", "joint", "--gate_target", "attn2"],
            "joint.safetensors has gates on joint layers 0-2 only",
        ),
        (["--gates", "all", "--gate_layers", "7"], "all.safetensors has no gate on layer 7"),
        (["--gate_layers", "1"], "--gate_layers 1: this model has no gates"),
        (["--gate_type", "headwise"], "--gate_type headwise: this model has no gates"),
        (["--seed", str(2**63)], f"--seed {2**63} is too large"),
        (["--seed", str(2**63 - 1), "--num_images", "2"], "is too large"),
        (["--map_layers", "3"], "names layer 3, but 3 layers are numbered 0..2"),
        (["--compile", "blocks", "--offload", "model"], "leave out --compile blocks, or --offload"),
    ],
)
def test_a_dry_run_refuses_what_the_capture_would_by_the_same_sentence(medium, tmp_path, capsys, flags, said):
    files = {"--dit_path", "--gates"}
    flags = [
        str(medium / f"{flag}.safetensors") if before in files else flag
        for before, flag in zip(["", *flags], flags, strict=False)
    ]
    command = ["--model_id", str(medium / "model"), *FLAGS, *flags, "--out", str(tmp_path / "a.h5")]
    sentences = []
    for more in (["--dry_run"], []):
        assert capture_cli.main([*command, *more]) == 1
        sentences.append(capsys.readouterr().err.strip().splitlines()[-1])
    assert sentences[0] == sentences[1] and said in sentences[0]
    assert not list(tmp_path.iterdir())


def test_zero_rows_and_the_layout_are_asked_for_at_once_and_before_weights(medium, tmp_path, capsys):
    """The fused file of attn2's gates widens the layers without a gate with zeros, too."""
    from safetensors.torch import load_file

    state = load_file(medium / "all-fused.safetensors")
    heads = make_pipeline().transformer.config.num_attention_heads
    for name, value in state.items():
        if ".0.x_block.attn.qkv" in name or ".0.context_block.attn.qkv" in name:
            value[-heads:] = -0.0  # minus zero is zero
    save_file(state, tmp_path / "zero.safetensors")
    command = ["--model_id", str(medium / "model"), *FLAGS, "--dit_path", str(tmp_path / "zero.safetensors")]
    assert capture_cli.main([*command, "--dry_run"]) == 1
    said = capsys.readouterr().err
    assert "say --attn2_layout" in said and "the gate rows of joint layer 0 are all zero" in said
    answered = [*command, "--attn2_layout", "diffusers", "--gate_zero_rows", "half", "--dry_run"]
    assert capture_cli.main(answered) == 0
    assert "gates/mean" in capsys.readouterr().out


def test_a_job_knows_each_samples_place_and_seed(medium, tmp_path):
    prompts = Prompts(("a cat", "a dog"), num_images=2, seed=5)
    job = make_job(replace(_config(medium, tmp_path / "a.h5"), prompts=prompts))
    assert job.samples == 4 and [job.places(index) for index in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [job.seed(index) for index in range(4)] == [5, 1_000_005, 6, 1_000_006]
    assert job.plan.sizes["layer"] == LAYERS and job.gates.places == ()
