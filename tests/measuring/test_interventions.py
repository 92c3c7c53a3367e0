"""Causal runs: altered attention against plain float64 attention, its measures, its control, and whole captures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from making.pipelines import HEADS, LAYERS, pixels, plain_image

from sd35h5 import capture, compare, open_store
from sd35h5.comparing.picture_distance import image_differences
from sd35h5.errors import CaptureError, ConfigError
from sd35h5.gates.attention import JointQKV
from sd35h5.measuring.altering import Interventions, equal_mass_keys
from sd35h5.measuring.attend import blocked_lse
from sd35h5.measuring.optional_tiers import MapPlan, RowPlan, TierPlan
from sd35h5.measuring.passes import PassPlan
from sd35h5.measuring.probe import Probe
from sd35h5.planning.interventions import CausalOptions, named_keys, parse_interventions
from sd35h5.reports import info
from sd35h5.store.schema import GROUPS

PATCHES, GROUP_OF = (2, 5), np.array([0, 1, 1, 2, 4, 6, 6])  # 10 patches, 7 tokens
IMAGE, TOKENS, SIZES = 10, 7, (3, 4, 6)  # layers, heads, steps
BRANCHES = ("uncond", "cond")
OTHER_GROUPS = np.array([0, 2, 3, 3, 5, 6, 6])  # of the unconditional branch


def _joint(dtype=torch.float64, seed=0) -> JointQKV:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 4, IMAGE + TOKENS, 8, generator=generator, dtype=torch.float64).to(
        dtype
    )
    return JointQKV(query, key, value, IMAGE)


def _interventions(*texts, control=None, sample=0) -> Interventions:
    parsed = parse_interventions(CausalOptions(intervene=texts))
    groups = {"cond": GROUP_OF, "uncond": OTHER_GROUPS}
    return Interventions(parsed, SIZES, PATCHES, groups, control, sample, torch.device("cpu"))


def _reference(joint: JointQKV, alter) -> tuple[np.ndarray, np.ndarray]:
    """Attention by the book in float64: A (batch, head, query, key) and its output; `alter(logits, values)` changes
    what it is given, values (batch, head, query, key, channel)."""
    query, key, value = (each.double().numpy() for each in (joint.query, joint.key, joint.value))
    logits = np.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(query.shape[-1])
    values = np.repeat(value[:, :, None], query.shape[2], axis=2)
    alter(logits, values)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return share, np.einsum("bhqk,bhqkd->bhqd", share, values)


def _measured(joint: JointQKV, lse: torch.Tensor | None) -> np.ndarray:
    logits = joint.query.double() @ joint.key.double().transpose(-1, -2) / joint.query.shape[-1] ** 0.5
    lse = blocked_lse(joint.query, joint.key) if lse is None else lse
    return (logits - lse.double()[..., None]).exp().numpy()


def _mask_start(logits, values):
    logits[:, :, :, IMAGE] = -np.inf


def _mask_pads_of_two_heads(logits, values):
    logits[1, [0, 3], :, IMAGE + 5 :] = -np.inf
    logits[0, [0, 3], :, IMAGE + 5 :] = -np.inf


def _mask_words_for_the_image(logits, values):
    logits[1, :, :IMAGE, IMAGE + 1 : IMAGE + 3] = -np.inf  # the unconditional branch has no words


def _zero_a_patch_and_tokens(logits, values):
    values[:, :, :, [1 * 5 + 3, IMAGE, IMAGE + 4]] = 0


def _zero_for_the_text(logits, values):
    values[:, [1, 2], IMAGE:, :IMAGE] = 0


def _scale_the_start(logits, values):
    logits[:, :, :, IMAGE] += np.log(0.25)


def _mask_heaviest(logits, values):
    share = np.exp(logits)
    share /= share.sum(-1, keepdims=True)
    heaviest = share[:, :, :IMAGE].mean(2).argsort(-1)[..., -2:]
    for batch, head in np.ndindex(2, 4):
        logits[batch, head, :, heaviest[batch, head]] = -np.inf


def _scale_then_mask_then_zero(logits, values):
    logits[:, :, :, IMAGE + 6] += np.log(3)
    logits[:, :, :IMAGE, 0] = -np.inf
    values[:, :, :, IMAGE + 6] = 0


KINDS = [
    (("mask:clip_bos",), _mask_start),
    (("mask:t5_pad @heads 0,3",), _mask_pads_of_two_heads),
    (("mask:clip_word@queries image",), _mask_words_for_the_image),
    (("value0:patch:3,1+clip_bos+token:4",), _zero_a_patch_and_tokens),
    (("value0:image@heads", "1-2@queries", "text"), _zero_for_the_text),
    (("scale:0.25:clip_bos",), _scale_the_start),
    (("mask:top:2",), _mask_heaviest),
    (("scale:3:token:6", "mask:patch:0,0@queries image", "value0:token:6"), _scale_then_mask_then_zero),
]


@pytest.mark.parametrize(("texts", "alter"), KINDS, ids=[" ".join(texts) for texts, _ in KINDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_altered_attention_is_that_of_float64_with_the_keys_altered(texts, alter, dtype):
    joint = _joint(dtype)
    share, output = _reference(joint, alter)
    untouched, _ = _reference(joint, lambda logits, values: None)
    altered = _interventions(*texts).at(2, BRANCHES)
    measured, attended, lse = altered.attend(1, joint)
    assert attended.dtype == dtype and lse.dtype == torch.float32
    exact = dtype == torch.float32
    np.testing.assert_allclose(attended.double(), output, atol=1e-6 if exact else 0.03)
    found = _measured(measured, lse)
    np.testing.assert_allclose(found, share, atol=1e-6 if exact else 3e-3)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5 if exact else 1e-4)
    assert (found[share == 0] == 0).all()
    assert altered.mass["joint"][1].shape == (2, 2, 4)
    assert (
        0 <= np.nanmin(altered.mass["joint"][1])
        and np.nanmax(altered.mass["joint"][1]) <= untouched.sum(-1).max() + 1e-4
    )


def test_the_mass_that_is_altered_is_that_of_the_keys_before():
    joint = _joint(torch.float32)
    share, _ = _reference(joint, lambda logits, values: None)
    altered = _interventions("mask:clip_bos+t5_pad@heads 0,2@queries image", "scale:2:patch:1,0@heads 2").at(
        0, BRANCHES
    )
    altered.attend(0, joint)
    both = [1, IMAGE, IMAGE + 5, IMAGE + 6]
    expected = np.full((2, 2, 4), np.nan)
    expected[:, 0, 0] = share[:, 0, :IMAGE, both[1:]].sum(0).mean(-1)
    expected[:, 0, 2] = share[:, 2, :IMAGE][..., both].sum(-1).mean(-1)
    expected[:, 1, 2] = share[:, 2, IMAGE:, 1].mean(-1)
    np.testing.assert_allclose(altered.mass["joint"][0], expected, atol=1e-6)
    stacked = altered.stacked_mass(3)["joint"]
    assert stacked.shape == (2, 2, 3, 4) and stacked[:, :, 1:].isnan().all()


def test_only_the_layers_and_steps_that_are_named_are_altered():
    interventions = _interventions("mask:clip_bos@layers 1@steps 0,4-5")
    assert interventions.at(1, BRANCHES) is None
    altered = interventions.at(4, BRANCHES)
    assert altered.attend(0, _joint()) is None and altered.attend(1, _joint(torch.float32)) is not None


def test_all_that_the_probe_measures_is_of_the_altered_attention():
    joint = _joint(torch.float32)
    share, _ = _reference(joint, _scale_then_mask_then_zero)
    probe = Probe(1, 4, gated=False)
    probe.altered = _interventions(*KINDS[-1][0]).at(0, BRANCHES)
    membership = torch.nn.functional.one_hot(torch.from_numpy(np.stack([OTHER_GROUPS, GROUP_OF])), 8).float()
    tiers = TierPlan(MapPlan(torch.arange(TOKENS)), RowPlan(torch.tensor([0, IMAGE + 2])), atlas=True)
    probe.begin(PassPlan(BRANCHES, membership, PATCHES, check=True, top=IMAGE + TOKENS, tiers=tiers))
    measured, _, lse = probe.attend_joint(0, joint)
    probe.measure(0, measured, lse, None)
    result = probe.end()
    assert result.row_sum_error < 1e-5
    mass = np.stack(
        [share[:, :, :IMAGE].mean(2), share[:, :, IMAGE:].mean(2)], axis=1
    )  # (batch, query, head, key)
    np.testing.assert_allclose(result.mass[:, :, 0], mass[..., IMAGE:], atol=1e-6)
    np.testing.assert_allclose(result.atlas["patch_mass"][:, 0].flatten(2), mass[1, :, :, :IMAGE], atol=1e-6)
    assert (result.atlas["patch_mass"][0, 0, :, 0, 0] == 0).all()  # masked for the image, not for the text
    groups = np.stack([mass[1][..., IMAGE:] @ (GROUP_OF == g) for g in range(8)], axis=1)
    np.testing.assert_allclose(result.group[1, :, :8, 0], groups, atol=1e-6)
    np.testing.assert_allclose(result.group.sum(2), 1, atol=1e-5)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = -np.nansum(share[1] * np.log(share[1]), axis=-1)
    entropy = np.stack([rows[:, :IMAGE].mean(-1), rows[:, IMAGE:].mean(-1)])
    np.testing.assert_allclose(result.atlas["entropy_all"][:, 0], entropy, atol=1e-5)
    maps = share[1, :, :IMAGE, IMAGE:].mean(0).T.reshape(TOKENS, *PATCHES)
    np.testing.assert_allclose(result.maps[:, 0], maps, atol=1e-6)
    np.testing.assert_allclose(
        result.rows["text"][:, 0], share[1][:, [0, IMAGE + 2], IMAGE:].mean(0), atol=1e-6
    )
    top = {
        name: values[0, 0].numpy() for name, values in result.top.items()
    }  # of the image's queries, (head, rank)
    order = np.argsort(-mass[1, 0], axis=-1)
    assert (top["index"][:, :-1] + IMAGE * top["stream"][:, :-1] == order[:, :-1]).all() and (
        top["mass"][:, -1] == 0
    ).all()
    zeroed = (top["stream"] == 1) & (top["index"] == 6)
    assert (top["value_norm"][zeroed] == 0).all() and (top["value_norm"][~zeroed] > 0).all()


def test_the_control_alters_other_keys_of_the_same_mass_by_lot():
    rng = np.random.default_rng(0)
    mass = torch.from_numpy(rng.dirichlet(np.full(400, 0.7), (3, 5)))
    chosen = torch.zeros(3, 5, 400, dtype=torch.bool)
    chosen[..., :40] = True
    chosen[2, 4] = False
    lots = torch.from_numpy(rng.random((3, 5, 400)))
    others = equal_mass_keys(chosen, mass, lots)
    assert not (others & chosen).any() and not others[2, 4].any()
    wanted, found = (mass * chosen).sum(-1), (mass * others).sum(-1)
    assert (found <= wanted + 1e-12).all() and (wanted - found < 1e-4).all()
    for row in np.ndindex(3, 5):  # one key after the other, by the definition
        left, taken = float(wanted[row]), set()
        for key in np.argsort(lots[row].numpy()):
            if not chosen[row][key] and mass[row][key] <= left:
                left, taken = left - float(mass[row][key]), taken | {key}
        assert abs(float(found[row]) - (float(wanted[row]) - left)) < 1e-4
        assert len(taken ^ set(np.flatnonzero(others[row]))) <= 3  # after 16 keys that do not fit it stops
    again = equal_mass_keys(chosen, mass, torch.from_numpy(rng.random((3, 5, 400))))
    assert (again != others).any()


def test_the_control_depends_on_its_seed_sample_step_and_layer_alone():
    joint = _joint(torch.float32)

    def drawn(control, sample=0, step=0, layer=0):
        interventions = _interventions("mask:clip_word+clip_bos+token:3", control=control, sample=sample)
        return interventions.at(step, BRANCHES).attend(layer, joint)[1]

    first = drawn(7)
    assert torch.equal(first, drawn(7))
    for other in (drawn(8), drawn(7, sample=1), drawn(7, step=1), drawn(7, layer=1)):
        assert not torch.equal(first, other)


def test_keys_are_named_by_group_position_and_patch():
    (each,) = parse_interventions(
        CausalOptions(("mask:t5_pad+token:0,2-3+patch:4,1+patch:0,0@steps every:2",))
    )
    assert np.flatnonzero(named_keys(each, GROUP_OF, PATCHES)).tolist() == [0, 9, 10, 12, 13, 15, 16]
    (image,) = parse_interventions(CausalOptions(("value0:image",)))
    assert np.flatnonzero(named_keys(image, GROUP_OF, PATCHES)).tolist() == list(range(IMAGE))


BAD = {
    "clip_bos": "write mask:KEYS",
    "mask:": "write mask:KEYS",
    "mask:clip_bo": "'clip_bo' names no keys",
    "mask:top:0": "names no keys",
    "mask:clip_bos+": "'' names no keys",
    "scale:clip_bos": "write mask:KEYS",
    "scale:0:clip_bos": "no factor of odds",
    "scale:much:clip_bos": "no factor of odds",
    "scale:nan:clip_bos": "no factor of odds",
    "mask:clip_bos@layer 3": "'@layer=3' is not understood",
    "mask:clip_bos@layers": "'@layers' is not understood",
    "mask:clip_bos@layers 1@layers 2": "each once",
    "mask:clip_bos@queries both": "neither image, text nor all",
}


@pytest.mark.parametrize("text", BAD)
def test_a_text_that_is_not_understood_is_answered_with_a_sentence(text):
    with pytest.raises(ConfigError, match=BAD[text].replace("+", r"\+")):
        parse_interventions(CausalOptions((text,)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mask:clip_bos@layers 3", "layer 3, but 3 layers are numbered 0..2"),
        ("mask:clip_bos@heads 0-4", "head 4, but 4 heads"),
        ("mask:clip_bos@steps 9", "step 9, but 6 steps"),
        ("mask:token:7", "token 7, but 7 tokens"),
        ("mask:patch:5,0", "numbered 0,0 to 4,1"),
        ("mask:top:17", "17 keys, and some must stay"),
    ],
)
def test_what_is_not_there_is_refused_by_name(text, told):
    with pytest.raises(ConfigError, match=told):
        _interventions(text)


def test_a_control_needs_a_seed_and_something_to_be_a_control_of():
    with pytest.raises(ConfigError, match="write random:SEED"):
        parse_interventions(CausalOptions(("mask:clip_bos",), control="random"))
    with pytest.raises(ConfigError, match="is a control of --intervene, which is not given"):
        parse_interventions(CausalOptions(control="random:0"))


def test_taking_every_key_out_is_refused():
    with pytest.raises(CaptureError, match="every key"):
        _interventions(f"mask:{'+'.join(GROUPS)}@heads 2").at(0, BRANCHES).attend(0, _joint(torch.float32))


def _captured(pipe, path, call, **options):
    with capture(pipe, path, map_steps="all", top_steps="all", atlas=True, **options) as generate:
        image = generate("a red apple", seed=3, **call).images[0]
    return open_store(path), pixels(image)


def test_an_altered_capture_measures_masks_and_pairs_with_its_baseline(tiny_pipeline, call, tmp_path):
    plain = pixels(plain_image(tiny_pipeline, "a red apple", 3, **call))
    baseline, same = _captured(tiny_pipeline, tmp_path / "baseline.h5", call)
    altered, other = _captured(
        tiny_pipeline, tmp_path / "altered.h5", call, intervene="mask:clip_bos@layers 1-2@steps 2-4@heads 1"
    )
    assert (same == plain).all() and (other != plain).any()
    assert (altered.image(0) == other).all()
    names = ("sinks/mass_group", "sinks/entropy_text")
    for name in names:  # steps before the first altered one are the same to the bit
        before, after = (store.read(name, sample=0).values for store in (baseline, altered))
        assert np.array_equal(before[..., :2, :, :], after[..., :2, :, :], equal_nan=True)
    group = altered.read("sinks/mass_group", sample=0).sel(group="clip_bos")
    masked = group.sel(layer=[1, 2], step=[2, 3, 4], head=1)
    assert (masked == 0).all() and float(group.where(group > 0).count()) == group.size - masked.size
    np.testing.assert_allclose(altered.read("sinks/mass_group", sample=0).sum("group"), 1, atol=1e-5)
    share = altered.read("sinks/altered_mass", sample=0)
    assert share.dims == ("branch", "query", "step", "layer", "head")
    there = np.isfinite(share.values)
    assert there.sum() == masked.size and there[:, :, 2:, 1:, 1].all()
    before = baseline.read("sinks/mass_group", sample=0).sel(group="clip_bos", layer=1, step=2, head=1)
    np.testing.assert_allclose(
        share.sel(layer=1, step=2, head=1), before, rtol=1e-4
    )  # nothing before it differs
    assert altered.attributes["intervention"] == "mask:clip_bos@layers=1-2@steps=2-4@heads=1"
    assert baseline.attributes["intervention"] == baseline.attributes["intervention_control"] == "none"
    assert json.loads(json.dumps(altered.config))["intervene"] == [
        "mask:clip_bos@layers 1-2@steps 2-4@heads 1"
    ]
    assert "sinks/altered_mass" not in baseline.variables
    assert any("mask:clip_bos@layers=1-2" in line for line in info.as_text(info.describe(altered)))
    pairing = compare.pair(baseline, altered)
    assert len(pairing.pairs) == 1 and pairing.unpaired.empty
    told = image_differences(baseline, altered, pairing).iloc[0]
    assert told["rms"] == pytest.approx(np.sqrt(np.mean((same / 255 - other / 255) ** 2)))
    assert told["altered_mass"] == pytest.approx(
        float(share.sel(branch="cond", query="image").mean()), rel=1e-6
    )
    assert compare.setting_differences({"a": baseline, "b": altered})["field"].tolist() == ["intervene"]


def test_a_control_run_alters_as_much_mass_in_other_keys(tiny_pipeline, call, tmp_path):
    altered, first = _captured(
        tiny_pipeline, tmp_path / "altered.h5", call, intervene=["mask:t5_pad@steps 0"]
    )
    control, second = _captured(
        tiny_pipeline, tmp_path / "control.h5", call, intervene=["mask:t5_pad@steps 0"], control="random:5"
    )
    assert (first != second).any() and control.attributes["intervention_control"] == "random:5"
    shares = [
        store.read("sinks/altered_mass", sample=0, step=0, query="image").sel(layer=0).values
        for store in (altered, control)
    ]
    assert shares[0].shape == (2, HEADS) and (shares[0] > 0.05).all()
    np.testing.assert_allclose(*shares, atol=0.01)
    assert LAYERS == control.sizes["layer"]


def test_a_sealed_sample_is_drawn_again_as_altered(tiny_pipeline, call, tmp_path):
    """What is captured already is only drawn: the picture must be the altered one all the same."""
    options = {"intervene": "value0:clip_bos"}
    _, first = _captured(tiny_pipeline, tmp_path / "altered.h5", call, **options)
    _, again = _captured(tiny_pipeline, tmp_path / "altered.h5", call, **options)
    assert (first == again).all()


def test_a_wrong_intervention_is_refused_before_anything_is_made(tiny_pipeline, tmp_path):
    with (
        pytest.raises(ConfigError, match="names no keys"),
        capture(tiny_pipeline, tmp_path / "a.h5", intervene="mask:x"),
    ):
        pass
    assert not list(tmp_path.iterdir())
