"""Masks of the text encoders: the states are those of the encoders called with the tokenizer's own mask."""

from __future__ import annotations

import pytest
import torch
from making.pipelines import make_pipeline, pixels, plain_image

import sd35h5
from sd35h5 import open_store
from sd35h5.capturing.encoder_masks import masked_encoders
from sd35h5.errors import ConfigError

PROMPT, T5_LENGTH = "a red apple left of a cat", 23


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def _states(pipe, masks):
    with masked_encoders(pipe, masks):
        return pipe.encode_prompt(
            PROMPT, None, None, do_classifier_free_guidance=False, max_sequence_length=T5_LENGTH
        )


def _asked_directly(encoder, tokenizer, length, masked, clip):
    """The encoder called by hand, with the attention mask that its tokenizer makes."""
    tokens = tokenizer(PROMPT, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask if masked else None
    answer = encoder(tokens.input_ids, attention_mask=mask, output_hidden_states=True)
    return answer.hidden_states[-2] if clip else answer[0]


@pytest.mark.parametrize("masks", [(), ("clip",), ("t5",), ("clip", "t5")], ids=str)
@torch.no_grad()
def test_states_are_those_of_encoders_called_with_their_tokenizers_mask(pipe, masks):
    states, _, pooled, _ = _states(pipe, masks)
    clips = [
        _asked_directly(encoder, tokenizer, 77, "clip" in masks, clip=True)
        for encoder, tokenizer in (
            (pipe.text_encoder, pipe.tokenizer),
            (pipe.text_encoder_2, pipe.tokenizer_2),
        )
    ]
    wanted = torch.cat(clips, dim=-1)
    t5 = _asked_directly(pipe.text_encoder_3, pipe.tokenizer_3, T5_LENGTH, "t5" in masks, clip=False)
    assert torch.equal(states[0, :77, : wanted.shape[-1]], wanted[0])
    assert torch.equal(states[0, 77:], t5[0])
    assert torch.equal(pooled, _states(pipe, ())[2])  # pooled at the end of the text, which sees no padding


@torch.no_grad()
def test_masks_change_padding_alone_in_clip_and_words_too_in_t5_and_go_on_exit(pipe):
    plain, masked = _states(pipe, ())[0], _states(pipe, ("clip", "t5"))[0]
    words = len(pipe.tokenizer(PROMPT).input_ids)
    assert torch.equal(plain[0, :words], masked[0, :words])  # causal: words never see the padding behind them
    assert not torch.equal(plain[0, words:77], masked[0, words:77])
    assert not torch.equal(plain[0, 77:], masked[0, 77:])
    assert torch.equal(_states(pipe, ())[0], plain)
    assert not any(encoder._forward_pre_hooks for encoder in (pipe.text_encoder, pipe.text_encoder_3))


def test_a_masked_capture_draws_the_masked_picture_and_does_not_pair_with_a_plain_one(pipe, call, tmp_path):
    with masked_encoders(pipe, ("t5",)):
        wanted = pixels(plain_image(pipe, PROMPT, 0, **call))
    keys = {}
    for masks in ((), ("t5",)):
        path = tmp_path / f"{len(masks)}.h5"
        with sd35h5.capture(pipe, path, encoder_masks=masks) as generate:
            drawn = pixels(generate(PROMPT, seed=0, **call).images[0])
        with open_store(path) as store:
            keys[masks] = store.samples["pairing_key"][0]
            assert store.provenance["config"]["encoder_masks"] == list(masks)
        assert (drawn == wanted).all() == bool(masks)
    assert keys[()] != keys[("t5",)]


def test_an_unknown_encoder_is_refused_by_name(pipe, tmp_path):
    with (
        pytest.raises(ConfigError, match="no text encoder 'T5' to mask: it is clip or t5"),
        sd35h5.capture(pipe, tmp_path / "a.h5", encoder_masks=["T5"]),
    ):
        raise AssertionError("the capture began")
