"""Dumps from strangers: whatever is no dict of probabilities is told in a sentence, and nothing of it runs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from making.older_tool import Maps, random_maps, write_older

from sd35h5 import __main__ as commands
from sd35h5.store.runs import parts_of

PROMPT = "a red apple"
Layers = dict[str, torch.Tensor]


def _refusal(folder: Path, capsys) -> str:
    """What the command says of a folder; it leaves nothing behind."""
    out = folder.parent / "run.h5"
    assert commands.main(["import", str(folder), "--out", str(out)]) == 1
    assert not out.exists() and not parts_of(out).exists()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    return said


class _RunsCode:
    def __reduce__(self):
        return os.system, ("touch pickle_ran",)


def _saved(maps: object, **options: object) -> Callable[[Path], None]:
    return lambda path: torch.save(maps, path, **options)


def _zipped(compress: int = zipfile.ZIP_STORED, **members: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compress) as archive:
            for name, content in members.items():
                archive.writestr(f"attn_maps/{name.replace('_pkl', '.pkl')}", content)

    return make


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


LAYERS = random_maps(steps=1)[1000.0]
FILES = {  # a file that is no dump -> what is said of it
    "code": (_saved({1.0: _RunsCode()}), "nothing of it is unpickled, as a pickle can run code"),
    "a long bytearray": (_saved({1.0: bytearray(9)}), "bytearray, which no dict of probabilities needs"),
    "the old format": (_saved({1.0: LAYERS}, _use_new_zipfile_serialization=False), "is not the zip archive"),
    "a text": (_bytes(b"hello"), "is not the zip archive"),
    "nothing at all": (_bytes(b""), "is not the zip archive"),
    "a bomb": (_zipped(zipfile.ZIP_DEFLATED, data_pkl=bytes(50 << 20)), "is a compressed zip archive"),
    "a long list": (_zipped(data_pkl=bytes(17 << 20)), "lists more than any dump"),
    "no pickle": (_zipped(other=b"1"), "lacks data.pkl"),
    "nonsense": (_zipped(data_pkl=b"nonsense"), "does not say where its tensors lie"),
    "a list": (_saved([1, 2]), "holds no dict of timesteps"),
    "an empty dict": (_saved({}), "holds no dict of timesteps"),
    "a name": (_saved({"noon": LAYERS}), "'noon' is no timestep"),
    "true": (_saved({True: LAYERS}), "True is no timestep"),
    "no number": (_saved({float("nan"): LAYERS}), "nan is no timestep"),
    "far off": (_saved({1e9: LAYERS}), "is no timestep, 0 to 1000"),
    "twice": (_saved({5: LAYERS, "5.0": LAYERS}), "has the timestep 5 twice"),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_no_dump_is_told_in_a_sentence_and_nothing_of_it_runs(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_older(tmp_path / "out", {}, [PROMPT])
    make, told = FILES[case]
    make(folder / "attn_maps.pt")
    assert told in _refusal(folder, capsys)
    assert not (tmp_path / "pickle_ran").exists()


def _first(change: Callable[[Layers], Layers]) -> Callable[[Maps], Maps]:
    """Change the first step alone."""
    return lambda maps: {**maps, 1000.0: change(dict(maps[1000.0]))}


def _every(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Maps], Maps]:
    return lambda maps: {
        step: {n: change(each) for n, each in layers.items()} for step, layers in maps.items()
    }


def _without(layer: str) -> Callable[[Maps], Maps]:
    return _first(lambda layers: {name: each for name, each in layers.items() if name != layer})


def _with(layer: str, change: Callable[[torch.Tensor], object]) -> Callable[[Maps], Maps]:
    return _first(lambda layers: {**layers, layer: change(layers["layer-1"])})


def _aliases(maps: Maps) -> Maps:
    return {float(step): {f"layer-{n}": maps[1000.0]["layer-0"] for n in range(40)} for step in range(40)}


DUMPS = {  # what is done to a good dump -> what is said of it
    "no layers": (_first(lambda _: {}), "timestep 1000: there is no layer"),
    "a missing layer": (_without("layer-1"), "without layer 1"),
    "fewer layers": (_without("layer-2"), "3 layers at timestep 666.667, 2 at 1000"),
    "a strange layer": (_with("block", lambda each: each), "'block' is no layer, as layer-0 is"),
    "a layer twice": (_with("layer-02", lambda each: each), "has layer 02 twice"),
    "no tensor": (_with("layer-1", lambda _: 3), "layer-1 is no tensor of numbers"),
    "four axes": (_with("layer-1", lambda each: each[0]), "has the shape 2 × 4 × 6 × 93, expected batch rows × heads"),
    "other heads": (_with("layer-1", lambda each: each[:, :1]), "layer 1 is 2 × 1 ×"),
    "integers": (_every(lambda each: each.int()), "is int32, probabilities are floating-point numbers"),
    "odd rows": (_every(lambda each: torch.cat([each, each[:1]])),
                 "has 3 batch rows for 1 prompt: expected 2, [uncond | cond], or 1 without guidance"),
    "short text": (_every(lambda each: each[..., :60]), "has 60 text tokens, CLIP alone has 77"),
    "spread out": (_every(lambda each: each[..., :1].expand(-1, -1, -1, -1, 8000)), "more than the file has of it"),
    "aliases": (_aliases, "claims more attention than its"),
    "negative": (_with("layer-1", lambda each: each - 0.1), "no shares of attention"),
    "logits": (_with("layer-1", lambda each: each + 3), "gives 28"),
    "infinite": (_with("layer-1", lambda each: each / 0), "has values that are not finite"),
    "not a number": (_with("layer-1", lambda each: each * float("nan")), "has values that are not finite"),
    "renormalised": (_every(lambda each: each / each.sum(-1, keepdim=True)), "it was renormalised over the text"),
}  # fmt: skip


@pytest.mark.parametrize("case", DUMPS)
def test_a_dump_of_another_form_is_told_in_a_sentence(case, tmp_path, capsys):
    change, told = DUMPS[case]
    folder = write_older(tmp_path / "out", change(random_maps()), [PROMPT])
    assert told in _refusal(folder, capsys)


def test_a_dump_that_is_cut_off_is_told(tmp_path, capsys):
    folder = write_older(tmp_path / "out", random_maps(), [PROMPT])
    whole = (folder / "attn_maps.pt").read_bytes()
    (folder / "attn_maps.pt").write_bytes(whole[: len(whole) // 2])
    assert "or it is damaged or cut off" in _refusal(folder, capsys)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"), ("[]", "holds no prompts"), ('{"prompts": 3}', "no list of texts"),
        ('{"prompts": ["a\\u0007b"]}', "U+0007"), ('{"prompts": ["\\ud800"]}', "U+D800"),
        ('{"prompts": ["a red apple"], "token_ids": [["x"]]}', "not one list of whole numbers"),
        ('{"prompts": ["a red apple"], "token_ids": [[1, 2, 3]]}', "with --tokenizer_path"),
        ("[" * 100_000, "is no JSON"),
    ],
)  # fmt: skip
def test_a_tokens_json_that_does_not_fit_is_told(text, told, tmp_path, capsys):
    folder = write_older(tmp_path / "out", random_maps(steps=1, layers=1))
    (folder / "tokens.json").write_text(text)
    assert told in _refusal(folder, capsys)
