"""Every character of a prompt belongs to a token that reads it, or is told as cut: 200 hard texts, SD3's tokenizers."""

from __future__ import annotations

import numpy as np
import pytest
from making.published import published_tokenizers

from sd35h5.planning.token_table import TokenTable, encode, token_table, truncation_note

T5_TOKENS = 256
HARD = (  # one kind each: what normalisers merge, drop, split or do not know
    "ﬁne ﬂow oﬃce ﬆ ĳ Ǆ",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３ ｶﾞﾊﾟ",
    "cafe\u0301 a\u030a n\u0303 x\u0302\u0323 \u1e9b\u0323",
    "\u0301 \u0300lead e\u0301",
    "👨\u200d👩\u200d👧\u200d👦 👩🏽\u200d🚀 🧑\u200d💻",
    "🏳\ufe0f\u200d🌈 🇯🇵🇫🇷 🇯 1\ufe0f\u20e3 ❤\ufe0f 🐱\ufe0e",
    "สวัสดีครับ น้ำ กำ เก่ง",
    "नमस्ते क्षत्रिय हिन्दी श्री ज्ञान",
    "বাংলা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം",
    "שָׁלוֹם עִבְרִית יי",
    "مرحبا بالعالم ﷺ ﻻ ـــ ١٢٣",
    "\u202eabc\u202c \u200fabc \u2066x\u2069 \u061c",
    "\ufeffabc \u2060x \u200b \u200d \u200c",
    "a\x01b\x02c\x7f \x1b[31m \x08 \x9f",
    "a\x00b \x00",
    "tab\tnew\nline\r\x0b\x0c \u3000 \u00a0x \u2028 \u2029",
    "가나다 각 \u1100\u1161\u11a8 ᄒᆞᆫ",
    "Å Ω K ℡ № ½ ² ㍿ ㎏ ㌔ ㈱ ① Ⅷ",
    "ᾳ ǆ ǅ ß ẞ İ ı ŉ Σς",
    "𠮷野家 𝒜𝓫𝕔 𝟙 𐍈",
    "𒀀 𓂀 ꙮ ﷽ 𝄞",
    "z̷̢̢͎̗̥̝̫͚̃̌a̶l̵g̸o",
    "<pad> </s> <unk> <extra_id_0> <|endoftext|> <|startoftext|> <cat-toy>",
    "▁under ▁ ▁▁ a▁b",
    "\uffff \ufffe \ufdd0 \U0010ffff \ue000 \ufffd",
    "\u00ad soft\u00adhyphen zero\u200bwidth",
    "ཀྵ བོད་ မြန်မာ ភាសា ລາວ ខ្មែរ",
    "... … ‘’ “” – — ` ´ ¨ ¯ ¸ ․",
    "日本語のテキストと漢字　猫がいる。",
    "一个红苹果在桌子上，旁边有一只猫",
    "Привет, мир! Ёлка Ё Й",
    "Việt Nam ươ ệ ạ",
    "it's rock'n'roll cat's we'll I'm o’clock",
    "amane_kanata, 1girl, blue_eyes, (masterpiece:1.2), [x|y]",
    "x²+y²=z² ≤ ≠ ∑ ∫ √ → ⇒",
    "😀😃😄😁😆 😅🤣",
    "\U000e0041\U000e0042 tags \U000e007f",
    "ᎣᏏᏲ ꮳꮃꭹ ⴰⵣⵓⵍ ᚠᚢᚦ",
    "ａ\u0301 ﾊ\u3099 か\u3099",
    "A\u034fB \u115f \u3164 ﾠ \u2800",
)
ARRANGED = ("{}", "a cat {} on a mat", "x{}y", "{}{}", "{} " * 60)


@pytest.fixture(scope="module")
def tokenizers():
    return published_tokenizers()


def _table(tokenizers, prompt: str) -> TokenTable:
    clip_l, clip_g, t5 = tokenizers
    return token_table(
        encode(clip_l, prompt, 77), encode(clip_g, prompt, 77), encode(t5, prompt, T5_TOKENS), T5_TOKENS
    )


def test_there_are_200_texts():
    assert len({form.replace("{}", text) for text in HARD for form in ARRANGED}) == 200


@pytest.mark.parametrize("form", ARRANGED)
def test_every_character_belongs_to_a_token_or_is_told_as_cut(tokenizers, form):
    for text in HARD:
        prompt = form.replace("{}", text)
        table = _table(tokenizers, prompt)
        for encoder, part, kept in zip(
            ("CLIP", "T5"), (slice(0, 77), slice(77, None)), table.kept_chars[[0, 2]], strict=True
        ):
            spans = [
                (start, end)
                for start, end in zip(table.starts[part], table.ends[part], strict=True)
                if start >= 0
            ]
            read = {place for start, end in spans for place in range(start, end)}
            lost = [place for place, one in enumerate(prompt) if not (one.isspace() or place in read)]
            assert all(place >= kept for place in lost), (encoder, ascii(prompt), lost, kept)
            if lost:
                assert f"reads {kept} " in truncation_note("it", table)
            for name, (start, end) in zip(
                [t for t, s in zip(table.texts[part], table.starts[part], strict=True) if s >= 0],
                spans,
                strict=True,
            ):
                assert name == prompt[start:end] == name.strip() != ""


def test_what_an_encoder_reads_is_what_the_pipeline_gives_it(tokenizers):
    for text in HARD:
        prompt = f"{text} " * 30
        table = _table(tokenizers, prompt)
        for row, (tokenizer, length) in enumerate(zip(tokenizers, (77, 77, T5_TOKENS), strict=True)):
            ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True)["input_ids"]
            held = table.ids[row]
            assert np.array_equal(held[held >= 0], ids)


def test_marks_and_joiners_belong_to_their_letters(tokenizers):
    prompt = "cafe\u0301 👨\u200d👩 \u200fabc"
    table = _table(tokenizers, prompt)
    texts = table.texts[77:]
    assert any(text.endswith("e\u0301") for text in texts), texts[:12]
    first = [prompt[start:] for start in table.starts[77:] if start >= 0]
    assert "\u200fabc" in first and "abc" not in first  # a mark before a word is read with it


def test_a_text_of_which_an_encoder_reads_nothing_is_told(tokenizers):
    table = _table(tokenizers, "\u200d")
    assert table.kept_chars[2] == 0 and "T5 reads 0" in truncation_note("it", table)
