"""Gated attention against a computation of its own in plain torch; the gates file; refusals by name."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from making.pipelines import HEAD_DIM, HEADS, LAYERS, make_pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd35h5.errors import ConfigError
from sd35h5.gates.attention import JointAttention
from sd35h5.gates.gate_files import load_gates
from sd35h5.gates.modules import (
    GATE_TYPES,
    AttentionGate,
    Gates,
    build_gates,
    describe,
    install_gates,
    save_gates,
)

WIDTH = HEADS * HEAD_DIM
IMAGE, TEXT = 24, 20


def _attention(
    qk_norm: str | None = "rms_norm", context_pre_only: bool = False, joint: bool = True
) -> Attention:
    """A joint attention as SD3's blocks make it, every parameter random."""
    torch.manual_seed(0)
    attn = Attention(
        query_dim=WIDTH, added_kv_proj_dim=WIDTH if joint else None, dim_head=HEAD_DIM, heads=HEADS,
        out_dim=WIDTH, context_pre_only=context_pre_only if joint else None, bias=True, qk_norm=qk_norm,
        eps=1e-6, processor=JointAttnProcessor2_0(),
    )  # fmt: skip
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attn.eval()


def _streams(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, tokens, WIDTH, generator=generator).to(dtype) for tokens in (IMAGE, TEXT))


def _gate(gate_type: str, text: bool = True, activation: str = "sigmoid") -> AttentionGate:
    torch.manual_seed(2)
    gate = AttentionGate(WIDTH, HEADS if gate_type == "headwise" else WIDTH, text=text, activation=activation)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return gate


