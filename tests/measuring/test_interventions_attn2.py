"""Interventions on MMDiT-X's second attention: against plain float64 attention, its measures, whole captures."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from making.pipelines import HEAD_DIM, HEADS, LAYERS, make_pipeline, pixels, plain_image

from sd35h5 import capture, compare, open_store, verify
from sd35h5.comparing.picture_distance import altered_mass, image_differences
from sd35h5.errors import ConfigError, StoreError
from sd35h5.gates.gate_options import GateOptions
from sd35h5.gates.modules import install_gates
from sd35h5.measuring.altering import Interventions
from sd35h5.measuring.optional_tiers import TierPlan
from sd35h5.measuring.passes import PassPlan
from sd35h5.measuring.probe import Probe
from sd35h5.measuring.processor import installed
from sd35h5.planning.describing import describe
from sd35h5.planning.interventions import CausalOptions, SecondAttention, parse_interventions
from sd35h5.planning.job import make_job, resolve
from sd35h5.planning.options import CaptureConfig, Model, Output, Prompts, Sampling
from sd35h5.planning.plan import make_plan
from sd35h5.weights.model_facts import read_facts

DUAL, PATCHES, TOKENS, STEPS = (0, 1), (4, 6), 9, 5
IMAGE = PATCHES[0] * PATCHES[1]
SECOND = SecondAttention(DUAL)
GROUPS_OF = {"cond": np.array([0, 1, 1, 2, 3, 4, 4, 5, 6]), "uncond": np.array([0, 2, 3, 3, 3, 5, 6, 6, 6])}
BRANCHES = ("uncond", "cond")


class PlainAttention:
    """An attention of diffusers' SD3 by the book: q, k, v, softmax, output; `alter(logits, values)` may change what
    is (batch, head, query, key) and (batch, head, query, key, channel). Keeps A. Attends with `own` heads."""

    def __init__(self, alter, own=HEADS):
        self.alter, self.own, self.share = alter, own, None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        streams = [(hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)]
        if encoder_hidden_states is not None:
            text = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k
            streams.append((encoder_hidden_states, *text))

        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        query = torch.cat([norm(heads(to(x))) for x, to, _, _, norm, _ in streams], 2)
        key = torch.cat([norm(heads(to(x))) for x, _, to, _, _, norm in streams], 2)
        value = torch.cat([heads(to(x)) for x, _, _, to, _, _ in streams], 2)
        query, key, value = (
            each.transpose(1, 2).flatten(2).unflatten(-1, (self.own, -1)).transpose(1, 2)
            for each in (query, key, value)
        )
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        values = value[:, :, None].repeat(1, 1, query.shape[2], 1, 1)
        self.alter(logits, values)
        self.share = logits.softmax(-1)
        out = torch.einsum("bhqk,bhqkd->bqhd", self.share, values).flatten(2)
        image, text = out[:, : hidden_states.shape[1]], out[:, hidden_states.shape[1] :]
        image = attn.to_out[0](image)
        if encoder_hidden_states is None:
            return image
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def _nothing(logits, values):
    pass


def _mask_a_patch(logits, values):
    logits[..., 1 * 6 + 5] = -math.inf


def _mask_heaviest_of_a_head(logits, values):
    heaviest = logits[:, 1].softmax(-1).mean(1).topk(2).indices
    for row, keys in enumerate(heaviest):
        logits[row, 1][:, keys] = -math.inf


def _zero_all(logits, values):
    values.zero_()


def _scale_two_patches(logits, values):
    logits[..., [0, 3 * 6 + 2]] += math.log(0.25)


def _mask_then_zero(logits, values):
    logits[:, 0, :, 23] = -math.inf
    values[..., 7, :] = 0


def _mask_start(logits, values):
    logits[..., IMAGE] = -math.inf


KINDS = [  # texts, and what they do to attn2 of layers 0 and 1, and to every joint attention
    (("mask:patch:5,1@attn attn2",), _mask_a_patch, _mask_a_patch, _nothing),
    (("mask:top:2@heads 1@attn attn2@layers 1",), _nothing, _mask_heaviest_of_a_head, _nothing),
    (("value0:image@attn", "attn2@layers 0"), _zero_all, _nothing, _nothing),
    (("scale:0.25:patch:0,0+patch:2,3@attn attn2@queries image",), *[_scale_two_patches] * 2, _nothing),
    (("mask:patch:5,3@heads 0@attn attn2", "value0:patch:1,1@attn attn2"), *[_mask_then_zero] * 2, _nothing),
    (("mask:patch:5,1@attn attn2@layers every:2", "mask:clip_bos"), _mask_a_patch, _nothing, _mask_start),
]


def _interventions(*texts, control=None, second=SECOND) -> Interventions:
    parsed = parse_interventions(CausalOptions(intervene=texts))
    sizes = LAYERS, HEADS, STEPS
    return Interventions(parsed, sizes, PATCHES, GROUPS_OF, control, 0, torch.device("cpu"), second)


def _inputs(dtype=torch.float32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 16, 8, 12, generator=random).to(dtype),
        "timestep": torch.full((2,), 500.0),
        "encoder_hidden_states": torch.randn(2, TOKENS, 32, generator=random).to(dtype),
        "pooled_projections": torch.randn(2, 32, generator=random).to(dtype),
    }


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline(dual_attention_layers=DUAL)


@pytest.fixture(scope="module")
def regrouped_pipe():
    """The same with attn2 in sd-scripts' layout, as many heads as a head has channels."""
    pipe = make_pipeline(dual_attention_layers=DUAL)
    install_gates(pipe.transformer, None, "sd-scripts")
    return pipe


