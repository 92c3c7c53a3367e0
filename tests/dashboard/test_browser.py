"""One story in real Chromium: open, click a cell, go to Maps and Compare; screenshots go to
tests/artifacts/."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from making import page_boxes
from making.browsing import IN_BROWSER, ROOT, chromium, dashboard_of
from making.linked_pages import along, drag, place_of, told, values_told
from making.stores import make_store
from streamlit.proto.BackMsg_pb2 import BackMsg

from sd35h5 import metrics, open_store
from sd35h5.reports import analyze
from sd35h5.reports.findings import findings_file

ALL_PAGES = ("", "sinks", "tokens", "maps", "gates", "compare", "evidence", "findings", "files")
ARTIFACTS = ROOT / "tests" / "artifacts"
CELLS = "[data-testid=stVegaLiteChart] path[aria-roledescription]"

pytestmark = IN_BROWSER


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    shape = {"layers": 8, "heads": 5, "steps": 8, "samples": 3}
    make_store(folder / "demo-baseline.h5", sink=4.0, **shape)
    make_store(folder / "demo-headwise.h5", sink=2.0, gates=True, **shape)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with dashboard_of(folder) as address:
        yield address


@pytest.fixture(params=["light", pytest.param("dark", marks=pytest.mark.long)])
def page(request, server):
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 1400}, color_scheme=request.param)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.scheme = request.param
        yield page


def shoot(page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}-{page.scheme}.png")


def told_cells(page, canvas, places) -> dict[tuple[int, int], list[float]]:
    """Return what the figure tells of cells that the pointer goes over: (layer, head) -> a value a panel."""
    found = {}
    for layer, head in places:
        page.mouse.move(*place_of(canvas, layer, head))
        line = told(page)
        assert line.startswith(f"layer {layer}, head {head} · "), line
        found[layer, head] = values_told(line)
    return found


def maps(page):
    """Return the heatmaps of the page's linked figures."""
    return page.locator("canvas[data-plot=map][data-area]")


def hovered_map(page, across: int, down: int) -> float:
    """Return the value that the first map tells under the pointer, in the cell of that patch: a map of 6 × 4."""
    cells = page.locator("[data-testid=stVegaLiteChart]").first.locator("g.mark-rect").first.bounding_box()
    wide, tall = cells["width"] / 4, cells["height"] / 6
    page.mouse.move(cells["x"] + wide * (across + 0.4), cells["y"] + tall * (down + 0.4))
    page.mouse.move(cells["x"] + wide * (across + 0.5), cells["y"] + tall * (down + 0.5))
    told = page.locator("#vg-tooltip-element.visible").inner_text()
    y, x, value = re.fullmatch(r"patch y\s+(\d+)\s+patch x\s+(\d+)\s+value\s+(\S+)\s*", told).groups()
    assert (int(y), int(x)) == (down, across)
    return float(value)


def stored_map(folder: Path, y: int, x: int) -> float:
    """Return what the page's first map holds in a cell: “apple” is the fourth map, layer 5, the last step."""
    with open_store(folder / "demo-baseline.h5") as store:
        return float(
            store.read("maps/image_to_text", sample=0, branch="cond", map_token=3, layer=5)[-1, y, x]
        )


def test_from_overview_to_a_cell_to_its_map_and_the_comparison(page, server, folder, tmp_path):
    page.goto(server)
    page.get_by_text("demo-headwise").first.wait_for()
    page.locator("[data-testid=stImage] img").nth(3).wait_for()
    page.wait_for_timeout(800)
    shoot(page, "overview")

    page.get_by_role("link", name="Sinks").click()
    maps(page).first.wait_for()
    page.get_by_text("Which key is the sink?").wait_for()
    page.wait_for_timeout(1500)
    analyze.analyze(folder / "demo-baseline.h5", tmp_path)
    table = (
        pd.read_csv(tmp_path / "first_token_metrics.csv")
        .groupby(["layer", "head"])["first_token_mean"]
        .mean()
    )
    cells = told_cells(page, maps(page).first, table.index)
    assert all(cells[place] == [pytest.approx(table[place], rel=1e-3)] for place in cells)

    page.mouse.click(*place_of(maps(page).first, 5, 3))
    page.get_by_role("button", name="layer 5, head 3").wait_for()
    page.wait_for_function("location.search.includes('cell=5.3')")
    page.mouse.move(3, 3)
    page.locator(".lv-told").filter(has_text="layer 5, head 3").wait_for()
    page.wait_for_timeout(1200)
    shoot(page, "sinks")

    page.get_by_role("link", name="Maps").click()
    page.get_by_text("layer 5").first.wait_for()
    page.locator("[data-testid=stImage] img").nth(2).wait_for()
    page.wait_for_timeout(1200)
    assert hovered_map(page, across=2, down=3) == pytest.approx(stored_map(folder, y=3, x=2), rel=1e-3)
    shoot(page, "maps")

    page.get_by_role("link", name="Compare").click()
    page.get_by_text("3 pairs;").or_(page.get_by_text("3 pairs.")).first.wait_for()
    page.get_by_text("Images · “").wait_for()
    page.wait_for_timeout(1200)
    assert [maps(page).nth(place).get_attribute("data-name") for place in range(3)] == [
        "demo-baseline", "demo-headwise", "demo-headwise − demo-baseline",
    ]  # fmt: skip
    shoot(page, "compare")
    found = told_cells(page, maps(page).nth(2), [(1, 4), (5, 3), (7, 0)])
    with open_store(folder / "demo-baseline.h5") as first, open_store(folder / "demo-headwise.h5") as second:
        means = [metrics.first_token_mean(store).mean(["sample", "step"]) for store in (first, second)]
    for (layer, head), values in found.items():
        before, after = (float(mean[layer, head]) for mean in means)
        assert values == pytest.approx([before, after, after - before], rel=1e-3)

    page.locator('path[aria-label*="seed: 2; prompt: two small dogs"]').first.click()
    page.wait_for_function("location.search.includes('sample=2')")
    page.get_by_text("Images · “two small dogs").wait_for()

    page.get_by_role("button", name="layer 5, head 3").click()
    page.get_by_role("button", name="layer 5, head 3").wait_for(state="detached")
    assert page.errors == []


