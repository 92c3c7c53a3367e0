"""Texts that act in place of being seen, in prompts, tokens, ids, models and file names: nothing dies, nothing runs."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import h5py
import pandas as pd
import pytest
from making.pages import open_page
from making.stores import make_store

from sd35h5.errors import StoreError
from sd35h5.figures import overlays, printing, token_charts
from sd35h5.figures.html_page import document
from sd35h5.reports.export import export
from sd35h5.reports.output_files import csv_text, distinct_names, safe_name
from sd35h5.store.places.open_store import open_store
from sd35h5.store.score_joining import join_scores
from sd35h5.store.showable import (
    acts,
    as_json,
    cell,
    forbidden,
    forbidden_within,
    seen,
    showable,
    well_formed_json,
)
from sd35h5.store.verifying import verify
from sd35h5.store.writer import Header, SampleWriter, begin_run

ROOT = Path(__file__).resolve().parents[3]
KILLS = "\x01\x1b[31m\x08\x1f\ufffe"  # each of these ends the renderer of charts
BYTES = KILLS.encode() + b"\xff\xed\xa0\x80"  # and no UTF-8
ACTS = "=cmd\u202edrowssap\u2066\x7f\x9b\x85 <b>|`$x$ \u200f"


def poison(path: Path, text: bytes = BYTES) -> Path:
    """Write the bytes into every text of a store, as no capture does."""
    with h5py.File(path, "r+") as file:
        names = [
            f"samples/{name}" for name in ("sample_id", "prompt_id", "prompt", "negative_prompt", "tags")
        ]
        for name in (*names, "tokens/token_text"):
            old = file[name][...]
            new = old.ravel()
            new[:] = [text + one for one in new]
            file[name][...] = new.reshape(old.shape)
        for name in ("model_id", "gate_type", "writer"):
            file.attrs[name] = text.decode("utf-8", "replace")
        config = json.loads(file["provenance/config"][()]) | {"model_id": f"a{KILLS}\0\ud800", "x\0": ["\0"]}
        del file["provenance/config"]
        file["provenance/config"] = json.dumps(config)
    return path


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("poisoned")
    for name in ("a.h5", "b.h5"):
        poison(make_store(folder / name, samples=2, layers=2, heads=2, steps=2))
    return folder


def test_a_text_is_seen_whole_on_one_line():
    assert showable("a\n\tb \x1b[31m\0\u202e\udc80\x9b\u2029c") == r"a b \x1b[31m\x00\u202e\udc80\x9b c"
    assert showable("一只猫 🐱 e\u0301") == "一只猫 🐱 e\u0301" and showable("x" * 9, 5) == "xxxx…"
    assert seen("a\n\x1bb") == "a\n\\x1bb"
    assert well_formed_json({"a\0": ["b\x1b", 1], "c": "d\n\u202e"}) == {
        "a\ufffd": ["b\ufffd", 1],
        "c": "d\n\u202e",
    }
    assert (
        forbidden_within([{"a": ["b\x1b"]}])
        and forbidden_within({"\0": 1})
        and not forbidden_within(["\n", 1])
    )
    assert json.loads(as_json(["\x1b\u202e\udc80é"])) == ["\x1b\u202e\udc80é"]
    assert not acts(as_json(["\x1b\u202e\udc80\x7f"]))
    assert forbidden("ab\x1b") == "U+001B at character 2" and forbidden("a\n\t\r\u202e") == ""


def test_a_cell_never_begins_as_a_formula():
    texts = ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "\r-", "a=1", "", "猫"]
    assert [cell(text) == f"'{text}" for text in texts] == [True] * 7 + [False] * 3
    assert [cell(value) for value in (-1, -0.5, None)] == [-1, -0.5, None]
    told = csv_text(pd.DataFrame({"text": ["=1\x1b", "two\nlines"], "value": [-1.0, 0.123456789123]}))
    rows = list(csv.reader(io.StringIO(told)))
    assert rows == [["text", "value"], [r"'=1\x1b", "-1"], ["two\nlines", "0.123456789"]]


def test_scores_are_joined_by_ids_as_our_own_tables_write_them(tmp_path):
    path = make_store(tmp_path / "run.h5", samples=1, sample_id="=a")
    (tmp_path / "ours.csv").write_text(csv_text(pd.DataFrame({"sample_id": ["=a"], "clip": [0.5]})))
    assert (tmp_path / "ours.csv").read_text().splitlines()[1] == "'=a,0.5"
    assert join_scores(path, tmp_path / "ours.csv") == {"clip": 1}


def test_verify_refuses_what_no_text_of_a_file_may_hold_and_nothing_else(tmp_path, poisoned):
    assert any("which no text of a file may" in problem for problem in verify(poisoned / "a.h5").problems)
    fine = make_store(tmp_path / "fine.h5", samples=1, prompts=(f"two\nlines\tand {ACTS} 猫",))
    assert verify(fine).ok
    for name, text, said in (
        ("prompt", b"a \x1b cat", "samples/prompt holds the control character U+001B"),
        ("sample_id", b"a\xff", "samples/sample_id holds a text that is not UTF-8"),
        ("tags", "\uffff".encode(), "samples/tags holds the control character U+FFFF"),
    ):
        path = make_store(tmp_path / f"{name}.h5", samples=1)
        with h5py.File(path, "r+") as file:
            file[f"samples/{name}"][0] = text
        report = verify(path)
        assert not report.ok and report.problems[0].startswith(said)
        with pytest.raises(StoreError, match="cannot be opened"):
            open_store(path, trusted=False)
    path = make_store(tmp_path / "config.h5", samples=1)
    with h5py.File(path, "r+") as file:
        del file["provenance/config"]
        file["provenance/config"] = '{"a": "\\u0000"}'
    assert verify(path).problems == (
        "provenance/config holds a control character, which no text of a file may",
    )


def test_a_writer_takes_no_text_that_verify_refuses(tmp_path):
    header = Header({"model_id": "m"}, {"branch": [0], "encoder": [0, 1, 2]}, {"config": "{}"})
    for text in ("\0", "\x1b", "\udc80", "\ufffe"):
        writer = SampleWriter(begin_run(tmp_path / f"r{ord(text)}.h5", {}, 1), 0, header)
        with pytest.raises(StoreError, match="holds texts without control characters"):
            writer.put("samples/prompt", text)
        writer.abandon()


def test_a_reader_hands_out_no_text_that_a_file_may_not_hold(poisoned):
    with open_store(poisoned / "a.h5") as store:
        texts = [
            *store.samples["prompt"],
            *store.tokens(0)["text"],
            *store.attributes.values(),
            store.config["model_id"],
        ]
        assert not any(map(forbidden, texts)) and "\ufffd" in texts[0]
        assert not forbidden(json.dumps(store.config, ensure_ascii=False))


DRAW_ALL = """
import sys
from sd35h5.__main__ import main
sound, other, poisoned, out = sys.argv[1:]
for path, status in ((sound, 0), (poisoned, 1)):
    to = f"{out}/{status}"
    assert main(["verify", path]) == status
    assert main(["verify", path, "--json"]) == status
    assert main(["info", path]) == status
    assert main(["info", path, "--json"]) == status
    assert main(["analyze", path, "--out_dir", to + "/analyze", "--per_prompt"]) == status
    assert main(["export", path, "--out_dir", to + "/export", "--maps"]) == status
    assert main(["compare", path, other, "--out_dir", to + "/compare", "--resamples", "100"]) == status
