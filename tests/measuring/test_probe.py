"""The probe: diffusers' output to the bit, the LSE route and its fallback, and processors put back."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from making.pipelines import HEAD_DIM, HEADS, LAYERS, make_pipeline
from torch.nn.attention import SDPBackend, sdpa_kernel

from sd35h5.errors import CaptureError
from sd35h5.gates.attention import JointAttention
from sd35h5.gates.modules import build_gates, install_gates
from sd35h5.measuring.attend import attend, blocked_lse
from sd35h5.measuring.optional_tiers import MapPlan, RawPlan, RowPlan, TierPlan
from sd35h5.measuring.passes import PassPlan
from sd35h5.measuring.probe import Probe
from sd35h5.measuring.processor import installed

TEXT, PATCHES = 20, (4, 6)
MAPPED = torch.tensor([0, 3, 19])


def _inputs(rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(rows, 16, 8, 12, generator=generator),
        "timestep": torch.full((rows,), 500.0),
        "encoder_hidden_states": torch.randn(rows, TEXT, 32, generator=generator),
        "pooled_projections": torch.randn(rows, 32, generator=generator),
    }


def _plan(rows=("uncond", "cond"), **changes) -> PassPlan:
    membership = torch.zeros(len(rows), TEXT, 8)
    membership[:, :7, 1] = membership[:, 7:, 4] = 1
    plan = {
        "branches": rows,
        "membership": membership,
        "patches": PATCHES,
        "check": True,
        "top": 5,
        "tiers": TierPlan(maps=MapPlan(MAPPED)),
    }
    return PassPlan(**{**plan, **changes})


@pytest.fixture(scope="module")
def transformer():
    return make_pipeline().transformer.eval()


def _run(transformer, plan, inputs, **kwargs):
    probe = Probe(
        LAYERS,
        HEADS,
        gated=any(isinstance(p, JointAttention) and p.gate for p in transformer.attn_processors.values()),
    )
    with torch.no_grad(), installed(transformer, probe):
        probe.begin(plan)
        output = transformer(**inputs, **kwargs).sample
    return output, probe.end()


def _matrices(transformer, inputs) -> np.ndarray:
    """A of every layer in float64, by hooks on diffusers' own projections: (layer, batch, head, query,
    key)."""
    found = []
    for block in transformer.transformer_blocks:
        attn, kept = block.attn, {}
        hooks = []
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            hooks.append(
                getattr(attn, name).register_forward_hook(
                    lambda m, a, out, name=name, kept=kept: kept.__setitem__(name, out)
                )
            )
        found.append((kept, hooks))
    with torch.no_grad():
        transformer(**inputs)
    whole = []
    for kept, hooks in found:
        for hook in hooks:
            hook.remove()
        query = torch.cat([kept["norm_q"], kept["norm_added_q"]], dim=2).double()
        key = torch.cat([kept["norm_k"], kept["norm_added_k"]], dim=2).double()
        whole.append((query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).numpy())
    return np.stack(whole)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 90), st.sampled_from([8, 32, 64]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(0, 999),
)  # fmt: skip
def test_attend_gives_sdpa_to_the_bit_and_the_true_lse(batch, heads, tokens, width, dtype, seed):
    query, key, value = torch.randn(
        3, batch, heads, tokens, width, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)
    output, lse = attend(query, key, value)
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    logits = query.double() @ key.double().transpose(-1, -2) / width**0.5
    np.testing.assert_allclose(
        lse, logits.logsumexp(-1), atol=1e-5 if dtype == torch.float32 else 5e-3, rtol=1e-4
    )


def test_without_flash_attention_the_lse_is_computed_apart():
    query, key, value = torch.randn(3, 2, 3, 50, 16)
    with sdpa_kernel(SDPBackend.MATH):
        output, lse = attend(query, key, value)
        assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    assert lse is None
    logits = query.double() @ key.double().transpose(-1, -2) / 4
    np.testing.assert_allclose(blocked_lse(query, key), logits.logsumexp(-1), atol=1e-5)


def test_under_autocast_the_output_is_that_of_sdpa():
    query, key, value = torch.randn(3, 1, 2, 30, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, lse = attend(query, key, value)
        assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    assert output.dtype == torch.bfloat16 and lse.dtype == torch.float32


def test_the_transformer_answers_to_the_bit_the_same(transformer):
    inputs = _inputs()
    with torch.no_grad():
        plain = transformer(**inputs).sample
    output, result = _run(transformer, _plan(), inputs)
    assert torch.equal(output, plain)
    assert result.row_sum_error < 1e-5


@pytest.mark.parametrize("fallback", [False, True])
def test_what_the_probe_measures_is_the_models_attention(transformer, fallback, caplog):
    inputs = _inputs()
    whole = _matrices(transformer, inputs)
    if fallback:
        with sdpa_kernel(SDPBackend.MATH):
            _, result = _run(transformer, _plan(), inputs)
        assert sum("log-sum-exp" in record.message for record in caplog.records) == 1
    else:
        _, result = _run(transformer, _plan(), inputs)
    image = PATCHES[0] * PATCHES[1]
    mass = np.stack(
        [whole[..., :image, :].mean(-2), whole[..., image:, :].mean(-2)], axis=2
    )  # (L, B, Q, H, K)
    np.testing.assert_allclose(result.mass, mass[..., image:].transpose(1, 2, 0, 3, 4), rtol=2e-5)
    np.testing.assert_allclose(
        result.group[:, :, 1], mass[..., image : image + 7].sum(-1).transpose(1, 2, 0, 3), rtol=2e-5
    )
    np.testing.assert_allclose(
        result.group[:, :, 8], mass[..., :image].sum(-1).transpose(1, 2, 0, 3), rtol=2e-5
    )
    np.testing.assert_allclose(result.group.sum(2), 1, atol=1e-6)
    maps = whole[:, 1, :, :image][..., [image, image + 3, image + 19]].mean(
        1
    )  # cond row, head mean: (L, N, M)
    np.testing.assert_allclose(result.maps, maps.transpose(2, 0, 1).reshape(3, LAYERS, *PATCHES), rtol=2e-5)
    top = -np.sort(-mass[:, 1], axis=-1)[..., :5]
    np.testing.assert_allclose(result.top["mass"], top.transpose(1, 0, 2, 3), rtol=2e-5)


def test_maps_per_head_average_to_the_head_mean(transformer):
    _, mean = _run(transformer, _plan(tiers=TierPlan(MapPlan(MAPPED, pool=2))), _inputs())
    kept = {}
    plan = _plan(tiers=TierPlan(MapPlan(MAPPED, pool=2, keep_heads=kept.__setitem__)))
    _, each = _run(transformer, plan, _inputs())
    assert list(kept) == list(range(LAYERS)) and kept[0].shape == (3, HEADS, 2, 3)
    torch.testing.assert_close(torch.stack(list(kept.values()), 1).mean(2), mean.maps)
    torch.testing.assert_close(each.maps, mean.maps)


def test_rows_atlas_and_raw_are_the_models_attention_in_float64(transformer):
    inputs, image = _inputs(), PATCHES[0] * PATCHES[1]
    whole, raw = _matrices(transformer, inputs)[:, 1], {}
    chosen = {
        "rows": RowPlan(torch.tensor([0, 13, image + 5]), pool=2),
        "atlas": True,
        "raw": RawPlan(frozenset({0, 2}), torch.tensor([1]), torch.tensor([3, 0]), raw.__setitem__),
    }
    for check in (True, False):  # with all rows measured, and with the cond row alone
        _, result = _run(transformer, _plan(tiers=TierPlan(**chosen), check=check, top=3), inputs)
        rows = whole[:, :, [0, 13, image + 5]].mean(1).swapaxes(0, 1)  # (query, layer, key), head mean
        np.testing.assert_allclose(result.rows["text"], rows[..., image:], rtol=2e-5)
        cells = rows[..., :image].reshape(3, LAYERS, 2, 2, 3, 2).mean((3, 5))
        np.testing.assert_allclose(result.rows["image"], cells, rtol=2e-5)
        streams = [whole[:, :, :image], whole[:, :, image:]]
        mass = np.stack([part[..., :image].mean(2) for part in streams])
        np.testing.assert_allclose(
            result.atlas["patch_mass"], mass.reshape(2, LAYERS, HEADS, *PATCHES), rtol=2e-5
        )
        entropy = np.stack([-(part * np.log(part)).sum(-1).mean(2) for part in streams])
        np.testing.assert_allclose(result.atlas["entropy_all"], entropy, rtol=2e-5)
        assert sorted(raw) == [0, 2]
        for layer, values in raw.items():
            expected = whole[layer, 1:, :image, [image + 3, image]].transpose(1, 0, 2)
            np.testing.assert_allclose(values.flatten(-2), expected, rtol=2e-5)
        raw.clear()


def test_maps_of_chosen_layers_are_those_of_all_and_the_others_are_nan(transformer):
    _, every = _run(transformer, _plan(), _inputs())
    some = TierPlan(MapPlan(MAPPED, layers=frozenset({2})))
    _, result = _run(transformer, _plan(tiers=some), _inputs())
    assert torch.equal(result.maps[:, 2], every.maps[:, 2]) and result.maps[:, :2].isnan().all()


def test_a_skip_pass_has_nan_in_the_layers_it_skips(transformer):
    plan = _plan(("skip",), skipped=frozenset({1}), check=False, top=0, tiers=TierPlan())
    _, result = _run(transformer, plan, _inputs(1), skip_layers=[1])
    assert result.mass[:, :, 1].isnan().all() and result.entropy[:, :, 1].isnan().all()
    assert result.mass[:, :, [0, 2]].isfinite().all() and result.group[..., [0, 2], :].isfinite().all()
    assert result.maps is None and result.top is None


def test_a_layer_that_never_reports_is_an_error(transformer):
    with pytest.raises(CaptureError, match="layer 1"):
        _run(transformer, _plan(("skip",)), _inputs(1), skip_layers=[1])


@pytest.mark.parametrize("gate_type", ["headwise", "elementwise"])
def test_a_gated_model_keeps_its_output_and_its_gates_are_measured(gate_type):
    transformer, inputs = make_pipeline().transformer.eval(), _inputs()
    gates = build_gates(transformer, gate_type)
    torch.manual_seed(0)
    for parameter in gates.modules.parameters():
        torch.nn.init.normal_(parameter)
    install_gates(transformer, gates)
    with torch.no_grad():
        plain = transformer(**inputs).sample
    kept = {}
    module = transformer.transformer_blocks[1].attn
    hook = gates.modules["1"].register_forward_hook(lambda m, a, out: kept.update(image=out[0], text=out[1]))
    output, result = _run(transformer, _plan(), inputs)
    hook.remove()
    assert torch.equal(output, plain)
    assert result.gates[:, :, 1, -1].isnan().all()  # the last layer drops its text output
    assert result.gates[:, :, :, :-1].isfinite().all() and result.gates[:, :, 0].isfinite().all()
    for stream, gate in enumerate((kept["image"], kept["text"])):
        values = gate.unflatten(-1, (module.heads, -1)).double()
        torch.testing.assert_close(result.gates[0, :, stream, 1].double(), values.mean((1, 3)))
        torch.testing.assert_close(result.gates[3, :, stream, 1].double(), values.amax((1, 3)))


def test_processors_come_back_after_an_error_and_shared_ones_stay_shared(transformer):
    before = dict(transformer.attn_processors)
    with pytest.raises(ZeroDivisionError), installed(transformer, Probe(LAYERS, HEADS, False)):
        assert all(type(p).__name__ == "ProbeProcessor" for p in transformer.attn_processors.values())
        _ = 1 / 0
    assert all(transformer.attn_processors[name] is processor for name, processor in before.items())


def _keep(into: dict[str, torch.Tensor], name: str, module, inputs, output: torch.Tensor) -> None:
    into[name] = output


def _second_matrices(transformer, inputs, regrouped: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """A of every second attention and its value vectors in float64, (batch, head, query, key) and (batch, head, key,
    channel), by hooks on diffusers' projections."""
    kept, hooks = [], []
    for block in transformer.transformer_blocks:
        if block.attn2 is not None:
            kept.append({})
            for name in ("norm_q", "norm_k", "to_v"):
                keep = partial(_keep, kept[-1], name)
                hooks.append(getattr(block.attn2, name).register_forward_hook(keep))
    with torch.no_grad():
        transformer(**inputs)
    for hook in hooks:
        hook.remove()
    heads = HEAD_DIM if regrouped else HEADS  # sd-scripts takes the number of heads for a head's size
    found = []
    for each in kept:
        query, key = (each[name].double().transpose(1, 2).flatten(2).numpy() for name in ("norm_q", "norm_k"))
        query, key, value = (
            np.moveaxis(states.reshape(*states.shape[:2], heads, -1), 2, 1)
            for states in (query, key, each["to_v"].double().numpy())
        )
        share = np.exp(query @ key.swapaxes(-1, -2) / query.shape[-1] ** 0.5)
        found.append((share / share.sum(-1, keepdims=True), value))
    return found