def _by_hand(
    attn: Attention, gate: AttentionGate | None, image: Tensor, text: Tensor
) -> tuple[Tensor, Tensor]:
    """Gated joint attention from the weights, head after head, in float64: (B, tokens, width) each."""
    weights = {name: value.double() for name, value in attn.state_dict().items()}
    gates = {} if gate is None else {name: value.double() for name, value in gate.state_dict().items()}
    streams = {"image": image.double(), "text": text.double()}
    names = {"image": ("to_q", "to_k", "to_v"), "text": ("add_q_proj", "add_k_proj", "add_v_proj")}

    def linear(x: Tensor, name: str, source: dict[str, Tensor] = weights) -> Tensor:
        return torch.einsum("bnc,oc->bno", x, source[f"{name}.weight"]) + source[f"{name}.bias"]

    def normed(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    heads = []
    for head in range(HEADS):
        part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        q, k, v = ([linear(streams[s], names[s][i])[..., part] for s in ("image", "text")] for i in range(3))
        q = torch.cat([normed(q[0], "norm_q"), normed(q[1], "norm_added_q")], dim=1)
        k = torch.cat([normed(k[0], "norm_k"), normed(k[1], "norm_added_k")], dim=1)
        scores = torch.einsum("bqd,bkd->bqk", q, k) / HEAD_DIM**0.5
        share = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(torch.einsum("bqk,bkd->bqd", share, torch.cat(v, dim=1)))
    joined = torch.cat(heads, dim=-1)
    outs = {"image": joined[:, :IMAGE], "text": joined[:, IMAGE:]}
    for stream, name in (("image", "to_gate"), ("text", "add_gate")):
        if f"{name}.weight" in gates:
            g = gate.factor / (1 + (-linear(streams[stream], name, gates)).exp())
            if g.shape[-1] == HEADS:  # one scalar for all channels of a head
                g = torch.stack([g[..., c // HEAD_DIM] for c in range(WIDTH)], dim=-1)
            outs[stream] = outs[stream] * g
    image_out = linear(outs["image"], "to_out.0")
    return image_out, outs["text"] if attn.context_pre_only else linear(outs["text"], "to_add_out")


@pytest.mark.parametrize("activation", ["sigmoid", "2sigmoid"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("gate_type", [None, *GATE_TYPES])
def test_gated_joint_attention_is_what_the_formula_says(gate_type, last, activation):
    attn = _attention(context_pre_only=last)
    gate = None if gate_type is None else _gate(gate_type, text=not last, activation=activation)
    with torch.no_grad():
        got = JointAttention(gate)(attn, *_streams())
        expected = _by_hand(attn, gate, *_streams())
    for ours, by_hand in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("qk_norm", ["rms_norm", None])
@pytest.mark.parametrize("last", [False, True])
def test_without_a_gate_it_is_diffusers_to_the_bit(last, qk_norm, dtype):
    attn = _attention(qk_norm, context_pre_only=last).to(dtype)
    image, text = _streams(dtype)
    with torch.no_grad():
        ours = JointAttention()(attn, image, text)
        theirs = JointAttnProcessor2_0()(attn, image, text)
    assert len(ours) == len(theirs) == 2
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_image_only_attention_is_diffusers_to_the_bit_too():
    attn = _attention(joint=False)
    image, _ = _streams()
    with torch.no_grad():
        assert torch.equal(JointAttention()(attn, image), JointAttnProcessor2_0()(attn, image))


@pytest.fixture(scope="module")
def transformer():
    return make_pipeline().transformer.eval()


def _random_gates(transformer, gate_type: str, activation: str = "sigmoid") -> Gates:
    gates = build_gates(transformer, gate_type, activation)
    torch.manual_seed(3)
    for parameter in gates.modules.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return gates


def _draw(transformer) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(2, 16, 8, 12, generator=generator), timestep=torch.full((2,), 500.0),
            encoder_hidden_states=torch.randn(2, TEXT, 32, generator=generator),
            pooled_projections=torch.randn(2, 32, generator=generator),
        ).sample  # fmt: skip


@pytest.fixture
def ungated(transformer):
    """The transformer; its processors are as they were after the test."""
    before = dict(transformer.attn_processors)
    yield transformer
    transformer.set_attn_processor(before)


@pytest.mark.parametrize("activation", ["sigmoid", "2sigmoid"])
@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_a_gates_file_gives_back_what_was_saved(ungated, tmp_path, gate_type, activation):
    gates = _random_gates(ungated, gate_type, activation)
    save_gates(tmp_path / "gates.safetensors", gates, dtype=torch.float32)
    loaded = load_gates(tmp_path / "gates.safetensors", ungated)
    assert (loaded.gate_type, loaded.activation, loaded.layers) == (
        gate_type,
        activation,
        tuple(range(LAYERS)),
    )
    saved = gates.modules.state_dict()
    assert saved.keys() == loaded.modules.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.modules.state_dict().items())
    images = []
    for each in (gates, loaded):
        install_gates(ungated, each)
        images.append(_draw(ungated))
    assert torch.equal(*images)


def test_the_file_has_the_keys_and_metadata_of_form_c_and_no_text_gate_in_the_last_layer(
    transformer, tmp_path
):
    save_gates(tmp_path / "g.safetensors", _random_gates(transformer, "headwise"))
    names = [f"{gate}.{part}" for gate in ("to_gate", "add_gate") for part in ("weight", "bias")]
    expected = {f"transformer_blocks.{layer}.attn.{name}" for layer in range(LAYERS) for name in names}
    expected -= {f"transformer_blocks.{LAYERS - 1}.attn.add_gate.{part}" for part in ("weight", "bias")}
    tensors = load_file(tmp_path / "g.safetensors")
    assert set(tensors) == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    with safe_open(tmp_path / "g.safetensors", framework="pt") as file:
        assert file.metadata() == {"gate_type": "headwise", "activation": "sigmoid"}


def test_gates_change_the_output_but_never_the_transformers_own_weights(ungated):
    keys, plain = set(ungated.state_dict()), _draw(ungated)
    install_gates(ungated, _random_gates(ungated, "elementwise"))
    assert not torch.equal(_draw(ungated), plain)
    assert set(ungated.state_dict()) == keys


@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_a_gate_of_one_changes_nothing(ungated, gate_type):
    plain = _draw(ungated)
    install_gates(ungated, build_gates(ungated, gate_type, activation="2sigmoid"))  # 2 sigmoid(0) = 1
    assert torch.equal(_draw(ungated), plain)


def test_layers_without_a_gate_stay_as_they_are(ungated):
    gates = build_gates(ungated, "headwise", activation="2sigmoid")
    torch.nn.init.normal_(gates.modules["1"].to_gate.weight)
    plain = _draw(ungated)
    kept = Gates(
        "headwise", "2sigmoid", torch.nn.ModuleDict({name: gates.modules[name] for name in ("0", "2")})
    )
    install_gates(ungated, kept)
    assert kept.layers == (0, 2) and torch.equal(_draw(ungated), plain)
    install_gates(ungated, gates)
    assert not torch.equal(_draw(ungated), plain)


@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_untrained_gates_are_recognised_whatever_their_bias(transformer, gate_type):
    gates = build_gates(transformer, gate_type)
    for gate in gates.modules.values():
        torch.nn.init.constant_(gate.to_gate.bias, 2.0)
    assert gates.untrained
    with torch.no_grad():
        gates.modules["1"].to_gate.weight[0, 0] = 0.01
    assert not gates.untrained


def test_the_store_is_told_which_gates_a_model_carries(transformer):
    assert describe(None)["gate_type"] == "none"
    told = describe(build_gates(transformer, "headwise", "2sigmoid"))
    assert (told["gate_type"], told["gate_activation"], told["gate_target"]) == (
        "headwise",
        "2sigmoid",
        "joint",
    )
    assert json.loads(told["gate_layers"]) == list(range(LAYERS))


def _without(key: str):
    return lambda tensors: tensors.pop(key)


def _renamed(old: str, new: str):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def _put(key: str, *shape: int):
    return lambda tensors: tensors.update({key: torch.zeros(shape)})


FIRST, BEYOND = "transformer_blocks.0.attn", f"transformer_blocks.{LAYERS}.attn"


@pytest.mark.parametrize(
    ("change", "metadata", "said"),
    [
        (_without(f"{FIRST}.to_gate.bias"), {}, f"bad.safetensors lacks {FIRST}.to_gate.bias"),
        (_without(f"{FIRST}.add_gate.weight"), {}, f"bad.safetensors lacks {FIRST}.add_gate.weight"),
        (_put(f"{FIRST}.gate_proj.weight", HEADS, WIDTH), {}, f"unknown key '{FIRST}.gate_proj.weight'"),
        (_renamed(f"{FIRST}.to_gate.bias", "bias"), {}, "unknown key 'bias'"),
        (_put(f"{FIRST}.to_gate.weight", HEADS, WIDTH + 1), {}, rf"has shape \({HEADS}, {WIDTH + 1}\), exp"),
        (_put(f"{FIRST}.to_gate.weight", HEADS + 1, WIDTH), {}, f"fit neither {HEADS} heads nor {WIDTH} "),
        (_put(f"{BEYOND}.to_gate.bias", HEADS), {}, rf"layer {LAYERS}, but .* 0\.\.{LAYERS - 1}"),
        (dict.clear, {}, "it holds no tensors"),
        (dict, {"gate_type": "elementwise"}, "says gate_type=elementwise, but its shapes are headwise"),
        (dict, {"activation": "relu"}, "unknown gate activation 'relu'"),
    ],
)  # fmt: skip
def test_a_gates_file_that_does_not_fit_is_refused_by_name(transformer, tmp_path, change, metadata, said):
    path = tmp_path / "bad.safetensors"
    save_gates(path, _random_gates(transformer, "headwise"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata or {"gate_type": "headwise"})
    with pytest.raises(ConfigError, match=said):
        load_gates(path, transformer)


def test_no_file_a_broken_file_and_an_unknown_gate_type_are_refused_by_name(transformer, tmp_path):
    with pytest.raises(ConfigError, match="gates file none.safetensors does not exist"):
        load_gates(tmp_path / "none.safetensors", transformer)
    (tmp_path / "broken.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ConfigError, match="broken.safetensors is not a readable safetensors file"):
        load_gates(tmp_path / "broken.safetensors", transformer)
    with pytest.raises(
        ConfigError, match="unknown gate type 'headless': expected one of headwise, elementwise"
    ):
        build_gates(transformer, "headless")


def test_gates_of_another_model_are_refused(transformer, tmp_path):
    save_gates(tmp_path / "wide.safetensors", _random_gates(transformer, "headwise"))
    wider = make_pipeline(num_attention_heads=3, caption_projection_dim=24).transformer
    with pytest.raises(ConfigError, match="gate rows .* fit neither 3 heads nor 24 channels"):
        load_gates(tmp_path / "wide.safetensors", wider)