def drag_along(page, title: str, first: str, last: str) -> None:
    """Drag over the chart below a heading, between the marks whose labels begin so."""
    block = page.locator("[data-testid=stColumn]").filter(has=page.get_by_text(title, exact=False)).last
    block.scroll_into_view_if_needed()
    ends = [block.locator(f'path[aria-label^="{label}"]').first.bounding_box() for label in (first, last)]
    middle = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in ends]
    drag(page, (middle[0][0] - 3, middle[0][1]), (middle[1][0] + 3, middle[1][1] + 1))


@pytest.mark.long  # in the linked view's own tests each drag is done, and the story below drags in it
@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_dragging_over_layers_or_steps_in_other_charts_of_sinks_filters_all(page, server):
    page.goto(f"{server}/sinks")
    page.locator(CELLS).nth(39).wait_for()
    for title, first, last, part in (
        ("Where the mass goes", "layer: 2;", "layer: 5;", "layers=2-5"),
        ("Which key is the sink?", "layer: 3;", "layer: 4;", "layers=3-4"),
    ):
        page.wait_for_timeout(2500)
        drag_along(page, title, first, last)
        page.wait_for_function(f"location.search.includes('{part}')", timeout=20_000)
    page.locator(".lv-told").filter(has_text="layers 3–4").wait_for()
    page.locator("[data-testid=stStatusWidget]").wait_for(state="hidden")  # a click within a rerun is lost
    page.get_by_text("over steps", exact=True).click()
    page.wait_for_timeout(2500)
    drag_along(page, "Which key is the sink?", "denoising step: 2;", "denoising step: 4;")
    page.wait_for_function("location.search.includes('steps=2-4')", timeout=20_000)
    page.locator(".lv-told").filter(has_text="layers 3–4 · steps 2–4").wait_for()
    assert page.errors == []