assert main(["info", sound + "\\x1b[2J\\udc80"]) == 1
"""


def test_every_report_of_texts_that_act_is_written_and_prints_none_of_them(poisoned, tmp_path):
    prompts = (f"two {ACTS}", f"{ACTS} words")
    named = {"samples": 2, "layers": 2, "heads": 2, "steps": 2, "prompts": prompts, "model_id": ACTS}
    paths = [
        make_store(tmp_path / f"{name}.h5", sample_id=ACTS, prompt_id=ACTS, **named)
        for name in ("a", "=b\u202e")
    ]
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", DRAW_ALL, *map(str, paths), str(poisoned / "a.h5"), str(out)],
        cwd=ROOT, capture_output=True, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    for line in (done.stdout + done.stderr).decode().split("\n"):
        assert not acts(line), line
    made = [path for path in out.rglob("*") if path.is_file()]
    assert len(list(out.glob("0/export/images/*.png"))) == 2
    assert len(list(out.glob("0/analyze/prompts/*/*.png"))) == 3
    for path in made:
        if path.suffix in (".csv", ".json", ".html"):
            assert not acts(path.read_text(encoding="utf-8").replace("\n", "")), path
        assert safe_name(path.stem) == path.stem


def test_every_kind_of_text_in_a_chart_is_drawn():
    frame = pd.DataFrame(
        {
            "token": range(4), "last": range(4), "count": 1, "encoder": "clip", "group": "clip_word",
            "text": [KILLS, "\0", "a\nb", ACTS], "mass": 0.1, "total": 0.1,
        }
    )  # fmt: skip
    code = (
        "import sys, pickle; from sd35h5.figures import printing, token_charts; import pandas as pd\n"
        "frame = pd.DataFrame(eval(sys.stdin.read()))\n"
        "for chart in (token_charts.token_chips(frame), token_charts.token_bars(frame, title='\\0\\x1b\\udc80')):\n"
        "    assert printing.png(chart).startswith(b'\\x89PNG') and '\\u202e' not in printing.svg(chart)\n"
    )
    given = repr(frame.to_dict("list")).encode("utf-8")
    done = subprocess.run([sys.executable, "-c", code], input=given, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    shown = printing.showable_chart(token_charts.token_chips(frame)).to_dict()
    assert not any(
        map(acts, [row["text"] for rows in shown["datasets"].values() for row in rows if "text" in row])
    )
    for text in (KILLS, "\0", "\udc80", ACTS):
        overlays.png(
            overlays.sheet([overlays.colored(frame[["mass"]].values)], [text], columns=1, size=(40, 90))
        )
        overlays.boxed(overlays.colored(frame[["mass"]].values), [((0, 0, 1, 1), text, True)])
        page = document(text, [f"<p>{showable(text)}</p>"])
        assert not acts(page.replace("\n", ""))


def test_what_a_file_of_weights_tells_is_printed_without_controls(tmp_path, capsys):
    import torch
    from safetensors.torch import save_file

    from sd35h5.__main__ import main

    path = tmp_path / "gates\x1b.safetensors"
    tensors = {f"transformer_blocks.0.attn.to_gate.{name}": torch.ones(2, 8) for name in ("weight",)}
    save_file(
        tensors | {"transformer_blocks.0.attn.to_gate.bias": torch.ones(2)},
        path,
        {"attn2_layout": f"x{ACTS}"},
    )
    for more in ((), ("--json",)):
        main(["gates", "inspect", str(path), *more])
        told = capsys.readouterr()
        assert "headwise" in told.out and not any(map(acts, (told.out + told.err).splitlines()))


def test_files_of_long_or_look_alike_ids_are_kept_apart(tmp_path):
    long = "a" * 70
    ids = [f"{long}1", f"{long}2", "猫", "狗", "a/b", "a b", "Cat", "cat", "con", "", "plain-id", "plain-id"]
    names = distinct_names(ids)
    assert len({name.casefold() for name in names}) == len(ids) and all(len(name) <= 62 for name in names)
    assert names[-2:] == ["plain-id", "plain-id-2"] and names[6] == "Cat" and names[8] != "con"
    assert names[:-1] == distinct_names(ids[:-1]), "a name does not depend on those behind it"
    folder = make_store(tmp_path / "run.h5", samples=3, packed=False, sample_id=f"{long}-seed")
    with open_store(folder) as store:
        assert store.samples["sample_id"].nunique() == 1
    export(folder, tmp_path / "out", maps=True)
    assert (
        len(list((tmp_path / "out" / "images").iterdir()))
        == 3
        == len(list((tmp_path / "out" / "maps").iterdir()))
    )


@pytest.mark.parametrize(
    "page",
    [
        "overview",
        "tokens",
        "compare",
        "files",
        *(pytest.param(page, marks=pytest.mark.long) for page in ("sinks", "maps", "gates", "evidence")),
    ],
)
def test_a_page_shows_no_text_that_acts(monkeypatch, tmp_path, poisoned, page):
    path = make_store(
        tmp_path / "=run\u202e.h5", samples=2, layers=2, heads=2, steps=2, gates=True,
        prompts=(f"two {ACTS}", f"{ACTS} words"), sample_id=ACTS, prompt_id=ACTS, model_id=ACTS,
    )  # fmt: skip
    other = make_store(
        tmp_path / "other.h5", samples=2, layers=2, heads=2, steps=2, prompts=(f"two {ACTS}", f"{ACTS} words")
    )
    test = open_page(monkeypatch, path, other, poisoned / "a.h5", page=page)
    for kind in ("markdown", "caption", "info", "error", "warning", "success", "subheader"):
        for element in getattr(test, kind):
            assert not acts(element.value.replace("\n", "")), (kind, element.value)
    for widget in [*test.sidebar.selectbox, *test.sidebar.multiselect, *test.main.selectbox]:
        assert not any(map(acts, map(str, widget.options))), widget.label
    for chart in test.get("vega_lite_chart"):
        assert not acts(chart.proto.spec)
        for dataset in chart.proto.datasets:
            assert not any(map(acts, _texts(dataset.data.data)))
    for table in test.get("arrow_data_frame"):
        assert not any(map(acts, _texts(table.proto.data)))
    if page == "overview":
        told = " ".join(element.value for element in test.markdown)
        assert "which no text of a file may" in told


def _texts(arrow: bytes) -> list[str]:
    import pyarrow as pa

    frame = pa.ipc.open_stream(io.BytesIO(arrow)).read_pandas()
    return [text for name in frame.columns for text in frame[name].tolist() if isinstance(text, str)]
