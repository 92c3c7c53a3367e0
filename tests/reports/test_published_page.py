"""A published page: its numbers are those of the metrics, texts stay texts, nothing foreign is lost or asked for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from making.browsing import CHROMIUM, chromium
from making.stores import make_store

from sd35h5 import compare, metrics, open_store
from sd35h5.errors import StoreError
from sd35h5.metrics import sink_rates
from sd35h5.reports.answers import sink_answers
from sd35h5.reports.answers.sentence import as_json
from sd35h5.reports.publishing import joined_modules, pair_pieces, shell, single_page
from sd35h5.reports.publishing.listing import page_list
from sd35h5.reports.publishing.pieces import Piece
from sd35h5.reports.publishing.publish import publish
from sd35h5.reports.publishing.published_runs import published_run, without_folders

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script> \u202eevil cat"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs that pair, published as a folder and as one file."""
    folder = tmp_path_factory.mktemp("published")
    shape = {
        "layers": 3,
        "heads": 2,
        "steps": 4,
        "branches": ("cond",),
        "prompts": ("a red apple left of a cat", HOSTILE),
    }
    runs = [
        make_store(folder / "demo-baseline.h5", sink=4.0, **shape),
        make_store(folder / "gated.h5", gates=True, **shape),
    ]
    publish(runs, folder / "site", words=["apple"])
    publish(runs, folder / "one.html", single=True, words=["apple"])
    return folder


def _array(path: Path) -> tuple[np.ndarray, dict]:
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    told = {name.decode(): json.loads(text) for name, text in table.schema.metadata.items()}
    return np.asarray(table["value"], np.float64).reshape(told["shape"]) * told["scale"], told


def test_the_numbers_of_a_page_are_those_of_the_metrics(made):
    with open_store(made / "demo-baseline.h5") as store:
        values = metrics.first_token_share(store)
        data = made / "site" / "data" / "r0"
        mean, told = _array(data / "numbers/cond/first_token_share.t0.all.arrow")
        np.testing.assert_allclose(mean, values.mean("sample").transpose("step", "layer", "head"), rtol=1e-6)
        assert told["steps"] == [0, 1, 2, 3] and told["uniform"] == 1.0
        each, _ = _array(data / "samples/cond/first_token_share.0.arrow")
        np.testing.assert_allclose(each, values, rtol=1e-3)
        maps, about = _array(data / "maps/cond/000000.arrow")
        choices = metrics.map_choices(store, 0)
        row = choices[(choices["word_text"] == "apple") & (choices["kind"] != "piece")].iloc[0]
        wanted = metrics.token_maps(store, 0, row["map_tokens"]).mean("layer")
        assert [one["tokens"] for one in about["words"]] == [".".join(map(str, row["tokens"]))]
        np.testing.assert_allclose(maps[0], wanted, rtol=1e-3)


def test_a_page_says_what_the_dashboard_says(made):
    with open_store(made / "demo-baseline.h5") as one, open_store(made / "gated.h5") as other:
        table = metrics.by_layer_head(metrics.first_token_mean(one))
        heads = sink_answers.heads(
            table, "first_token_mean", uniform=float(sink_rates.uniform_mass(one).mean())
        )
        pairing = compare.pair(one, other, ("demo-baseline", "gated"))
        means = [float(side.mean()) for side in compare.paired_values(one, other, pairing)]
    data = made / "site" / "data"
    assert _array(data / "r0/numbers/cond/first_token_mean.t0.all.arrow")[1]["said"] == as_json(heads)
    table = pa.ipc.open_stream((data / "pairs/r0-r1/cond/first_token_mean.arrow").read_bytes()).read_all()
    for name, runs in (("said", ("demo-baseline", "gated")), ("said_back", ("gated", "demo-baseline"))):
        said = "".join(part["text"] for part in json.loads(table.schema.metadata[name.encode()]))
        ends = means if name == "said" else means[::-1]
        assert f"is {ends[0]:.3g} in {runs[0]} and {ends[1]:.3g} in {runs[1]} (" in said
        assert "with fewer than 6 prompts no interval" in said


def test_a_page_begins_with_runs_that_can_tell_something(tmp_path):
    small = {"samples": 1, "layers": 2, "heads": 1, "steps": 2, "branches": ("cond",)}
    changes = {
        "baseline-again": {},
        "baseline": {},
        "gated": {"gates": True},
        "longer": {"gates": True, "steps": 3},
    }
    stores = {
        name: open_store(make_store(tmp_path / f"{name}.h5", **small | more))
        for name, more in changes.items()
    }
    runs = [published_run(place, name, store, (), {}) for place, (name, store) in enumerate(stores.items())]
    told = json.loads(page_list(runs, pair_pieces.pairings(stores), (), set(), {}))
    assert told["first"] == "baseline-again"
    telling = [(one["first"], one["second"]) for one in told["pairs"] if one["tells"]]
    assert telling == [("r0", "r2"), ("r1", "r2")]


