"""Captures of gated models: what the store holds of their gates, computed another way; the command line."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from making.pipelines import HEADS, HEIGHT, LAYERS, T5_TOKENS, WIDTH, make_pipeline
from safetensors.torch import load_file, save_file

import capture_cli
import sd35h5
from sd35h5 import open_store
from sd35h5.__main__ import main
from sd35h5.gates.modules import GATES_FILE, build_gates, install_gates, save_gates
from sd35h5.store.schema import GROUPS

PROMPT, STEPS, DUAL = "a red apple", 2, (0, 1)
STATISTICS = ("mean", "std", "min", "max", "below_0_1", "below_0_5")


def _gated(gate_type: str):
    pipe = make_pipeline(dual_attention_layers=DUAL)
    gates = build_gates(pipe.transformer, gate_type, target="all")
    torch.manual_seed(3)
    for _, _, gate in gates.all():
        for parameter in gate.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    install_gates(pipe.transformer, gates)
    return pipe, gates


def _inputs_of(pipe, kept: dict) -> list:
    """Hooks that keep what each attention is given: kept[layer, attention, stream] = one array a call."""
    hooks = []
    for layer, block in enumerate(pipe.transformer.transformer_blocks):
        modules = {("attn", "image"): block.attn.to_q, ("attn", "text"): block.attn.add_q_proj}
        if block.attn2 is not None:
            modules["attn2", "image"] = block.attn2.to_q
        for (attention, stream), module in modules.items():
            seen = kept.setdefault((layer, attention, stream), [])
            hooks.append(
                module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].double()))
            )
    return hooks


def _by_hand(gate, states: torch.Tensor, stream: str) -> np.ndarray:
    """The gate of each token, head and channel, float64 (batch, tokens, heads, channels or 1)."""
    linear = gate.to_gate if stream == "image" else gate.add_gate
    logits = states @ linear.weight.double().T + linear.bias.double()
    values = (gate.factor / (1 + (-logits).exp())).detach().numpy()
    return values.reshape(*values.shape[:2], HEADS, -1)


@pytest.fixture(scope="module", params=["headwise", "elementwise"])
def captured(request, tmp_path_factory):
    """(store path, gate by hand of each (layer, attention, stream): (step, branch, tokens, heads, channels))."""
    pipe, gates = _gated(request.param)
    path, kept = tmp_path_factory.mktemp("gated") / "run.h5", {}
    call = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS, "max_sequence_length": T5_TOKENS}
    hooks = _inputs_of(pipe, kept)
    with sd35h5.capture(pipe, path, maps="off", topk=5, top_steps="all", precision="exact") as generate:
        generate(PROMPT, seed=0, **call)
    for hook in hooks:
        hook.remove()
    by_hand = {}
    for layer, attention, gate in gates.all():
        for stream in ("image", "text"):
            if (stream == "image" or gate.add_gate is not None) and (layer, attention, stream) in kept:
                calls = [_by_hand(gate, states, stream) for states in kept[layer, attention, stream]]
                by_hand[layer, attention, stream] = np.stack(calls)[:, ::-1]  # diffusers: [uncond | cond]
    return path, by_hand


def _statistics(values: np.ndarray) -> np.ndarray:
    """(tokens, heads, channels) -> (statistic, heads)."""
    flat = values.transpose(1, 0, 2).reshape(HEADS, -1)
    shares = [(flat < edge).mean(1) for edge in (0.1, 0.5)]
    return np.stack([flat.mean(1), flat.std(1), flat.min(1), flat.max(1), *shares])


@pytest.mark.parametrize("attention", ["attn", "attn2"])
def test_statistics_are_those_of_the_gates_by_hand(captured, attention):
    path, by_hand = captured
    group = {"attn": "gates", "attn2": "attn2"}[attention]
    with open_store(path) as store:
        for place, statistic in enumerate(STATISTICS):
            got = store.read(f"{group}/{statistic}", sample=0)
            assert got.dims == ("branch", "query", "step", "layer", "head")
            for query, stream in enumerate(("image", "text")):
                for layer in range(LAYERS):
                    values = by_hand.get((layer, attention, stream))
                    for branch in range(2):
                        for step in range(STEPS):
                            told = got.values[branch, query, step, layer]
                            if values is None:  # the last text gate, and a layer or stream without attn2
                                assert np.isnan(told).all()
                            else:
                                hand = _statistics(values[step, branch])[place]
                                np.testing.assert_allclose(told, hand, atol=2e-6)


def test_group_means_are_means_over_the_queries_of_each_group(captured):
    path, by_hand = captured
    with open_store(path) as store:
        got = store.read("gates/group_mean", sample=0).values  # branch, query, group, step, layer, head
        labels = list(store.labels("group"))
        for branch, name in enumerate(("cond", "uncond")):
            groups = np.array(store.tokens(0, name)["group"])
            for group in GROUPS:
                at = labels.index(group)
                image, text = got[branch, 0, at], got[branch, 1, at]
                chosen = groups == group
                for layer in range(LAYERS):
                    if group == "image":
                        hand = by_hand[layer, "attn", "image"][:, branch].mean((1, 3))
                        np.testing.assert_allclose(image[:, layer], hand, atol=2e-6)
                    else:
                        assert np.isnan(image[:, layer]).all()
                    values = by_hand.get((layer, "attn", "text"))
                    if values is None or not chosen.any():
                        assert np.isnan(text[:, layer]).all()
                    else:
                        hand = values[:, branch, chosen].mean((1, 3))
                        np.testing.assert_allclose(text[:, layer], hand, atol=2e-6)


def test_contribution_is_mass_times_the_mean_gate_of_the_querying_stream_times_value_norm(captured):
    path, by_hand = captured
    with open_store(path) as store:
        names = ("topk/top_mass", "topk/top_value_norm", "gates/contribution")
        mass, norm, got = (store.read(name, sample=0, branch="cond").values for name in names)
    for query, stream in enumerate(("image", "text")):  # (query, step, layer, head, rank)
        for layer in range(LAYERS):
            values = by_hand.get((layer, "attn", stream))
            if values is None:
                assert np.isnan(got[query, :, layer]).all()
                continue
            mean = values[:, 0].mean((1, 3))[..., None]
            hand = mass[query, :, layer] * norm[query, :, layer] * mean
            np.testing.assert_allclose(got[query, :, layer], hand, rtol=1e-5)


def test_contribution_in_attn2_is_that_of_its_own_keys_and_gate(captured):
    path, by_hand = captured
    with open_store(path) as store:
        names = ("attn2/top_mass", "attn2/top_value_norm", "attn2/contribution")
        mass, norm, got = (store.read(name, sample=0, branch="cond").values for name in names)
    assert (
        np.isnan(got[1]).all() and np.isnan(got[0][:, 2]).all()
    )  # no text queries, no attn2 in the last layer
    for layer in (0, 1):
        mean = by_hand[layer, "attn2", "image"][:, 0].mean((1, 3))[..., None]
        hand = mass[0, :, layer] * norm[0, :, layer] * mean
        np.testing.assert_allclose(got[0, :, layer], hand, rtol=1e-5)


def test_contribution_is_kept_where_only_a_later_attn2_carries_a_gate(tmp_path):
    pipe, gates = _gated("headwise")
    del gates.second["0"]
    install_gates(pipe.transformer, gates)
    call = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": 1, "max_sequence_length": T5_TOKENS}
    with sd35h5.capture(pipe, tmp_path / "run.h5", maps="off", topk=5) as generate:
        generate(PROMPT, seed=0, **call)
    with open_store(tmp_path / "run.h5") as store:
        added = store.read("attn2/contribution", sample=0, branch="cond", query="image")
        mass = store.read("attn2/top_mass", sample=0, branch="cond", query="image")
    assert np.isfinite(added[:, 1]).all() and np.isnan(added[:, [0, 2]]).all()
    assert np.isfinite(mass[:, [0, 1]]).all()


def test_the_attributes_tell_of_both_attentions(captured):
    with open_store(captured[0]) as store:
        told = store.attributes
    assert (told["gate_target"], told["attn2_layout"], told["gate_weights"]) == (
        "all",
        "diffusers",
        "trained",
    )
    assert json.loads(told["gate_layers"]) == {"joint": [0, 1, 2], "attn2": [0, 1]}


def _flags(folder, out, *more: str) -> list[str]:
    return [
        "--model_id", str(folder), "--prompt", PROMPT, "--height", str(HEIGHT), "--width", str(WIDTH), "--steps", "2",
        "--max_sequence_length", str(T5_TOKENS), "--maps", "off", "--topk", "2", "--out", str(out), *more,
    ]  # fmt: skip


def _attributes(folder, out, *more: str) -> dict[str, str]:
    assert capture_cli.main(_flags(folder, out, *more)) == 0
    with open_store(out) as store:
        return dict(store.attributes) | {"pairing_key": store.samples["pairing_key"][0]}


def test_the_flags_reach_the_pictures_and_the_store(tiny_folder, tmp_path, capsys):
    headwise = ("--transformer", "transformer_headwise")
    runs = {
        "plain": (), "gated": headwise, "dropped": (*headwise, "--gate_type", "none"),
        "open": (*headwise, "--gate_override", "open"),
        "closed": (*headwise, "--gate_override", "closed", "--gate_layers", "0-1"),
        "identity": ("--gate_type", "elementwise", "--gate_init", "identity"),
        "some": ("--gates", str(tiny_folder / "transformer_elementwise" / GATES_FILE), "--gate_layers", "1"),
    }  # fmt: skip
    told = {name: _attributes(tiny_folder, tmp_path / f"{name}.h5", *more) for name, more in runs.items()}
    wanted = {
        "plain": ("none", "none", "none", "[]"), "gated": ("headwise", "none", "trained", "[0, 1, 2]"),
        "dropped": ("none", "none", "dropped", "[]"), "open": ("headwise", "open", "trained", "[0, 1, 2]"),
        "closed": ("headwise", "closed at joint 0-1", "trained", "[0, 1, 2]"),
        "identity": ("elementwise", "none", "untrained", "[0, 1, 2]"),
        "some": ("elementwise", "none", "trained", "[1]"),
    }  # fmt: skip
    names = ("gate_type", "gate_override", "gate_weights", "gate_layers")
    assert {name: tuple(each[key] for key in names) for name, each in told.items()} == wanted
    assert len({each["pairing_key"] for each in told.values()}) == 1
    images = {}
    for name in runs:
        with open_store(tmp_path / f"{name}.h5") as store:
            images[name] = store.image(0)
            assert ("gates/mean" in store) == (name not in ("plain", "dropped"))
    same = {name for name in runs if np.array_equal(images[name], images["plain"])}
    assert same == {"plain", "dropped", "open", "identity"}
    with open_store(tmp_path / "some.h5") as store:
        told = store.provenance["components"]["gates"]
    digest = hashlib.sha256((tiny_folder / "transformer_elementwise" / GATES_FILE).read_bytes()).hexdigest()
    assert told["file"] == GATES_FILE and told["form"] == "c" and told["sha256"] == digest
    capsys.readouterr()
    for name, said in (("identity", "untrained"), ("closed", "closed at joint 0-1"), ("dropped", "dropped")):
        assert main(["info", str(tmp_path / f"{name}.h5")]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--gate_type", "headwise"), "--gate_type headwise: this model has no gates"),
        (
            ("--transformer", "transformer_headwise", "--gate_type", "elementwise"),
            "gates.safetensors are headwise",
        ),
        (("--gate_layers", "a"), "--gate_layers 'a' is not understood"),
    ],
)
def test_a_contradiction_is_one_line(tiny_folder, tmp_path, capsys, more, said):
    assert capture_cli.main(_flags(tiny_folder, tmp_path / "x.h5", *more)) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_contradiction_is_told_before_weights_are_read_and_the_mended_command_draws(
    tiny_folder, tmp_path, capsys
):
    broken = tmp_path / "transformer"
    shutil.copytree(tiny_folder / "transformer_headwise", broken)
    whole = load_file(broken / "diffusion_pytorch_model.safetensors")
    save_file({**whole, "proj_out.bias": torch.zeros(1)}, broken / "diffusion_pytorch_model.safetensors")
    out = tmp_path / "x.h5"
    for weights, more, said in (
        (broken, ("--gate_type", "elementwise"), "gates.safetensors are headwise"),
        (broken, (), "proj_out.bias has shape (1,)"),  # what reading them would have told
        (tiny_folder / "transformer_headwise", ("--gate_layers", "9"), "has no gate on layer 9"),
    ):
        assert capture_cli.main(_flags(tiny_folder, out, "--transformer", str(weights), *more)) == 1
        assert said in capsys.readouterr().err.splitlines()[-1]
        assert not out.with_name("x.h5.parts").exists()
    flags = _flags(tiny_folder, out, "--transformer", "transformer_headwise", "--gate_layers", "1")
    assert capture_cli.main(flags) == 0
    with open_store(out) as store:
        assert store.attributes["gate_layers"] == "[1]"


def test_inspect_tells_of_a_file_and_extract_writes_it(tiny_pipeline, tmp_path, capsys):
    gates = build_gates(tiny_pipeline.transformer, "headwise", "2sigmoid")
    save_gates(tmp_path / "g.safetensors", gates)
    assert main(["gates", "inspect", str(tmp_path / "g.safetensors"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["gate_type"], told["activation"], told["layers"]) == (
        "headwise",
        "2sigmoid",
        {"joint": "0-2"},
    )
    assert told["weights"] == "untrained: all zero" and told["rows"] == f"{HEADS} × 16"
    assert told["attn2_layout"] == "no gate on one"
    save_gates(
        tmp_path / "x.safetensors", gates, attn2_layout="sd-scripts"
    )  # of an MMDiT-X, on its joint attention
    assert main(["gates", "inspect", str(tmp_path / "x.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["attn2_layout"] == "sd-scripts"
    assert main(["gates", "inspect", str(tmp_path / "g.safetensors")]) == 0
    assert "to_gate and add_gate (ours)" in capsys.readouterr().out
    extract = ["gates", "extract", str(tmp_path / "g.safetensors")]
    for more, said in (
        ((), "say with --out"),
        (("--out", str(tmp_path / "g.safetensors")), "is there already"),
        (
            ("--out", str(tmp_path / "h.safetensors"), "--gate_activation", "sigmoid"),
            "says activation=2sigmoid",
        ),
    ):
        assert main([*extract, *more]) == 1
        assert said in capsys.readouterr().err
