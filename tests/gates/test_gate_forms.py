"""Gates in all forms, on both attentions, against a plain MMDiT(-X); round trips; what is asked and refused."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from making.mmdit import PlainMMDiT, original_state
from making.pipelines import HEAD_DIM, HEADS, LAYERS, make_pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd35h5.errors import ConfigError
from sd35h5.gates.choice import Choice, choose_gates, put_gates
from sd35h5.gates.forms import (
    base_shapes,
    find_gates,
    fuse_gates,
    separate_gates,
    split_gate_keys,
    zero_attentions,
)
from sd35h5.gates.gate_files import read_gates, source_of
from sd35h5.gates.gate_options import GateOptions, validate_gate_options
from sd35h5.gates.modules import (
    GATE_TYPES,
    attn2_layout_of,
    build_gates,
    describe,
    gate_tensors,
    gates_of,
    install_gates,
)
from sd35h5.gates.texts import parse_layers, tell_layers

WIDTH, DUAL, TEXT = HEADS * HEAD_DIM, (0, 1), 20
ROWS = {"headwise": HEADS, "elementwise": WIDTH}
DIFFUSERS = GateOptions(attn2_layout="diffusers")
LAYOUT_HEAD = {"diffusers": HEAD_DIM, "sd-scripts": HEADS}  # channels of a head in attn2


def _transformer(dual: tuple[int, ...]) -> SD3Transformer2DModel:
    transformer = make_pipeline(dual_attention_layers=dual).transformer.eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return transformer


@pytest.fixture(scope="module")
def mmdit():
    return _transformer(())


@pytest.fixture(scope="module")
def mmditx():
    return _transformer(DUAL)


def _inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 16, 8, 12), (2, TEXT, 32), (2, 32)
    latents, text, pooled = (torch.randn(*shape, generator=generator) for shape in shapes)
    return latents, torch.tensor([500.0, 37.0]), text, pooled


def _draw(transformer) -> Tensor:
    latents, timestep, text, pooled = _inputs()
    with torch.no_grad():
        return transformer(
            hidden_states=latents, timestep=timestep, encoder_hidden_states=text, pooled_projections=pooled
        ).sample


def _places(target: str, layers=range(LAYERS), dual=DUAL) -> list[tuple[int, str]]:
    """(layer, attention) that carry a gate."""
    joint = [(layer, "attn") for layer in layers] if target != "attn2" else []
    return joint + ([(layer, "attn2") for layer in layers if layer in dual] if target != "joint" else [])


def _random_gates(gate_type: str, places) -> dict[str, Tensor]:
    """Gates in form (c), the last layer's text gate too, which exists in files and is never applied."""
    generator, tensors = torch.Generator().manual_seed(7), {}
    for layer, attention in places:
        for name in ("to_gate", "add_gate") if attention == "attn" else ("to_gate",):
            for kind, shape in (("weight", (ROWS[gate_type], WIDTH)), ("bias", (ROWS[gate_type],))):
                key = f"transformer_blocks.{layer}.{attention}.{name}.{kind}"
                tensors[key] = 0.7 * torch.randn(shape, generator=generator)
    return tensors


def _formula(tensors: dict[str, Tensor], factor: float = 1.0):
    """The gates as PlainMMDiT takes them: one value a channel."""

    def gate(layer: int, attention: str, stream: str, states: Tensor) -> Tensor | float:
        key = f"transformer_blocks.{layer}.{attention}.{'to_gate' if stream == 'image' else 'add_gate'}"
        if f"{key}.weight" not in tensors:
            return 1.0
        logits = states @ tensors[f"{key}.weight"].double().T + tensors[f"{key}.bias"].double()
        values = factor / (1 + (-logits).exp())
        return values.repeat_interleave(WIDTH // values.shape[-1], -1)

    return gate


def _checkpoint(
    transformer, tensors: dict[str, Tensor], form: str, zero_rows: bool = False
) -> dict[str, Tensor]:
    base = original_state(transformer.state_dict())
    if form == "b":
        return separate_gates(base, tensors)
    return fuse_gates(base, tensors, zero_rows)


def _put(transformer, source, options: GateOptions) -> Choice:
    choice = choose_gates(transformer, source, options)
    put_gates(transformer, choice)
    return choice


def _loaded(transformer, state: dict[str, Tensor], options: GateOptions = DIFFUSERS) -> SD3Transformer2DModel:
    """A transformer made of a gated original checkpoint: split by us, converted by diffusers."""
    base, source = source_of(state, "gated.safetensors")
    made = SD3Transformer2DModel.from_config(transformer.config).eval()
    made.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(dict(base)))
    if attn2_layout_of(made) is None:
        options = replace(options, attn2_layout=None)
    _put(made, source, options)
    return made