def test_tables_lie_beside_the_page_with_all_runs(made):
    table = pd.read_parquet(made / "site" / "first_token.parquet")
    assert set(table["run"]) == {"demo-baseline", "gated"}
    assert (made / "site" / "samples.parquet").is_file() and (made / "site" / "tokens.parquet").is_file()


def test_no_path_of_this_machine_and_no_acting_text_is_in_a_page(made):
    texts = [
        path.read_bytes()
        for path in (made / "site").rglob("*")
        if path.suffix != ".parquet" and path.is_file()
    ]
    assert not any(str(made).encode() in text for text in texts)
    assert not any("\u202e".encode() in text for text in texts)
    pages = [path.read_text(encoding="utf-8") for path in (made / "site").rglob("*.html")]
    assert not any("onerror" in page for page in pages)
    assert without_folders("/home/me/runs/a.h5") == "…/a.h5" and without_folders("1/2 of a/b") == "1/2 of a/b"


def test_a_folder_that_holds_anything_else_is_never_replaced(made, tmp_path):
    run, out = made / "gated.h5", tmp_path / "site"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="no page of ours"):
        publish([run], out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    shutil.copytree(made / "site", tmp_path / "ours")
    with pytest.raises(StoreError, match="--overwrite"):
        publish([run], tmp_path / "ours")
    (tmp_path / "ours" / "CNAME").write_text("me.example")
    with pytest.raises(StoreError, match="CNAME"):
        publish([run], tmp_path / "ours", overwrite=True)


def test_a_single_file_is_filled_by_importance_and_tells_what_it_left_out(tmp_path, monkeypatch):
    first, last = shell.single_head("t")
    room = len(first.encode()) + len(last.encode()) + single_page.LIST_ROOM
    monkeypatch.setattr(single_page, "MOST_BYTES", room + 4000)
    rng = np.random.default_rng(0)
    pieces = [
        Piece(f"r0/{kind}{at}.arrow", kind, lambda: rng.bytes(1000), at)
        for kind in ("layers", "maps")
        for at in range(3)
    ]
    told = {}
    single_page.write_single(
        tmp_path / "one.html", "t", pieces, lambda absent, left: told.update(left) or b"{}"
    )
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert re.findall(r'data-name="(r0/\w+)', page) == ["r0/maps0", "r0/maps1"]
    assert told["maps"]["from"] == 2 and told["layers"]["files"] == 3
    assert list(told) == ["maps", "layers"]


def test_modules_are_joined_in_the_order_in_which_they_import_each_other():
    modules = {
        "a.js": 'import {two as b} from "./b.js";\nglobalThis.found = b();\n',
        "b.js": 'import {\n  one,\n} from "./c.js";\nexport function two() { return one + 1; }\n',
        "c.js": "const one = 1;\nexport {one};\n",
    }
    text = joined_modules.joined("a.js", modules)
    assert not re.search(r"^(import|export)\b", text, re.MULTILINE)
    assert text.index("const one = 1") < text.index("function two") < text.index("globalThis.found")
    with pytest.raises(ValueError, match="cannot be joined"):
        joined_modules.joined("d.js", {"d.js": 'import * as all from "./c.js";\n'})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_one_file_is_walked_through_offline_and_asks_nobody_for_anything(made):
    with chromium() as browser:
        page = browser.new_context(offline=True, color_scheme="dark").new_page()
        page.set_default_timeout(60_000)
        wrong, asked = [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: wrong.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{(made / 'one.html').as_uri()}?page=tokens&sample=1")
        assert "onerror=alert(1)" in page.locator("blockquote").inner_text()
        assert page.locator("main img[src=x]").count() == 0
        for name in ("Sinks", "Maps", "Compare", "Files", "Overview"):
            page.locator("nav a", has_text=name).click()
            page.locator(f"nav a[aria-current=page]:has-text('{name}')").wait_for()
            page.locator("main[aria-busy=false] .view h2").first.wait_for()
            assert page.locator(".note:has-text('could not be shown')").count() == 0
        page.goto(f"{(made / 'one.html').as_uri()}?page=sinks&cell=1.1&layers=0-1&metric=entropy")
        page.locator(".lv canvas[data-window]").first.wait_for()
        assert "layer 1, head 1" in page.locator("aside .chip").inner_text()
        assert "entropy over text keys" in page.locator("h2").first.inner_text()
        assert not page.locator(".answer").count()  # sentences are of all layers

        page.goto(f"{(made / 'one.html').as_uri()}?page=sinks")
        named = page.locator(".answer a").first.inner_text()
        page.locator(".answer a").first.click()
        page.locator("aside .chip", has_text=re.sub("^Layer", "layer", named)).wait_for()
        assert "cell=" in page.url
        browser.close()
    assert not wrong
    assert {url.split(":")[0] for url in asked} <= {"file", "blob", "data"}
