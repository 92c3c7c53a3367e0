"""The command line: help that teaches at once, refusals by name in one line, captures, the demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH

import capture_cli
from sd35h5 import metrics, open_store
from sd35h5.errors import ConfigError
from sd35h5.gates.gate_options import GateOptions
from sd35h5.planning.demo import VARIANTS, demo_configs, run_demo
from sd35h5.planning.job import make_job
from sd35h5.planning.options import CaptureConfig, Model, Output, Prompts, Sampling, Tiers

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--height",
    str(HEIGHT),
    "--width",
    str(WIDTH),
    "--steps",
    "4",
    "--max-sequence-length",
    str(T5_TOKENS),
]


def _said(capsys) -> str:
    return capsys.readouterr().err


def test_help_is_there_in_a_second_without_torch_and_names_every_option():
    code = """if True:
        import sys, capture_cli
        try: capture_cli.main(["--help"])
        finally: assert "torch" not in sys.modules
    """
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    assert done.returncode == 0, done.stderr
    for part in (Model, Prompts, Sampling, Tiers, Output, capture_cli.Action):
        for field in fields(part):
            assert f"--{field.name}" in done.stdout
    assert "--skip_images" in done.stdout and "$ python capture_cli.py --demo" in done.stdout
    assert seconds < 5  # under a second on an idle machine; this one may be busy


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompt", "a cat", "--dtype", "int3"], "--dtype 'int3' is unknown"),
        (["--prompt", "a cat", "--height", "100"], "--height 100 is not a multiple of 16"),
        (["--prompt", "a cat", "--steps", "0"], "--steps 0 is too small"),
        ([], "there is nothing to draw"),
        (["--prompt", "a cat", "--words", "zebra"], "--words 'zebra' is in no prompt"),
        (["--prompt", "a cat", "--model-id", "./nowhere"], "--model_id ./nowhere: there is no such folder"),
        (["--prompt", "a cat", "--model_id", "a-b/c-d"], "--demo"),
        (["--demo", "--out", "x.h5"], "leave --out away"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_1(flags, said, capsys):
    assert capture_cli.main(flags) == 1
    err = _said(capsys)
    assert said in err and err.startswith("error: ") and err.count("\n") == 1


def test_no_cuda_is_refused_before_weights_are_loaded(tiny_folder, capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    flags = [
        "--model_id",
        str(tiny_folder),
        "--prompt",
        "a cat",
        "--device",
        "cuda",
        "--out",
        str(tmp_path / "a.h5"),
    ]
    assert capture_cli.main(flags) == 1
    assert "--device cuda: this machine has no CUDA devices; use --device cpu" in _said(capsys)
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback():
    with pytest.raises(ConfigError):
        capture_cli.main(["--debug"])


def test_an_unknown_flag_is_a_usage_error():
    with pytest.raises(SystemExit) as caught:
        capture_cli.main(["--columns", "centre"])
    assert caught.value.code == 2


def test_a_plan_can_be_read_in_part(tiny_folder, tmp_path):
    """As in `... --dry_run | head -1`: who reads goes, and nothing is said about it."""
    command = [
        sys.executable,
        "capture_cli.py",
        "--model_id",
        tiny_folder,
        "--prompt",
        "a cat",
        *SMALL,
        "--dry_run",
        "--out",
        tmp_path / "run.h5",
    ]
    process = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_dry_run_prints_the_plan_and_writes_nothing(tiny_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--model_id",
        str(tiny_folder),
        "--transformer",
        "transformer_headwise",
        "--prompt",
        "a cat",
        *SMALL,
    ]
    assert capture_cli.main([*flags, "--dry-run"]) == 0
    out = capsys.readouterr().out
    for word in (
        "3 layers, 2 heads of 8",
        "gates.safetensors",
        "gates/below_0_1",
        "1 sample",
        "64 × 96 px",
        "sum:",
    ):
        assert word in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        ("--out_dir", "--out run.h5"), ("--out-root=x", "--analyze FOLDER"), ("--fp16", "--dtype fp16"),
        ("--bf16", "--dtype bf16"), ("--dump_attn_png", "python -m sd35h5 export"),
    ],
)  # fmt: skip
def test_flags_of_the_older_tool_are_answered_by_ours(flag, ours, capsys):
    assert capture_cli.main(["--prompt", "a cat", flag]) == 2
    told = capsys.readouterr().err
    assert ours in told and told.startswith("error: there is no --") and told.count("\n") == 1


def test_flags_of_the_older_tool_with_our_meaning_work(tiny_folder, capsys):
    common = ["--model_id", str(tiny_folder), "--prompt", "a cat", "--dry_run"]
    assert (
        capture_cli.main(
            [*common, "--guidance", "3", "--max_sequence_length", "40", "--branches", "cond", "uncond"]
        )
        == 0
    )
    ours = capsys.readouterr().out
    assert (
        capture_cli.main([*common, "--cfg_scale", "3", "--t5xxl_token_length", "40", "--keep_unconditional"])
        == 0
    )
    assert capsys.readouterr().out == ours
    choices = get_args(get_type_hints(capture_cli.Action)["value_col"])
    assert set(choices) == set(metrics.METRICS)


def test_a_capture_draws_what_the_plain_pipeline_draws_for_each_seed(
    tiny_folder, tiny_pipeline, capsys, tmp_path
):
    out = tmp_path / "run.h5"
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"id": "apple", "prompt": "a red apple"}, "a blue cat", "a dog"]))
    flags = [
        "--model-id",
        str(tiny_folder),
        "--prompts_json",
        str(prompts),
        "--limit",
        "2",
        "--num_images",
        "2",
        "--seed",
        "7",
    ]
    flags += ["--negative_prompt", "green", "--words", "red", "blue cat", "--out", str(out), *SMALL]
    assert capture_cli.main(flags) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == [str(out)]
    assert "sample 4/4, step 4/4" in captured.err and "streamlit run dashboard/app.py" in captured.err
    with open_store(out) as store:
        assert list(store.samples["prompt_id"]) == ["apple", "apple", "p001", "p001"]
        assert list(store.samples["seed"]) == [7, 1_000_007, 8, 1_000_008]
        assert list(store.samples["image_index"]) == [0, 1, 0, 1]
        for index, row in store.samples.iterrows():
            plain = tiny_pipeline(
                row["prompt"], negative_prompt="green",
                generator=torch.Generator("cpu").manual_seed(int(row["seed"])),
                height=HEIGHT, width=WIDTH, num_inference_steps=4, guidance_scale=4.5,
                max_sequence_length=T5_TOKENS,
            ).images[0]  # fmt: skip
            assert np.array_equal(store.image(index), np.asarray(plain))
        tokens = store.tokens(2).set_index("token")
        mapped = store.read("maps/map_token_index", sample=2, branch="cond").values
        assert [tokens.loc[t, "text"] for t in mapped if t >= 0] == [
            "<|startoftext|>",
            "blue",  # CLIP and T5 in turns
            "blue",
            "cat",
            "cat",
        ]
        assert (
            store.config["steps"] == 4
            and store.config["dtype"] == "float32"
            and store.config["device"] == "cpu"
        )
    assert capture_cli.main(flags) == 0
    assert "complete already" in _said(capsys) and not (tmp_path / "run.h5.parts").exists()
    assert capture_cli.main([*flags, "--guidance", "3"]) == 1
    assert "guidance: 4.5 there, 3.0 now" in _said(capsys)
    assert capture_cli.main([*flags, "--guidance", "3", "--overwrite"]) == 0
    with open_store(out) as store:
        assert store.config["guidance"] == 3.0


def test_no_images_leaves_them_out_and_analyze_goes_on(tiny_folder, capsys, tmp_path):
    flags = [
        "--model_id",
        str(tiny_folder),
        "--prompt",
        "a cat",
        "--out",
        str(tmp_path / "a.h5"),
        *SMALL,
        "--skip-images",
    ]
    assert capture_cli.main([*flags, "--analyze", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "first_token_metrics.csv").is_file()
    with open_store(tmp_path / "a.h5") as store:
        assert store.image(0) is None and "images/image" not in store


def test_gates_are_read_from_beside_the_transformer_or_from_a_file_and_said(tiny_folder, capsys, tmp_path):
    common = ["--prompt", "a cat", *SMALL, "--model_id", str(tiny_folder)]
    beside = [*common, "--transformer", "transformer_elementwise", "--out", str(tmp_path / "a.h5")]
    file = [
        *common,
        "--gates",
        str(tiny_folder / "transformer_elementwise" / "gates.safetensors"),
        "--out",
        str(tmp_path / "b.h5"),
    ]
    plain = [*common, "--out", str(tmp_path / "c.h5")]
    for flags, said in ((beside, True), (file, True), (plain, False)):
        assert capture_cli.main(flags) == 0
        assert ("note: gates: elementwise, on joint layers 0-2" in _said(capsys)) == said
    stores = [open_store(tmp_path / f"{name}.h5") for name in "abc"]
    images = [store.image(0) for store in stores]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])
    assert [store.attributes["gate_type"] for store in stores] == ["elementwise", "elementwise", "none"]
    assert len({store.samples["pairing_key"][0] for store in stores}) == 1


def test_untrained_gates_are_called_so(tiny_folder, tiny_pipeline, capsys, tmp_path):
    from sd35h5.gates.modules import build_gates, save_gates

    save_gates(tmp_path / "zero.safetensors", build_gates(tiny_pipeline.transformer, "headwise"))
    flags = [
        "--model_id",
        str(tiny_folder),
        "--gates",
        str(tmp_path / "zero.safetensors"),
        "--prompt",
        "a cat",
    ]
    assert capture_cli.main([*flags, *SMALL, "--out", str(tmp_path / "a.h5")]) == 0
    assert "these gates are untrained" in _said(capsys)


def test_overwriting_keeps_what_is_there_until_the_model_is_loaded(tiny_folder, capsys, tmp_path):
    out = tmp_path / "a.h5"
    flags = ["--model_id", str(tiny_folder), "--prompt", "a cat", *SMALL, "--out", str(out), "--overwrite"]
    assert capture_cli.main(flags) == 0
    before = out.read_bytes()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no gates")
    assert capture_cli.main([*flags, "--gates", str(broken)]) == 1
    assert "broken.safetensors is no safetensors file" in _said(capsys)
    assert out.read_bytes() == before


def test_surplus_and_missing_weights_are_refused_by_key(tiny_folder, capsys, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "transformer_odd"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_folder / "transformer" / "config.json").read_text())
    weights = load_file(tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    flags = [
        "--model_id",
        str(tiny_folder),
        "--transformer",
        str(folder),
        "--prompt",
        "a cat",
        *SMALL,
        "--out",
        str(tmp_path / "a.h5"),
    ]
    for changed, said in (
        ({**weights, "transformer_blocks.0.attn.gate_proj.weight": torch.zeros(2, 2)}, "gate_proj"),
        ({k: v for k, v in weights.items() if k != "proj_out.bias"}, "lacks proj_out.bias"),
    ):
        save_file(changed, folder / "diffusion_pytorch_model.safetensors")
        assert capture_cli.main(flags) == 1
        assert said in _said(capsys)


def test_the_demo_captures_all_three_transformers_with_equal_seeds(
    tiny_folder, capsys, tmp_path, monkeypatch
):
    from sd35h5.capturing.run_job import run

    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "demo.json"
    prompts.write_text(json.dumps([{"id": "apple", "prompt": "a red apple"}]))
    asked = CaptureConfig(
        sampling=Sampling(steps=4, height=HEIGHT, width=WIDTH, max_sequence_length=T5_TOKENS)
    )
    lines: list[str] = []
    stores = run_demo(
        [make_job(each) for each in demo_configs(asked, tiny_folder, prompts)], run, lines.append
    )
    assert [str(path) for path in stores] == [f"runs/demo-{name}.h5" for name in VARIANTS] and len(lines) == 3
    opened = [open_store(path) for path in stores]
    assert [store.attributes["gate_type"] for store in opened] == ["none", "headwise", "elementwise"]
    assert len({store.samples["pairing_key"][0] for store in opened}) == 1


def test_the_demo_refuses_gate_options_which_its_baseline_cannot_take(tiny_folder):
    asked = CaptureConfig(gating=GateOptions(gate_override="open"))
    with pytest.raises(
        ConfigError, match="--demo draws the baseline, too, which has no gates for --gate_override"
    ):
        demo_configs(asked, tiny_folder)


def test_an_intervention_where_the_model_ends_is_refused_before_anything_is_loaded_or_made(
    tiny_folder, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(capture_cli, "_load_capture", lambda: pytest.fail("torch was loaded"))
    flags = [
        "--model_id",
        str(tiny_folder),
        "--prompt",
        "a cat",
        *SMALL,
        "--intervene",
        "mask:clip_bos@layers",
        "1-3",
    ]
    assert capture_cli.main(flags) == 1
    assert "--intervene @layers names layer 3, but 3 layers are numbered 0..2" in _said(capsys)
    assert not list(tmp_path.iterdir())


def test_the_demo_needs_the_bundled_models(tmp_path):
    with pytest.raises(ConfigError, match="bundled models are not at"):
        demo_configs(CaptureConfig(), tmp_path)