def asked(frame: bytes) -> list[bytes]:
    """Return a message to the server, none where it is the watch over the folder, which asks every five seconds."""
    return [] if BackMsg.FromString(frame).rerun_script.is_auto_rerun else [frame]


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_a_click_on_a_sentence_selects_what_it_speaks_of_without_leaving_the_page(page, server):
    page.goto(f"{server}/sinks?steps=1-6")
    link = page.locator(".answers a").first
    link.wait_for()
    layer, head = re.fullmatch(r"[Ll]ayer (\d+), head (\d+)", link.inner_text()).groups()
    assert f"cell={layer}.{head}" in link.get_attribute("href") and "steps=1-6" in link.get_attribute("href")
    page.evaluate("window.same = true")
    link.click()
    page.get_by_role("button", name=f"layer {layer}, head {head}").wait_for()
    page.wait_for_function(f"location.search.includes('cell={layer}.{head}')")
    page.locator(".lv-told").filter(has_text=f"layer {layer}, head {head}").wait_for()
    page.locator(".answers p").filter(has_text=f"At layer {layer}, head {head}, the heaviest key").wait_for()
    shoot(page, "answers")

    page.locator(".answers a").filter(has_text="the image").last.click()
    page.wait_for_function("location.search.includes('target=group%3Aimage')")
    page.locator(".answers p").first.filter(has_text="the image").wait_for()
    assert page.evaluate("window.same") and len(page.context.pages) == 1 and "steps=1-6" in page.url

    page.get_by_role("link", name="Overview").click()
    page.locator(".answers p").nth(1).get_by_role("link", name="demo-headwise").click()
    page.wait_for_function(
        "location.pathname == '/compare' && location.search.includes('with=demo-headwise')"
    )
    page.locator(".answers p").filter(
        has_text=f"At layer {layer}, head {head}, the attention mass"
    ).wait_for()
    assert page.evaluate("window.same") and page.errors == []


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_no_gesture_asks_the_server_until_the_hand_rests(page, server, folder):
    sent = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.extend(asked(frame))))
    page.goto(f"{server}/sinks")
    maps(page).first.wait_for()
    page.get_by_text("Which key is the sink?").wait_for()
    page.wait_for_timeout(2500)
    canvas, curve, profile = (page.locator(f"canvas[data-plot={p}]") for p in ("map", "curve", "profile"))
    before = len(sent)
    told_cells(page, canvas, [(layer, head) for layer in range(8) for head in range(5)])
    canvas.focus()
    page.keyboard.press("Space")
    page.locator(".lv-told").filter(has_text="step 3").wait_for()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(800)
    assert len(sent) == before

    page.keyboard.press("Escape")
    drag(page, along(profile, 0.2), along(profile, 0.8))
    drag(page, along(curve, 0.25), along(curve, 0.65))
    page.wait_for_function("location.search.includes('layers=1-6') && location.search.includes('steps=2-5')")
    page.get_by_role("button", name="All layers, heads, steps").wait_for()
    page.get_by_text("layers 1–6 · heads 0–4 · steps 2–5").first.wait_for()
    page.wait_for_timeout(1500)
    [(_, [value])] = told_cells(page, canvas, [(4, 2)]).items()
    with open_store(folder / "demo-baseline.h5") as store:
        expected = float(metrics.first_token_mean(store)[:, 2:6, 4, 2].mean())
    assert value == pytest.approx(expected, rel=1e-3)

    page.get_by_role("button", name="sigma").click()
    page.wait_for_function("location.search.includes('x=sigma')")
    page.mouse.dblclick(*place_of(canvas, 3, 3))
    page.wait_for_function("!location.search.includes('layers') && !location.search.includes('steps')")
    page.get_by_role("button", name="All layers, heads, steps").wait_for(state="detached")

    slider = page.locator("[data-testid=stSlider]").filter(has_text="Layers")
    slider.locator("[role=slider], input").first.press("ArrowRight")
    page.mouse.move(3, 3)  # what the sidebar chooses is chosen in the figure
    page.locator(".lv-told").filter(has_text="layers 1–7").wait_for()
    assert page.errors == []


def test_brush_follow_a_token_to_the_evidence_share_the_url_and_take_it_along(page, server, folder):
    page.goto(f"{server}/sinks")
    maps(page).first.wait_for()
    page.wait_for_timeout(1500)
    drag(page, place_of(maps(page).first, 2, 1), place_of(maps(page).first, 4, 3))
    page.get_by_role("button", name="All layers, heads, steps").wait_for()
    page.get_by_text("layers 2–4 · heads 1–3").first.wait_for()
    page.wait_for_timeout(1500)
    shoot(page, "sinks-brushed")
    assert "layers=2-4" in page.url and "heads=1-3" in page.url

    page.get_by_role("link", name="Tokens").click()
    apple = page.locator('[data-testid=stVegaLiteChart] path[aria-label*="text: apple"]').first
    apple.wait_for()
    page.wait_for_timeout(1500)
    apple.click(force=True)
    page.wait_for_function("location.search.includes('word%3Aapple')")
    shoot(page, "tokens")

    page.get_by_role("link", name="Evidence").click()
    cited = re.compile("gets .* of an image query's attention,")
    page.get_by_text(cited).wait_for()
    page.locator("[data-testid=stImage] img").nth(2).wait_for()
    page.wait_for_timeout(1500)
    shoot(page, "evidence")
    sentence = page.get_by_text(cited).inner_text()
    assert "word “apple” gets" in sentence

    fresh = page.context.browser.new_context(viewport={"width": 1280, "height": 1400}).new_page()
    fresh.goto(page.url)
    assert fresh.get_by_text(cited).inner_text() == sentence
    fresh.close()

    page.get_by_text("Take it along").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    cells = pd.read_csv(download.value.path())
    assert set(cells["layer"]) == {2, 3, 4} and set(cells["head"]) == {1, 2, 3}
    with page.expect_download() as download:
        page.get_by_role("button", name="Whole view as HTML").click()
    assert "<script" not in Path(download.value.path()).read_text(encoding="utf-8")

    page.get_by_role("link", name="Gates").click()
    page.get_by_text("always open").first.wait_for()
    maps(page).nth(1).wait_for()
    page.wait_for_timeout(1500)
    shoot(page, "gates")
    gates = told_cells(page, maps(page).first, [(3, 2)])
    with open_store(folder / "demo-headwise.h5") as store:
        streams = [metrics.gate_statistic(store, query=query) for query in ("image", "text")]
    assert gates[3, 2] == pytest.approx([float(each[:, :, 3, 2].mean()) for each in streams], rel=1e-3)
    assert page.errors == []