def test_the_plain_mmdit_is_diffusers_without_gates(mmdit, mmditx):
    for transformer in (mmdit, mmditx):
        plain = PlainMMDiT(original_state(transformer.state_dict()), HEAD_DIM, lambda *_: 1.0)
        torch.testing.assert_close(plain(*_inputs()).float(), _draw(transformer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["a", "b"])
@pytest.mark.parametrize("gate_type", GATE_TYPES)
@pytest.mark.parametrize("layers", [range(LAYERS), (1,), (0, 2)])
def test_a_gated_mmdit_is_what_the_formulas_say(mmdit, gate_type, layers, form):
    tensors = _random_gates(gate_type, _places("joint", layers))
    made = _loaded(mmdit, _checkpoint(mmdit, tensors, form))
    assert gates_of(made).layers == tuple(layers) and gates_of(made).gate_type == gate_type
    plain = PlainMMDiT(original_state(mmdit.state_dict()), HEAD_DIM, _formula(tensors))
    torch.testing.assert_close(_draw(made), plain(*_inputs()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUT_HEAD)
@pytest.mark.parametrize("form", ["a", "b"])
@pytest.mark.parametrize("target", ["joint", "attn2", "all"])
@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_a_gated_mmditx_is_what_the_formulas_say(mmditx, gate_type, target, form, layout):
    tensors = _random_gates(gate_type, _places(target))
    made = _loaded(mmditx, _checkpoint(mmditx, tensors, form), GateOptions(attn2_layout=layout))
    assert gates_of(made).target == target and attn2_layout_of(made) == layout
    state = original_state(mmditx.state_dict())
    plain = PlainMMDiT(state, HEAD_DIM, _formula(tensors), LAYOUT_HEAD[layout])
    torch.testing.assert_close(_draw(made), plain(*_inputs()).float(), rtol=1e-5, atol=1e-5)


def test_the_two_layouts_of_attn2_draw_different_things(mmditx):
    tensors = _random_gates("headwise", _places("attn2"))
    state = _checkpoint(mmditx, tensors, "a")
    drawn = [_draw(_loaded(mmditx, state, GateOptions(attn2_layout=layout))) for layout in LAYOUT_HEAD]
    assert not torch.allclose(*drawn, atol=1e-3)


@pytest.mark.parametrize("activation", ["sigmoid", "2sigmoid"])
def test_the_activation_is_what_the_option_says_where_the_file_does_not_tell(mmditx, activation):
    tensors = _random_gates("elementwise", _places("all"))
    options = replace(DIFFUSERS, gate_activation=activation)
    made = _loaded(mmditx, _checkpoint(mmditx, tensors, "a"), options)
    factor = {"sigmoid": 1.0, "2sigmoid": 2.0}[activation]
    plain = PlainMMDiT(original_state(mmditx.state_dict()), HEAD_DIM, _formula(tensors, factor))
    torch.testing.assert_close(_draw(made), plain(*_inputs()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["a", "b"])
@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_forms_go_round_to_equal_images(mmditx, gate_type, form, tmp_path):
    """(a) or (b) -> file of ours -> on the bare base -> back to (a) and (b): the same picture, bit for bit."""
    from sd35h5.__main__ import main

    state = _checkpoint(mmditx, _random_gates(gate_type, _places("all")), form)
    first = _draw(_loaded(mmditx, state))
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "gated.safetensors")
    command = [
        "gates",
        "extract",
        str(tmp_path / "gated.safetensors"),
        "--out",
        str(tmp_path / "ours.safetensors"),
    ]
    assert main([*command, "--attn2_layout", "diffusers"]) == 0
    bare = _loaded(mmditx, original_state(mmditx.state_dict()), GateOptions(attn2_layout="diffusers"))
    _put(bare, read_gates(tmp_path / "ours.safetensors"), GateOptions())
    assert torch.equal(_draw(bare), first)
    ours, base = load_file(tmp_path / "ours.safetensors"), original_state(mmditx.state_dict())
    for again in (fuse_gates(base, ours), separate_gates(base, ours)):
        assert torch.equal(_draw(_loaded(mmditx, again)), first)
    if form == "a":
        again = fuse_gates(base, ours)
        assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("form", ["a", "b"])
def test_splitting_leaves_an_ungated_checkpoint_and_the_shapes_say_so_beforehand(mmditx, form, prefix):
    base = {prefix + key: value for key, value in original_state(mmditx.state_dict()).items()}
    tensors = _random_gates("headwise", _places("all"))
    gated = (fuse_gates if form == "a" else separate_gates)(base, tensors)
    shapes = {key: tuple(value.shape) for key, value in gated.items()}
    assert {rows.form for rows in find_gates(shapes).values()} == {form}
    left, gates = split_gate_keys(gated)
    assert left.keys() == base.keys() and all(torch.equal(left[key], base[key]) for key in base)
    assert gates.keys() == tensors.keys() and all(torch.equal(gates[key], tensors[key]) for key in tensors)
    assert base_shapes(shapes) == {key: tuple(value.shape) for key, value in base.items()}


def test_a_checkpoint_without_gates_is_left_as_it_is(mmditx):
    for state in (mmditx.state_dict(), original_state(mmditx.state_dict())):
        base, gates = split_gate_keys(state)
        assert not gates and base.keys() == state.keys() and source_of(state, "x")[1] is None


def test_zero_rows_are_asked_about_and_mean_what_is_answered(mmditx):
    tensors = _random_gates("headwise", [(1, "attn"), (0, "attn2")])
    state = _checkpoint(mmditx, tensors, "a", zero_rows=True)  # all layers widened, as trainers do
    _, gates = split_gate_keys(state)
    assert zero_attentions(gates, LAYERS) == [(0, "attn"), (1, "attn2"), (2, "attn")]
    said = "gate rows of joint layers 0,2 and attn2 layer 1 are all zero.*--gate_zero_rows off or"
    with pytest.raises(ConfigError, match=said):
        _loaded(mmditx, state)
    base = original_state(mmditx.state_dict())
    for answer, meant in (("off", tensors), ("half", gates)):
        made = _loaded(mmditx, state, replace(DIFFUSERS, gate_zero_rows=answer))
        assert len(list(gates_of(made).all())) == (2 if answer == "off" else 5)
        plain = PlainMMDiT(base, HEAD_DIM, _formula(meant))
        torch.testing.assert_close(_draw(made), plain(*_inputs()).float(), rtol=1e-5, atol=1e-5)


def test_the_answer_about_zero_rows_is_in_the_record(mmdit):
    tensors = _random_gates("headwise", [(1, "attn")])
    _, source = source_of(_checkpoint(mmdit, tensors, "a", zero_rows=True), "f")
    choice = choose_gates(mmdit, source, GateOptions(gate_zero_rows="off"))
    assert choice.record == {"file": "f", "form": "a", "zero_rows": "off: joint layers 0,2"}


@pytest.mark.parametrize("activation", ["sigmoid", "2sigmoid"])
@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_identity_gates_change_no_bit_in_float32(bare, gate_type, activation):
    plain = _draw(bare)
    options = GateOptions(gate_type=gate_type, gate_init="identity", gate_activation=activation)
    choice = _put(bare, None, options)
    assert choice.gates.target == "all" and choice.gates.untrained and torch.equal(_draw(bare), plain)


def test_identity_gates_change_rounding_alone_in_bfloat16(mmditx):
    """A product with 1 is exact, but it lies in memory as one block, and bfloat16's matmul then adds in another
    order than over a slice of the joint sequence."""
    transformer = _transformer(DUAL).to(torch.bfloat16)
    latents, timestep, text, pooled = (each.to(torch.bfloat16) for each in _inputs())
    drawn, exact = [], _draw(mmditx)
    for options in (GateOptions(), GateOptions(gate_type="headwise", gate_init="identity")):
        _put(transformer, None, options)
        with torch.no_grad():
            drawn.append(transformer(latents, text, pooled, timestep).sample.float())
    errors = [float((each - exact).abs().mean()) for each in drawn]
    assert float((drawn[0] - drawn[1]).abs().mean()) < min(errors)  # closer than either is to float32


@pytest.fixture
def bare(mmditx):
    """The MMDiT-X; its processors are as they were after the test."""
    before = dict(mmditx.attn_processors)
    yield mmditx
    mmditx.set_attn_processor(before)


def test_neutral_gates_halve_every_output(bare):
    _put(bare, None, GateOptions(gate_type="headwise", gate_init="neutral"))
    plain = PlainMMDiT(original_state(bare.state_dict()), HEAD_DIM, lambda *_: 0.5)
    torch.testing.assert_close(_draw(bare), plain(*_inputs()).float(), rtol=1e-5, atol=1e-5)


def _source(transformer, gate_type="headwise", target="all", layers=range(LAYERS), form="a"):
    state = _checkpoint(transformer, _random_gates(gate_type, _places(target, layers)), form)
    return source_of(state, "gated.safetensors")[1]


def test_open_gates_draw_what_no_gates_draw(bare):
    plain = _draw(bare)
    _put(bare, _source(bare), replace(DIFFUSERS, gate_override="open"))
    assert torch.equal(_draw(bare), plain) and describe(gates_of(bare))["gate_override"] == "open"


@pytest.mark.parametrize(("asked", "value"), [("closed", 0.0), ("0.25", 0.25)])
def test_gates_are_forced_where_the_options_say_and_kept_elsewhere(bare, asked, value):
    tensors = _random_gates("headwise", _places("all"))
    options = replace(DIFFUSERS, gate_override=asked, gate_layers="1", gate_target="joint")
    _put(bare, _source(bare), options)
    formula = _formula(tensors)

    def gate(layer: int, attention: str, stream: str, states: Tensor) -> Tensor | float:
        forced = (layer, attention) == (1, "attn")
        return value if forced else formula(layer, attention, stream, states)

    plain = PlainMMDiT(original_state(bare.state_dict()), HEAD_DIM, gate)
    torch.testing.assert_close(_draw(bare), plain(*_inputs()).float(), rtol=1e-5, atol=1e-5)
    told = describe(gates_of(bare))
    assert told["gate_override"] == f"{asked} at joint 1" and told["gate_weights"] == "trained"


def test_target_and_layers_leave_the_other_gates_out(bare):
    tensors = _random_gates("elementwise", _places("all"))
    _put(bare, _source(bare, "elementwise"), replace(DIFFUSERS, gate_target="attn2", gate_layers="1"))
    kept = {key: value for key, value in tensors.items() if ".1.attn2." in key}
    plain = PlainMMDiT(original_state(bare.state_dict()), HEAD_DIM, _formula(kept))
    torch.testing.assert_close(_draw(bare), plain(*_inputs()).float(), rtol=1e-5, atol=1e-5)
    told = describe(gates_of(bare))
    assert (told["gate_target"], told["gate_layers"]) == ("attn2", "[1]")


def test_the_store_is_told_the_layers_of_each_attention(bare):
    _put(bare, _source(bare), DIFFUSERS)
    assert describe(gates_of(bare))["gate_layers"] == '{"joint": [0, 1, 2], "attn2": [0, 1]}'


def test_left_out_gates_are_not_called_the_baseline(bare, caplog):
    plain = _draw(bare)
    with caplog.at_level(logging.WARNING, "sd35h5"):
        choice = _put(bare, _source(bare), replace(DIFFUSERS, gate_type="none"))
    assert choice.gates is None and choice.record["dropped"] == "yes" and torch.equal(_draw(bare), plain)
    assert "this is not the baseline model" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gate_type": "elementwise"}, "--gate_type elementwise: the gates of gated.safetensors are headwise"),
        ({"gate_target": "attn2"}, "--gate_target attn2: gated.safetensors has gates on joint layers 0-1 only"),
        ({"gate_layers": "0,2"}, "--gate_layers 0,2: gated.safetensors has no gate on layer 2, it has joint layers 0"),
        ({"gate_override": "1.5"}, "--gate_override 1.5: gates of sigmoid are 0 to 1"),
        ({"gate_type": "headwise", "gate_init": "identity"}, "--gate_init identity: gated.safetensors has gates al"),
        ({"attn2_layout": None}, "gated.safetensors is a gated MMDiT-X .* say --attn2_layout sd-scripts if"),
    ],
)  # fmt: skip
def test_an_option_that_contradicts_the_file_is_refused(mmditx, options, said):
    source = _source(mmditx, target="joint", layers=(0, 1))
    with pytest.raises(ConfigError, match=said):
        choose_gates(mmditx, source, replace(DIFFUSERS, **options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gate_type": "headwise"}, "--gate_type headwise: this model has no gates; .*--gate_init identity"),
        ({"gate_layers": "1"}, "--gate_layers 1: this model has no gates"),
        ({"gate_override": "open"}, "--gate_override open: this model has no gates"),
        ({"gate_target": "joint"}, "--gate_target joint: this model has no gates"),
        ({"attn2_layout": "sd-scripts"}, "--attn2_layout sd-scripts: this model has no second attention"),
        (
            {"gate_type": "headwise", "gate_init": "neutral", "gate_target": "attn2"},
            "no second attention in any",
        ),
    ],
)
def test_an_option_about_gates_is_refused_where_there_are_none(mmdit, options, said):
    with pytest.raises(ConfigError, match=said):
        choose_gates(mmdit, None, GateOptions(**options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gate_layers": "3-1"}, "--gate_layers '3-1' is not understood"),
        ({"gate_layers": "one"}, "--gate_layers 'one' is not understood"),
        ({"gate_override": "ajar"}, "--gate_override 'ajar' is no gate"),
        ({"gate_override": "nan"}, "--gate_override 'nan' is no gate"),
        ({"gate_init": "identity"}, "say with --gate_type headwise or elementwise"),
        ({"gate_type": "none", "gate_override": "open"}, "leave --gate_override open away"),
        (
            {"gate_type": "headwise", "gate_init": "neutral", "gate_activation": "2sigmoid"},
            "that is --gate_init identity",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused_before_the_model_is_read(options, said):
    with pytest.raises(ConfigError, match=said):
        validate_gate_options(GateOptions(**options))


def test_layers_are_written_as_they_are_read():
    assert parse_layers("0-3, 24,7") == (0, 1, 2, 3, 7, 24) and parse_layers("") == ()
    assert tell_layers((24, 7, 0, 1, 2, 3)) == "0-3,7,24"


def _widened(state: dict[str, Tensor], key: str, rows: int) -> dict[str, Tensor]:
    return {**state, key: torch.cat([state[key], state[key][:rows]])}


def test_rows_that_are_no_gate_are_refused_by_name(mmdit):
    base, qkv = original_state(mmdit.state_dict()), "joint_blocks.1.x_block.attn.qkv"
    odd = _widened(_widened(base, f"{qkv}.weight", 3), f"{qkv}.bias", 3)
    said = rf"{qkv}.weight has {3 * WIDTH + 3} rows: {3 * WIDTH} for q, k and v, and 3 more, which fit neither {HEADS}"
    with pytest.raises(ConfigError, match=said):
        split_gate_keys(odd)
    with pytest.raises(
        ConfigError, match=rf"{qkv}.weight has {3 * WIDTH + HEADS} rows, .* but {qkv}.bias has 48"
    ):
        split_gate_keys(_widened(base, f"{qkv}.weight", HEADS))
    gated = _checkpoint(mmdit, _random_gates("headwise", _places("joint")), "b")
    del gated["joint_blocks.1.x_block.attn.gate_proj.bias"]
    with pytest.raises(ConfigError, match="lacks transformer_blocks.1.attn.to_gate.bias"):
        _loaded(mmdit, gated)


def test_gates_on_an_attention_that_the_model_lacks_are_refused(mmdit, mmditx):
    with pytest.raises(ConfigError, match="gate for attn2 of layer 0, which has no second attention"):
        choose_gates(mmdit, _source(mmditx), GateOptions())


def test_our_file_tells_the_layout_of_attn2(bare, tmp_path):
    from sd35h5.gates.modules import save_gates

    gates = build_gates(bare, "headwise", target="attn2")
    save_gates(tmp_path / "g.safetensors", gates, attn2_layout="sd-scripts")
    choice = _put(bare, read_gates(tmp_path / "g.safetensors"), GateOptions())
    assert choice.attn2_layout == "sd-scripts" == attn2_layout_of(bare)
    with pytest.raises(
        ConfigError, match="says attn2_layout=sd-scripts, but --attn2_layout diffusers was given"
    ):
        choose_gates(bare, read_gates(tmp_path / "g.safetensors"), DIFFUSERS)


def test_taking_gates_off_a_transformer_gives_them_back(bare):
    gates = build_gates(bare, "elementwise", "2sigmoid", target="all")
    install_gates(bare, gates)
    again = gates_of(bare)
    assert (again.gate_type, again.activation, again.target) == ("elementwise", "2sigmoid", "all")
    assert gate_tensors(again).keys() == gate_tensors(gates).keys()


def test_gates_stored_in_fp8_are_read_and_cast(mmdit, tmp_path):
    tensors = _random_gates("headwise", [(1, "attn")])
    gated = _checkpoint(mmdit, tensors, "a", zero_rows=True)
    save_file(
        {key: value.to(torch.float8_e4m3fn) for key, value in gated.items()}, tmp_path / "fp8.safetensors"
    )
    source = read_gates(tmp_path / "fp8.safetensors")
    gates = choose_gates(mmdit, source, GateOptions(gate_zero_rows="off")).gates
    assert gates.layers == (1,)
    for key, value in gate_tensors(gates).items():
        assert value.dtype == torch.float32 and torch.equal(
            value, tensors[key].to(torch.float8_e4m3fn).float()
        )
