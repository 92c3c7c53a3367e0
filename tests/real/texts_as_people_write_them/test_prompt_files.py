"""Prompt files as other programs write them: encodings, line ends, JSON Lines, names of fields, values of their own."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
from making.pipelines import make_pipeline

from sd35h5.errors import CaptureError, ConfigError
from sd35h5.planning.job import resolve
from sd35h5.planning.options import CaptureConfig, Model, Prompts
from sd35h5.planning.prompts import MAX_SEED, load_prompts
from sd35h5.planning.validation import validate
from sd35h5.reports.missing_tiers import prompts_file
from sd35h5.weights.model_facts import read_facts

TEXTS = ["ein Café", "一只猫, 🐱", 'red "OPEN" sign']
LARGE = read_facts(Model(), offline_guess=True)


def _read(path: Path, data: bytes | str, **options: object):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return load_prompts(Prompts(prompts_json=str(path), **options))


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.txt", "p"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_of_prompts_is_read_in_every_usual_encoding_and_line_end(tmp_path, name, encoding, mark, end):
    written = {
        "p.json": json.dumps(TEXTS, ensure_ascii=False, indent=1).replace("\n", end),
        "p.jsonl": end.join(json.dumps({"caption": text}, ensure_ascii=False) for text in TEXTS) + end,
    }.get(name, end.join(["", *TEXTS, "", ""]))
    found = _read(tmp_path / name, mark + written.encode(encoding))
    assert [prompt.text for prompt in found] == TEXTS
    assert [prompt.id for prompt in found] == ["p000", "p001", "p002"]


def test_json_lines_are_told_by_what_they_are_also_in_a_json_file(tmp_path):
    lines = '{"prompt": "a cat"}\n\n{"text": "a dog", "id": 7}\n'
    assert [(p.id, p.text) for p in _read(tmp_path / "p.json", lines)] == [("p000", "a cat"), ("7", "a dog")]
    assert [p.text for p in _read(tmp_path / "p.json", '{"prompts": ["a", {"caption": "b"}]}')] == ["a", "b"]
    assert [p.text for p in _read(tmp_path / "p.json", '{"prompt":\n "one"}')] == ["one"]


def test_files_that_were_joined_are_read_without_the_marks_within(tmp_path):
    mark = codecs.BOM_UTF8
    found = _read(tmp_path / "p.jsonl", mark + b'{"text": "a cat"}\n' + mark + b'{"text": "a dog"}\n')
    assert [prompt.text for prompt in found] == ["a cat", "a dog"]
    assert [p.text for p in _read(tmp_path / "p.txt", mark + b"a cat\n" + mark + b"a dog")] == [
        "a cat",
        "a dog",
    ]


def test_a_plain_text_may_hold_prompts_that_begin_with_brackets(tmp_path):
    assert [p.text for p in _read(tmp_path / "p.txt", "[cat:1.2] on a mat\n{dog|cat}\n")] == [
        "[cat:1.2] on a mat",
        "{dog|cat}",
    ]


def test_an_entry_has_its_own_negative_prompt_seed_and_tags(tmp_path):
    entries = [
        {
            "id": "a",
            "prompt": "a cat",
            "negative_prompt": "dogs",
            "seed": 5,
            "tags": ["animals", "lang:en", "animals"],
        },
        {"id": "b", "text": "a car", "negative_prompt": "", "tags": " city ,night,, "},
        {"id": "c", "caption": "a hill", "width": 512, "url": "somewhere"},
    ]
    found = _read(tmp_path / "p.json", json.dumps(entries))
    assert [(p.negative_prompt, p.seed, p.tags) for p in found] == [
        ("dogs", 5, "animals,lang:en"),
        ("", None, "city,night"),
        (None, None, ""),
    ]
    options = Prompts(prompts_json=str(tmp_path / "p.json"), negative_prompt="blur", seed=100, num_images=2)
    job = resolve(CaptureConfig(prompts=options), found, LARGE)
    assert [job.seed(index) for index in range(6)] == [5, 1000005, 101, 1000101, 102, 1000102]
    assert [job.negative_prompt(index) for index in range(6)] == ["dogs", "dogs", "", "", "blur", "blur"]
    assert job.settings["tags"] == ["animals,lang:en", "city,night", None]
    assert job.settings["seeds"] == [5, None, None] and job.settings["negative_prompts"] == ["dogs", "", None]


def test_a_capture_without_values_of_its_own_has_the_settings_that_it_always_had(tmp_path):
    found = _read(tmp_path / "p.json", '["a cat"]')
    settings = resolve(
        CaptureConfig(prompts=Prompts(prompts_json=str(tmp_path / "p.json"))), found, LARGE
    ).settings
    assert not {"tags", "seeds", "negative_prompts"} & set(settings)


BROKEN = [
    ("p.json", '["a",\n "b"\n "c"]', "p.json is no JSON: Expecting ',' delimiter at line 3, column 2"),
    ("p.jsonl", '"a"\n{"prompt": }\n', "p.jsonl, line 2 is no JSON"),
    ("p.json", '{"prompt": "a"}\n{"prompt" "b"}', "p.json, line 2 is no JSON"),
    ("p.jsonl", '{"prompt": "a"}\n{"prmpt": "b"}', "p.jsonl, line 2 is empty or no text"),
    ("p.txt", b"a cat\nein Caf\xe9\n", "p.txt, line 2: this is not UTF-8: save the file as UTF-8"),
    ("p.json", codecs.BOM_UTF16_LE + b'[\x00"\x00a', "p.json, line 1: this is not UTF-16-LE"),
    ("p.txt", codecs.BOM_UTF32_LE + "a".encode("utf-32-le"), "p.txt is in UTF-32: save it as UTF-8"),
    ("p.csv", "prompt,seed\na cat,3", "p.csv is a table: save its prompts as JSON Lines, or as text, one a line"),
    ("p.json", '{"images": 3}', "p.json is no list: write"),
    ("p.json", "3", "p.json is no list: write"),
    ("p.json", "[" * 100_000, "nested too deeply"),
    ("p.txt", "\n\n", "is an empty list: there is nothing to draw"),
    ("p.json", '["a", ["b"]]', "p.json, entry 1 is empty or no text: ['b']|{'prompt'"),
    ("p.json", '[{"prompt": "a", "steps": 9}]', "entry 0: steps is the same for all prompts of a capture"),
    ("p.json", '[{"prompt": "a", "seed": "9"}]', "entry 0: its seed is 9, and should be a whole number"),
    ("p.json", '[{"prompt": "a", "seed": true}]', "its seed is True, and"),
    ("p.json", '[{"prompt": "a", "seed": -1}]', "its seed is -1, and should be a whole number, 0 or more"),
    ("p.json", '[{"prompt": "a", "seed": 1.5}]', "its seed is 1.5"),
    ("p.json", '[{"prompt": "a", "tags": 4}]', "its tags are 4, and should be texts"),
    ("p.json", '[{"prompt": "a", "negative_prompt": ["b"]}]', "its negative_prompt is no text"),
    ("p.json", '[{"prompt": "a", "id": ""}]', "its id is , and should be a text or a number"),
    ("p.json", '[{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}]',
     "entry 1: the id 'x' comes twice, it was that of .*entry 0"),
    ("p.json", '["a \\u0000 cat"]', r"entry 0, prompt: U\+0000 at character 2 is a character that no file"),
    ("p.jsonl", '{"text": "a\\ud83d cat"}', r"line 1, text: U\+D83D at character 1"),
    ("p.json", '[{"prompt": "a", "id": "x\\u001b"}]', r"entry 0, id: U\+001B at character 1"),
    ("p.json", '[{"prompt": "a", "negative_prompt": "\\uffff"}]', r"entry 0, negative_prompt: U\+FFFF"),
    ("p.json", '[{"prompt": "a", "tags": "\\u0007"}]', r"entry 0, tags: U\+0007"),
    ("p.txt", b"a\nb \x1b[31m", r"p.txt, line 2, prompt: U\+001B at character 2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "said"), BROKEN, ids=[said[:48] for *_, said in BROKEN])
def test_what_cannot_be_read_is_told_in_a_sentence_with_its_place(tmp_path, name, data, said):
    with pytest.raises(ConfigError, match=said) as caught:
        _read(tmp_path / name, data)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_seeds_that_the_file_cannot_hold_are_refused_with_the_prompt_of_their_own(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps([{"id": "far", "prompt": "a", "seed": MAX_SEED}]))
    options = Prompts(prompts_json=str(tmp_path / "p.json"))
    assert validate(CaptureConfig(prompts=options))[0].seed == MAX_SEED
    with pytest.raises(ConfigError, match=f"the seed {MAX_SEED} of prompt far is too large"):
        validate(CaptureConfig(prompts=Prompts(prompts_json=options.prompts_json, num_images=2)))
    with pytest.raises(ConfigError, match="--seed 9223372036854775807 is too large"):
        validate(CaptureConfig(prompts=Prompts(prompt=("a", "b"), seed=MAX_SEED)))
    with pytest.raises(ConfigError, match=r"prompt 0, prompt: U\+0000"):
        validate(CaptureConfig(prompts=Prompts(prompt=("a\0",))))
    with pytest.raises(ConfigError, match=r"--negative_prompt: U\+DC80"):
        validate(CaptureConfig(prompts=Prompts(prompt=("a",), negative_prompt="\udc80")))


def test_a_batch_draws_each_prompt_with_its_own_negative_prompt_seed_and_tags(tmp_path, tiny_folder):
    from sd35h5.capturing.run_job import run
    from sd35h5.planning.job import make_job
    from sd35h5.planning.options import Output, Sampling, Tiers
    from sd35h5.store.places.open_store import open_store

    entries = [
        {
            "id": "a",
            "prompt": "a red apple",
            "negative_prompt": "blue",
            "seed": 5,
            "tags": ["fruit", "lang:en"],
        },
        {"id": "b", "prompt": "a cat", "tags": "animals"},
        {"id": "c", "prompt": "a car", "negative_prompt": ""},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, entries)))

    def captured(name: str, batch: int):
        config = CaptureConfig(
            model=Model(model_id=str(tiny_folder), device="cpu", dtype="float32"),
            prompts=Prompts(prompts_json=str(tmp_path / "p.jsonl"), negative_prompt="blur", seed=3),
            sampling=Sampling(steps=2, batch_size=batch, max_sequence_length=24),
            tiers=Tiers(maps="off", topk=0), output=Output(out=str(tmp_path / name)),
        )  # fmt: skip
        return open_store(run(make_job(config)))

    with captured("one.h5", 1) as one, captured("three.h5", 3) as three:
        for store in (one, three):
            table = store.samples
            assert table["negative_prompt"].tolist() == ["blue", "blur", ""]
            assert table["seed"].tolist() == [5, 4, 5] and table["tags"].tolist() == [
                "fruit,lang:en",
                "animals",
                "",
            ]
            assert [
                store.read("samples/kept_chars", sample=n, branch="uncond").values[0] for n in range(3)
            ] == [4, 4, 0]
            told = [{k: v for k, v in entry.items() if v} for entry in prompts_file(store)]
            assert [(e["id"], e.get("seed"), e.get("tags")) for e in told] == [
                ("a", 5, "fruit,lang:en"), ("b", None, "animals"), ("c", None, None),
            ]  # fmt: skip
            assert prompts_file(store)[2]["negative_prompt"] == ""
        for name in ("sinks/mass_group", "images/image"):
            apart = abs(one.read(name).values.astype(float) - three.read(name).values.astype(float))
            assert apart.max() <= (2 if name == "images/image" else 1e-4)


@pytest.mark.parametrize("text", ["a \0 cat", "a \x1b cat", "a \udc80 cat"])
def test_a_prompt_that_no_file_can_hold_is_refused_before_anything_is_drawn(tmp_path, text):
    from sd35h5 import capture

    pipe = make_pipeline()
    calls = []
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with (
        pytest.raises(CaptureError, match="prompt has U.* at character 2, a character that no file can hold"),
        capture(pipe, tmp_path / "run.h5") as generate,
    ):
        generate(text, num_inference_steps=1, height=64, width=64, seed=0)
    assert not calls