def _by_the_book(transformer, second, joint, own=HEADS) -> tuple[torch.Tensor, dict[str, PlainAttention]]:
    """Output in float64 with altered attentions, `second` one a layer; and the processors, which hold A."""
    transformer = copy.deepcopy(transformer).double()
    processors = {
        name: PlainAttention(second[int(name.split(".")[1])], own)
        if ".attn2." in name
        else PlainAttention(joint)
        for name in transformer.attn_processors
    }
    transformer.set_attn_processor(dict(processors))
    with torch.no_grad():
        return transformer(**_inputs(torch.float64)).sample, processors


@pytest.mark.parametrize("own", [HEADS, HEAD_DIM])
@pytest.mark.parametrize(
    ("texts", "first", "second", "joint"), KINDS, ids=[" ".join(kind[0]) for kind in KINDS]
)
def test_an_altered_attn2_is_that_of_float64_with_the_keys_altered(
    pipe, regrouped_pipe, texts, first, second, joint, own
):
    pipe = pipe if own == HEADS else regrouped_pipe
    expected, plain = _by_the_book(pipe.transformer, (first, second), joint, own)
    untouched, _ = _by_the_book(pipe.transformer, (_nothing, _nothing), _nothing, own)
    probe = Probe(LAYERS, HEADS, gated=False)
    membership = torch.nn.functional.one_hot(
        torch.tensor(np.stack([GROUPS_OF[b] for b in BRANCHES])), 8
    ).float()
    with torch.no_grad(), installed(pipe.transformer, probe):
        second = SecondAttention(DUAL, 0 if own == HEADS else own)
        probe.altered = altered = _interventions(*texts, second=second).at(2, BRANCHES)
        probe.begin(PassPlan(BRANCHES, membership, PATCHES, check=True, top=5, tiers=TierPlan(atlas=True)))
        output = pipe.transformer(**_inputs()).sample
        result = probe.end()
    np.testing.assert_allclose(output, expected, atol=2e-5)
    assert (expected - untouched).abs().max() > 1e-3 and result.row_sum_error < 1e-5
    for layer in DUAL:
        share = plain[f"transformer_blocks.{layer}.attn2.processor"].share[1].numpy()
        mass = share.mean(1)
        np.testing.assert_allclose(result.second["patch_mass"][layer].flatten(1), mass, atol=2e-6)
        np.testing.assert_allclose(result.second["top_mass"][layer], -np.sort(-mass, -1)[:, :5], atol=2e-6)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.nansum(share * np.log(share), -1).mean(-1)
        np.testing.assert_allclose(result.second["entropy_all"][layer], entropy, atol=2e-5)
    whole = np.stack(
        [plain[f"transformer_blocks.{layer}.attn.processor"].share.numpy() for layer in range(LAYERS)]
    )
    np.testing.assert_allclose(
        result.mass[:, 0].transpose(0, 1), whole[..., :IMAGE, IMAGE:].mean(-2), atol=2e-6
    )
    assert set(altered.stacked_mass(LAYERS)) == ({"attn2"} if joint is _nothing else {"attn2", "joint"})


