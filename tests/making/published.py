"""What has the published models' vocabularies: small pipelines with the real tokenizers, made without our loader."""

from __future__ import annotations

import json
from pathlib import Path

TOKENIZERS = Path(__file__).resolve().parents[2] / "data" / "tokenizers"


def published_tokenizers() -> tuple:
    """CLIP-L's, CLIP-G's and T5's tokenizers out of their files."""
    from transformers import CLIPTokenizer, T5TokenizerFast

    vocabulary = json.loads((TOKENIZERS / "clip" / "vocab.json").read_text(encoding="utf-8"))
    lines = (TOKENIZERS / "clip" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split()) for line in lines if line]
    clip = [
        CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)
        for pad in ("<|endoftext|>", "!")
    ]
    t5 = T5TokenizerFast.from_pretrained(
        TOKENIZERS / "t5", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    return (*clip, t5)
