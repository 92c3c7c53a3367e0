"""The three tokenizers: a CLIP byte-level BPE twice (they differ in padding, as SD3's do) and a T5 unigram.

Both are made from the words of the captions; anything else falls back to letters (CLIP: to bytes, T5: to printable
ASCII pieces), so that every English prompt tokenizes.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5TokenizerFast

from data.recipe.scenes import training_scene

CLIP_LENGTH, T5_LENGTH = 77, 256
CAPTIONS = 3_000  # enough for every word to occur
CLIP_VOCABULARY = 1024
# Words that people put around a prompt: known as pieces, so that a common word is not spelled letter by letter.
COMMON = (
    "the of and to in is on with at by from for it its two three one photo photograph painting sketch art "
    "digital style beautiful cute little large tiny huge next beside behind front near between both left "
    "right top bottom side centre center corner red green blue yellow orange purple pink black white gray "
    "grey brown scene background sky grass "
).split()


def captions(count: int = CAPTIONS) -> list[str]:
    """Return the captions of the first `count` training scenes."""
    return [training_scene(seed).caption for seed in range(count)]


def clip_tokenizers(texts: list[str]) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Train one byte-level BPE on the texts; the first tokenizer pads with the end token, the second with "!"."""
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.train_from_iterator([text.replace(",", " ,") for text in [*texts, *COMMON]], trainer)
    merges = _merges(bpe)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [
        "!",
        *(c for c in alphabet if c != "!"),
        *(c + "</w>" for c in alphabet),
        *(a + b for a, b in merges),
    ]
    pieces = list(dict.fromkeys(pieces)) + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return tuple(
        CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=CLIP_LENGTH)
        for pad in ("<|endoftext|>", "!")
    )


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    """Return the merges of a trained BPE, in order."""
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]


def t5_tokenizer(texts: list[str]) -> T5TokenizerFast:
    """Build a unigram model: whole words by log frequency, single characters as fallback.

    The unigram trainer degenerates to single letters on a closed corpus, so the list is made by hand.
    """
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text))
    counts.update(COMMON)
    total = sum(counts.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [
        (f"▁{word}", math.log(count / total)) for word, count in counts.most_common() if word.isalnum()
    ]
    pieces += [(mark, math.log(count / total)) for mark, count in counts.most_common() if not mark.isalnum()]
    known = {piece for piece, _ in pieces}
    singles = ["▁", *string.ascii_lowercase, *string.ascii_uppercase, *string.digits, *string.punctuation]
    pieces += [(single, -12.0) for single in singles if single not in known]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)