def test_the_mass_that_is_altered_is_that_of_attn2s_keys_before(pipe):
    _, plain = _by_the_book(pipe.transformer, (_nothing, _nothing), _nothing)
    altered = _interventions("scale:3:patch:5,1+patch:0,2@heads 1@attn attn2@layers 0").at(0, BRANCHES)
    probe = Probe(LAYERS, HEADS, gated=False)
    probe.altered = altered
    with torch.no_grad(), installed(pipe.transformer, probe):
        pipe.transformer(**_inputs())
    share = plain["transformer_blocks.0.attn2.processor"].share.numpy()
    expected = np.full((2, 2, LAYERS, HEADS), np.nan)  # of the text's queries, which attn2 has not, nothing
    expected[:, 0, 0, 1] = share[:, 1][..., [11, 12]].sum(-1).mean(-1)
    np.testing.assert_allclose(altered.stacked_mass(LAYERS)["attn2"], expected, atol=1e-6)


def _captured(pipe, path, call, **options):
    with capture(pipe, path, atlas=True, top_steps="all", precision="exact", **options) as generate:
        image = pixels(generate("a red apple", seed=3, **call).images[0])
    return open_store(path), image


def test_a_capture_with_an_altered_attn2_measures_records_and_pairs(pipe, call, tmp_path):
    plain = pixels(plain_image(pipe, "a red apple", 3, **call))
    baseline, same = _captured(pipe, tmp_path / "baseline.h5", call)
    text = "mask:patch:5,1+top:1@layers 1@steps 2-4@attn attn2"
    altered, other = _captured(pipe, tmp_path / "altered.h5", call, intervene=text)
    assert (same == plain).all() and (other != plain).any() and (altered.image(0) == other).all()
    patches = [
        each.read("attn2/mass_patch", sample=0, branch="cond", query="image") for each in (baseline, altered)
    ]
    assert np.array_equal(
        patches[0][:2], patches[1][:2], equal_nan=True
    )  # steps before the first altered one
    assert (patches[1][2:, 1, :, 1, 5] == 0).all() and (patches[0][2:, 1, :, 1, 5] > 0).all()
    np.testing.assert_allclose(patches[1][:, :2].sum(("patch_y", "patch_x")), 1, atol=1e-5)
    share = altered.read("attn2/altered_mass", sample=0)
    assert np.isfinite(share.sel(query="image", layer=1, step=[2, 3, 4])).all()
    assert np.isfinite(share).sum() == share.sel(query="image", layer=1, step=[2, 3, 4]).size
    before = patches[0].sel(layer=1, top_step=2).values.reshape(HEADS, IMAGE)
    heaviest = np.where(before.argmax(-1) == 11, 0, before.max(-1))
    np.testing.assert_allclose(
        share.sel(branch="cond", query="image", layer=1, step=2), before[:, 11] + heaviest, rtol=1e-4
    )
    assert "sinks/altered_mass" not in altered.variables and "attn2/altered_mass" not in baseline.variables
    assert altered.attributes["intervention"] == text.replace("@layers ", "@layers=").replace(
        "@steps ", "@steps="
    ).replace("@attn ", "@attn=")
    pairing = compare.pair(baseline, altered)
    assert len(pairing.pairs) == 1 and pairing.unpaired.empty
    told = image_differences(baseline, altered, pairing).iloc[0]
    assert told["rms"] > 0 and told["altered_mass"] == pytest.approx(
        float(share.sel(branch="cond", query="image").mean()), rel=1e-6
    )
    with pytest.raises(StoreError, match="without an intervention on attn2"):
        altered_mass(baseline, second=True)
    assert verify(tmp_path / "altered.h5", deep=True).problems == ()


def test_a_control_alters_as_much_mass_in_other_patches_of_attn2(pipe, call, tmp_path):
    # patches of nearly equal mass in a random model: of twelve of them the others reach the mass but for a part of one
    keys = "+".join(f"patch:{x},{y}" for x in range(6) for y in (0, 2))
    options = {"intervene": f"mask:{keys}@steps 0@attn attn2"}
    altered, first = _captured(pipe, tmp_path / "altered.h5", call, **options)
    control, second = _captured(pipe, tmp_path / "control.h5", call, control="random:5", **options)
    other, third = _captured(pipe, tmp_path / "other.h5", call, control="random:6", **options)
    assert (first != second).any() and (second != third).any()
    wanted, found = (
        each.read("attn2/altered_mass", sample=0, step=0, branch="cond", query="image").sel(layer=0).values
        for each in (altered, control)
    )
    assert (found <= wanted + 1e-6).all() and (wanted - found < 2 / IMAGE).all()
    left = control.read("attn2/mass_patch", sample=0, branch="cond", query="image").sel(top_step=0, layer=0)
    assert (left[:, [0, 2]] > 0).all() and (left[:, [1, 3]] == 0).any()  # the named keys stay