def _with_second(regrouped: bool, gate_type: str = ""):
    """The tiny transformer with a sharp attn2 in two of three layers, and gates there if asked for."""
    transformer = make_pipeline(dual_attention_layers=(0, 1)).transformer.eval()
    for block in transformer.transformer_blocks[:2]:
        block.attn2.norm_q.weight.data *= 3  # heads of random weights attend alike
    gates = build_gates(transformer, gate_type, target="attn2") if gate_type else None
    torch.manual_seed(1)
    for _, _, gate in gates.all() if gates else ():
        for parameter in gate.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    if regrouped or gates:
        install_gates(transformer, gates, "sd-scripts" if regrouped else "diffusers")
    return transformer


@pytest.mark.parametrize("regrouped", [False, True])
@pytest.mark.parametrize("fallback", [False, True])
def test_second_attentions_are_measured_and_the_output_stays(fallback, regrouped):
    transformer, inputs = _with_second(regrouped), _inputs()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH) if fallback else nullcontext():
        plain = transformer(**inputs).sample
        output, result = _run(transformer, _plan(tiers=TierPlan(atlas=True), top=30), inputs)
    assert torch.equal(output, plain) and result.row_sum_error < 1e-5
    second = result.second
    assert all(values[2].isnan().all() for name, values in second.items() if name != "top_index")
    assert (second["top_index"][2] == -1).all()
    assert second["top_mass"].shape[1] == (HEAD_DIM if regrouped else HEADS) != len(second["top_mass"])
    for layer, (whole, value) in enumerate(_second_matrices(transformer, inputs, regrouped)):
        mass, cond = whole[1].mean(1), whole[1]
        np.testing.assert_allclose(second["patch_mass"][layer].flatten(1), mass, rtol=2e-5)
        entropy = -(cond * np.log(cond)).sum(-1).mean(-1)
        np.testing.assert_allclose(second["entropy_all"][layer], entropy, rtol=2e-5)
        index = second["top_index"][layer]
        assert (index[:, 24:] == -1).all()  # 24 patches, 30 ranks
        np.testing.assert_allclose(second["top_mass"][layer, :, :24], -np.sort(-mass, -1), rtol=2e-5)
        np.testing.assert_allclose(
            np.take_along_axis(mass, index[:, :24].numpy().astype(int), -1),
            second["top_mass"][layer, :, :24], rtol=2e-5,
        )  # fmt: skip
        norms = np.linalg.norm(value[1], axis=-1)
        np.testing.assert_allclose(
            np.take_along_axis(norms, index[:, :24].numpy().astype(int), -1),
            second["top_value_norm"][layer, :, :24], rtol=2e-5,
        )  # fmt: skip


