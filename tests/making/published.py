"""What has the published models' vocabularies: small pipelines with the real tokenizers, made without our loader."""

from __future__ import annotations

import json
import math
import struct
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


def sparse_file(path: Path, shapes: dict, metadata: dict | None = None, sha256: str = "") -> Path:
    """Write a safetensors file of zeros that takes no room: a header, and a hole.

    Args:
        sha256: make it a link to a file of this name, as the hub's cache keeps a file of this hash.
    """
    table, end = {"__metadata__": metadata} if metadata else {}, 0
    for key, shape in shapes.items():
        table[key] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [end, end + math.prod(shape)]}
        end += math.prod(shape)
    header = json.dumps(table).encode()
    stored = path.with_name(sha256) if sha256 else path
    with stored.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    if sha256:
        path.symlink_to(stored)
    return path