@pytest.mark.parametrize("page", ["light"], indirect=True)
@pytest.mark.parametrize(
    "names", [("sinks",), pytest.param(ALL_PAGES, marks=pytest.mark.long)], ids=["one", "all"]
)
def test_nothing_runs_out_of_its_box_on_a_phone_or_at_twice_the_size(page, server, names):
    for name in names:
        page.goto(f"{server}/{name}")
        page_boxes.settled(page)
        for width in (375, 640):  # 640: what 1280 pixels are when everything is shown at 200 %
            assert page_boxes.out_of_box(page, width) == [], (name, width)
    assert page.errors == []


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_a_run_that_comes_and_goes_is_shown_and_forgotten_without_a_reload(page, server, folder):
    page.goto(server)
    page_boxes.settled(page)
    card = page.get_by_text("later/newcomer", exact=True)
    assert not card.count()
    (folder / "later").mkdir()
    shutil.copy(folder / "demo-headwise.h5", folder / "later" / "newcomer.hdf5")
    card.first.wait_for()
    shutil.rmtree(folder / "later")
    card.first.wait_for(state="detached")
    page.get_by_text("demo-headwise", exact=True).first.wait_for()
    assert page.errors == []


def test_a_brushed_region_ranks_what_acts_there_and_a_kept_view_opens_again(page, server, folder):
    page.goto(f"{server}/maps?at=6")
    page.get_by_text("What acts here").wait_for()
    picture = page.locator("[data-testid=stVegaLiteChart] .mark-image").first
    picture.scroll_into_view_if_needed()
    page.wait_for_timeout(800)
    box = picture.bounding_box()  # 6 × 4 patches: from the middle of (1, 0) to that of (3, 2)
    across, down = box["width"] / 4, box["height"] / 6
    page.mouse.move(box["x"] + across * 0.5, box["y"] + down * 1.5)
    page.mouse.down()
    for part in (0.4, 0.7, 1.0):
        page.mouse.move(box["x"] + across * (0.5 + 2 * part), box["y"] + down * (1.5 + 2 * part))
    page.mouse.up()
    page.wait_for_function("/region_y=1-3.*region_x=0-2/.test(location.search)")
    page.get_by_text("rows 1–3, columns 0–2: 9 patches").wait_for()
    with open_store(folder / "demo-baseline.h5") as store:
        first = metrics.region_words(store, 0, metrics.Region(1, 3, 0, 2), steps=[6]).iloc[0]
    bars = page.locator("[data-testid=stVegaLiteChart]").filter(has_text=f"{first['text']} · ").last
    bars.locator("path[aria-roledescription=bar]").first.click()
    page.get_by_text(f"are of “{first['text']}”").wait_for()
    page.mouse.move(3, 3)  # no tooltip over the page
    page.wait_for_timeout(1200)
    shoot(page, "what-acts-here")
    assert page_boxes.out_of_box(page, 375) == []
    page.set_viewport_size({"width": 1280, "height": 1400})

    page.locator(".st-key-star button").first.click()
    page.get_by_role("textbox", name="Note").fill("here something looks")
    page.get_by_role("button", name="Keep this view").click()
    page.get_by_text("Kept: it is on the page Findings.").wait_for()
    (kept,) = findings_file.read(findings_file.beside(folder / "demo-baseline.h5"))
    assert "region_y=1-3" in kept.address and kept.note == "here something looks"

    page.get_by_role("link", name="Findings").click()
    page.get_by_text("here something looks").wait_for()
    page.locator("[data-testid=stImage] img").first.wait_for()
    page.wait_for_timeout(1200)
    shoot(page, "findings")
    page.get_by_text("Kept: it is on the page Findings.").wait_for(state="detached")
    # Vega leaves its tooltip behind, under a page without charts
    page.evaluate("document.querySelector('#vg-tooltip-element').remove()")
    assert page_boxes.out_of_box(page, 375) == []
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Open the view").click()
    again = opened.value
    again.get_by_text("rows 1–3, columns 0–2: 9 patches").wait_for(timeout=60_000)
    again.get_by_text(f"are of “{first['text']}”").wait_for()
    assert not page.errors
    findings_file.remove(findings_file.beside(folder / "demo-baseline.h5"), kept.id)