@pytest.mark.parametrize("regrouped", [False, True])
@pytest.mark.parametrize("gate_type", ["headwise", "elementwise"])
def test_what_a_key_of_attn2_adds_is_its_mass_norm_and_the_mean_gate_of_the_heads_channels(
    gate_type, regrouped
):
    transformer, inputs = _with_second(regrouped, gate_type), _inputs()
    kept = {}
    for layer, block in enumerate(transformer.transformer_blocks[:2]):
        gate = block.attn2.processor.gate
        hook = partial(_keep, kept, layer)
        gate.register_forward_hook(lambda m, inputs, out, hook=hook: hook(m, inputs, out[0]))
    probe = Probe(LAYERS, HEADS, gated=False, second_gated=True)
    with torch.no_grad(), installed(transformer, probe):
        probe.begin(_plan(top=4))
        transformer(**inputs)
    second, statistics = (result := probe.end()).second, result.second_gates
    for layer, gate in kept.items():
        mean = gate[1].double().mean(0).numpy()  # cond: a value a head, or a channel
        channels = np.repeat(mean, HEADS * HEAD_DIM // len(mean))
        own = channels.reshape(HEAD_DIM if regrouped else HEADS, -1).mean(-1)
        mass, norm = (second[f"top_{name}"][layer].numpy() for name in ("mass", "value_norm"))
        added = mass * norm * own[:, None]
        np.testing.assert_allclose(second["contribution"][layer], added, rtol=2e-5)
        by_head = channels.reshape(HEADS, HEAD_DIM).mean(-1)  # of the model's heads, which have the gates
        np.testing.assert_allclose(statistics[0, 1, 0, layer], by_head, rtol=2e-5)