BAD = {
    "mask:clip_bos@attn attn2": "attn2 sees the image alone, and clip_bos is text: use image, patch:x,y or top:1",
    "mask:top:1+token:3@attn attn2": "and token:3 is text",
    "mask:patch:0,0@attn attn2@queries text": "attn2 has no text queries",
    "mask:image+top:1@attn attn2": "takes every key out of attn2",
    "mask:patch:0,0@attn both": "@attn both is neither joint nor attn2",
    "mask:top:24@attn attn2": "attention has 24 keys, and some must stay",
    "mask:patch:0,0@attn attn2@layers 1-2": "layer 2 has no attn2: of this model layers 0, 1 have one",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_attn2_does_not_have_is_refused_with_a_sentence(text):
    with pytest.raises(ConfigError, match=BAD[text]):
        _interventions(text)


def test_a_model_without_attn2_is_told_so_before_anything_is_loaded(tiny_folder, tmp_path):
    causal = CausalOptions(("mask:top:1@attn attn2",))
    model, sampling = Model(model_id=str(tiny_folder), device="cpu"), Sampling(steps=STEPS)
    config = CaptureConfig(
        model=model, prompts=Prompts(("a cat",)), sampling=sampling, causal=causal,
        output=Output(out=str(tmp_path / "a.h5")),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="this model has no attn2 to alter"):
        make_job(config)
    assert not list(tmp_path.iterdir())


def test_the_plan_tells_what_is_altered_in_attn2(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "medium")
    model, causal = (
        Model(model_id=str(tmp_path / "medium")),
        CausalOptions(("mask:top:1@attn attn2", "mask:clip_bos")),
    )
    config = CaptureConfig(model=model, sampling=Sampling(steps=STEPS), causal=causal)
    facts = read_facts(model)
    names = [part.name for part in make_plan(config, facts).parts]
    assert [name for name in names if name.endswith("altered_mass")] == [
        "sinks/altered_mass",
        "attn2/altered_mass",
    ]
    assert "mask:top:1@attn=attn2" in describe(resolve(config, [], facts))
    gating = GateOptions(attn2_layout="sd-scripts")
    regrouped = resolve(dataclasses.replace(config, gating=gating), [], facts)
    assert "2 layers have a second, image-only attention: group attn2_regrouped, 8 heads of 2" in describe(
        regrouped
    )
    altered = [part for part in regrouped.plan.parts if part.name.endswith("altered_mass")]
    assert [part.name for part in altered] == ["sinks/altered_mass", "attn2_regrouped/altered_mass"]
    assert altered[1].shape["head_attn2"] == HEAD_DIM
    beyond = CausalOptions((f"mask:top:1@attn attn2@heads {HEAD_DIM}",))
    with pytest.raises(ConfigError, match="heads"):
        resolve(dataclasses.replace(config, gating=gating, causal=beyond), [], facts)


def test_heads_of_an_attn2_in_sd_scripts_layout_are_its_own(regrouped_pipe, call, tmp_path):
    plain = pixels(plain_image(regrouped_pipe, "a red apple", 3, **call))
    baseline, same = _captured(regrouped_pipe, tmp_path / "baseline.h5", call)
    options = {"intervene": "mask:patch:5,1@layers 1@heads 5@steps 2@attn attn2"}
    altered, other = _captured(regrouped_pipe, tmp_path / "altered.h5", call, **options)
    assert (same == plain).all() and (other != plain).any()
    where = {"sample": 0, "branch": "cond", "query": "image"}
    before, after = (
        store.read("attn2_regrouped/mass_patch", **where).values[2, 1] for store in (baseline, altered)
    )
    assert before.shape == (HEAD_DIM, *PATCHES) and after[5, 1, 5] == 0
    np.testing.assert_allclose(np.delete(after, 5, 0), np.delete(before, 5, 0), rtol=1e-5)
    share = altered.read("attn2_regrouped/altered_mass", **where)
    assert np.isfinite(share).sum() == 1 and float(share[2, 1, 5]) == pytest.approx(before[5, 1, 5], rel=1e-4)
    assert altered_mass(altered, second=True).sizes["head"] == HEAD_DIM
    pairing = compare.pair(baseline, altered)
    told = image_differences(baseline, altered, pairing).iloc[0]
    assert told["altered_mass"] == pytest.approx(float(share[2, 1, 5]), rel=1e-6)
