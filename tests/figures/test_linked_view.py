"""The linked view in real Chromium, on a page of its own: what it tells equals the numbers that it was given, and what
each gesture does."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from making.browsing import IN_BROWSER, chromium
from making.linked_pages import along, drag, made_cube, number, place_of, told, values_told, write_page

from sd35h5 import metrics
from sd35h5.figures.linked_view import linked_figure
from sd35h5.figures.linked_view.linked_figure import Panel

pytestmark = IN_BROWSER
UNIFORM = 0.004


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        yield launched


@pytest.fixture
def opened(browser, tmp_path):
    """Open a linked view of these panels; returns the page, whose errors fail the test."""
    pages = []

    def open_view(*panels: Panel, width: int = 1200, scheme: str = "light", **more):
        page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(write_page(tmp_path / f"{len(pages)}.html", list(panels), **more).as_uri())
        page.locator("canvas[data-area], .lv-refused:visible").first.wait_for()
        pages.append(page)
        return page

    yield open_view
    for page in pages:
        assert page.errors == []
        page.close()


def maps(page):
    return page.locator("canvas[data-plot=map]")


def test_the_pointer_tells_every_cell_as_the_array_holds_it(opened):
    values = made_cube()
    page = opened(Panel("run", values, uniform=UNIFORM))
    canvas, mean = maps(page).first, values.mean("step")
    for layer in values["layer"].values.tolist():
        for head in values["head"].values.tolist():
            page.mouse.move(*place_of(canvas, layer, head))
            line, expected = told(page), float(mean.sel(layer=layer, head=head))
            assert line.startswith(f"layer {layer}, head {head} · ") and line.endswith("mean of steps 0–5")
            if np.isnan(expected):
                assert "not measured" in line
                continue
            assert values_told(line) == [pytest.approx(expected, rel=6e-4)]
            times = number(re.search(r"([\d.e-]+) × uniform", line)[1])
            assert times == pytest.approx(expected / UNIFORM, rel=6e-3)
    page.mouse.move(
        *place_of(canvas, 3, 1)
    )  # a layer that is not in the file: drawn as nothing, told as nothing
    assert "layer 3" not in told(page)
    assert "layer" in page.locator(".lv-tip").text_content()


def test_dragging_over_steps_layers_or_cells_filters_the_other_plots(opened):
    values = made_cube()
    page = opened(Panel("run", values))
    canvas, curve, profile = (
        maps(page).first,
        *(page.locator(f"canvas[data-plot={one}]") for one in ("curve", "profile")),
    )
    drag(page, along(curve, 0.21), along(curve, 0.79))
    page.mouse.move(*place_of(canvas, 4, 0))
    assert values_told(told(page)) == [
        pytest.approx(float(values.sel(layer=4, head=0, step=slice(1, 4)).mean()), rel=6e-4)
    ]
    assert "steps 1–4" in told(page)

    page.wait_for_function("() => told.length === 1")
    page.mouse.move(*along(profile, 0.02))
    page.mouse.down()
    page.mouse.move(*along(profile, 0.45), steps=5)
    page.wait_for_timeout(200)  # four times as long as a hand rests: but this one still holds the button
    assert page.evaluate("() => told.length") == 1
    page.mouse.up()
    page.wait_for_function("() => told.length === 2")
    page.mouse.move(*along(curve, 0.4))
    expected = float(values.sel(layer=slice(0, 2), step=2).mean())
    assert values_told(told(page).partition("mean")[2]) == [pytest.approx(expected, rel=6e-4)]

    drag(page, place_of(canvas, 2, 1), place_of(canvas, 5, 2))
    page.mouse.move(*along(profile, 0.75))
    assert told(page).startswith("layer 4 · ")
    expected = float(values.sel(layer=4, head=[1, 2], step=slice(1, 4)).mean())
    assert values_told(told(page)) == [pytest.approx(expected, rel=6e-4)]
    page.wait_for_function("() => told.length > 0 && told.at(-1).heads")
    assert page.evaluate("() => told.at(-1)") == {
        "pinned": None, "layers": [2, 5], "heads": [1, 2], "steps": [1, 4], "step": None, "x": "step", "zoom": None,
    }  # fmt: skip

    page.keyboard.press("Escape")  # the focus is where the last drag was
    page.wait_for_function("() => told.at(-1).layers === null && told.at(-1).steps === null")


def test_a_click_pins_a_second_one_unpins_and_a_double_click_clears(opened):
    values = made_cube()
    page = opened(Panel("run", values))
    canvas = maps(page).first
    page.mouse.click(*place_of(canvas, 4, 1))
    page.mouse.move(5, 5)
    assert told(page).startswith("layer 4, head 1 · ")
    page.wait_for_function("() => told.length === 1 && String(told[0].pinned) === '4,1'")
    page.mouse.move(*along(page.locator("canvas[data-plot=curve]"), 0.6))
    line = told(page)
    assert values_told(line.partition("layer 4, head 1")[2]) == [
        pytest.approx(float(values.sel(step=3, layer=4, head=1)), rel=6e-4)
    ]
    page.mouse.click(*place_of(canvas, 4, 1))
    page.wait_for_function("() => told.at(-1).pinned === null")
    page.mouse.click(*place_of(canvas, 0, 0))
    page.wait_for_function("() => told.at(-1).pinned !== null")
    page.mouse.dblclick(*place_of(canvas, 2, 2))
    page.wait_for_function("() => told.at(-1).pinned === null")
    assert len(page.evaluate("() => told")) == 4  # nothing was told while the hand was under way


def test_arrow_keys_walk_over_what_is_there_and_space_plays_the_steps(opened):
    values = made_cube()
    page = opened(Panel("run", values))
    maps(page).first.focus()
    for key, cell in (
        ("ArrowRight", "layer 0, head 0"), ("ArrowRight", "layer 1, head 0"), ("ArrowRight", "layer 2, head 0"),
        ("ArrowRight", "layer 4, head 0"), ("ArrowDown", "layer 4, head 1"), ("End", "layer 5, head 1"),
        ("PageDown", "layer 5, head 2"), ("ArrowDown", "layer 5, head 2"), ("Home", "layer 0, head 2"),
        ("ArrowUp", "layer 0, head 1"),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert told(page).startswith(cell), key
    page.keyboard.press("Enter")
    page.wait_for_function("() => told.length && String(told.at(-1).pinned) === '0,1'")
    page.keyboard.press("Space")
    for step in (0, 1, 2):
        page.wait_for_function(
            f"() => document.querySelector('.lv-told').textContent.endsWith('step {step}')"
        )
    page.keyboard.press("Space")
    line = told(page)
    step = int(line.rpartition(" ")[2])
    assert values_told(line) == [pytest.approx(float(values.sel(step=step, layer=0, head=1)), rel=6e-4)]
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_function(
        "() => String(told.at(-1).layers) === '0,1' && String(told.at(-1).heads) === '1,1'"
    )


def test_the_histogram_tells_what_a_plain_count_tells(opened):
    values = made_cube()
    page = opened(Panel("run", values))
    expected = metrics.head_counts(values.mean("step").to_dataframe("value").reset_index())
    histogram = page.locator("canvas[data-plot=histogram]")
    found = []
    for bin_ in range(len(expected)):
        page.mouse.move(*along(histogram, (bin_ + 0.5) / len(expected)))
        low, high, heads = re.match(r"from (\S+) to (\S+) · heads (\d+) of 15 ", told(page)).groups()
        assert [number(low), number(high)] == pytest.approx(
            expected.loc[bin_, ["low", "high"]].tolist(), rel=6e-3
        )
        found.append(int(heads))
    assert found == expected["heads"].tolist() and sum(found) == 14


def three(values, other) -> list[Panel]:
    return [
        Panel("first", values, uniform=UNIFORM),
        Panel("second", other, uniform=UNIFORM, color="#E69F00"),
        Panel("second − first", other - values, scale="differences", curves=False),
    ]


SCALES = {
    "values": linked_figure.value_scale("attention mass (0..1)"),
    "differences": linked_figure.difference_scale("difference"),
}


def test_panels_share_pointer_pinned_cell_and_zoom(opened):
    values, other = made_cube(), made_cube(seed=1)
    page = opened(*three(values, other), color_scales=SCALES)
    page.mouse.move(*place_of(maps(page).nth(1), 4, 2))
    expected = [float(one.mean("step").sel(layer=4, head=2)) for one in (values, other, other - values)]
    assert values_told(told(page)) == pytest.approx(expected, rel=1e-3)
    for name in ("first", "second", "second − first"):
        assert f"· {name} " in told(page)
    before = [maps(page).nth(place).screenshot() for place in range(3)]
    page.mouse.click(*place_of(maps(page).nth(2), 2, 1))
    page.mouse.move(5, 5)
    told(page)
    assert all(maps(page).nth(place).screenshot() != before[place] for place in range(3))
    drag(page, place_of(maps(page).nth(0), 1, 0), place_of(maps(page).nth(0), 2, 1))
    page.get_by_role("button", name="Zoom in").click()
    told(page)
    assert {maps(page).nth(place).get_attribute("data-window") for place in range(3)} == {"1 2 0 1"}
    page.get_by_role("button", name="Whole").click()
    told(page)
    assert {maps(page).nth(place).get_attribute("data-window") for place in range(3)} == {"0 5 0 2"}


def test_what_the_host_says_is_taken_over_but_not_its_echo(opened):
    page = opened(Panel("run", made_cube()))
    pin = "cell => { document.querySelector('canvas[data-plot=map]').blur(); return cell; }"
    canvas = maps(page).first
    page.mouse.click(*place_of(canvas, 4, 1))
    page.wait_for_function("() => told.length === 1")
    page.mouse.click(*place_of(canvas, 5, 0))
    page.wait_for_function("() => told.length === 2")
    page.mouse.move(5, 5)
    for told_before in (0, 1):  # late answers to both
        page.evaluate(f"() => view.update({{selection: told[{told_before}]}})")
        assert told(page).startswith("layer 5, head 0")
    page.evaluate("() => view.update({selection: {pinned: [2, 2], layers: [1, 4]}})")  # from the sidebar
    assert told(page).startswith("layer 2, head 2")
    page.wait_for_timeout(150)
    assert page.evaluate("() => told.length") == 2, pin


def test_panels_of_other_shape_are_refused_in_a_sentence(opened):
    page = opened(Panel("wide", made_cube()), Panel("narrow", made_cube(heads=(0, 1))))
    assert page.get_by_role("alert").inner_text() == (
        "narrow has 2 heads, wide 3, or others of them: they do not compare."
    )
    assert not page.locator(".lv-body").is_visible()


def test_nothing_chosen_that_was_measured_is_said(opened):
    values = made_cube(steps=(0, 4, 8))
    page = opened(Panel("run", values), selection={"steps": [1, 3]})
    page.mouse.move(*place_of(maps(page).first, 4, 1))
    line = told(page)
    assert "not measured" in line and line.endswith("no step")


def test_a_slice_of_one_layer_and_one_step_draws_by_its_true_index(opened):
    values = made_cube(layers=(5, 7), steps=(3,)).isel(layer=[0])
    page = opened(Panel("slice", values))
    page.mouse.move(*place_of(maps(page).first, 5, 1))
    line = told(page)
    assert line.startswith("layer 5, head 1") and line.endswith(" step 3")
    assert not page.get_by_role("button", name="Play").is_visible()


def test_names_of_files_are_text(opened):
    page = opened(*(Panel(f"<img src=x onerror=alert({n})>", made_cube(seed=n)) for n in (1, 2)))
    page.mouse.move(*place_of(maps(page).first, 2, 1))
    assert "<img src=x onerror=alert(1)>" in told(page)
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("width", [375, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_many_runs_are_small_multiples_that_fit_the_page(opened, width, scheme):
    cubes = [made_cube(seed=n) for n in range(5)]
    page = opened(*(Panel(f"run {n}", cube) for n, cube in enumerate(cubes)), width=width, scheme=scheme)
    boxes = [maps(page).nth(place).bounding_box() for place in range(5)]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert len({box["x"] for box in boxes}) == (1 if width == 375 else 4)
    assert all(box["width"] >= 200 for box in boxes)
    colours = "name => getComputedStyle(document.querySelector('.lv')).getPropertyValue(name)"
    ground, ink = (page.evaluate(colours, name) for name in ("--lv-ground", "--lv-ink"))
    assert (ground < ink) == (scheme == "dark")


def test_the_plots_are_told_to_a_screen_reader_and_show_where_the_focus_is(opened):
    page = opened(Panel("run", made_cube()))
    for _ in range(5):  # play, three x axes, the heatmap
        page.keyboard.press("Tab")
    focused = page.evaluate(
        "() => ({plot: document.activeElement.dataset.plot, role: document.activeElement.getAttribute('role'),"
        " label: document.activeElement.getAttribute('aria-label'),"
        " ring: getComputedStyle(document.activeElement).outlineWidth})"
    )
    assert focused["plot"] == "map" and focused["role"] == "application" and focused["ring"] == "3px"
    assert focused["label"].startswith("attention mass (0..1), 5 layers by 3 heads. Arrow keys walk")
    status = page.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"


def test_a_table_gives_the_same_numbers_as_the_array():
    values = made_cube()
    table = values.to_dataframe("value").reset_index()[["step", "layer", "head", "value"]]
    facts, numbers = linked_figure.payload([Panel("run", table)], "mass")
    assert facts["panels"][0]["layers"] == [0, 1, 2, 4, 5] and facts["panels"][0]["sigmas"] is None
    np.testing.assert_array_equal(np.frombuffer(numbers, "<f4").reshape(values.shape), values.values)
    again, plain = linked_figure.read_packed(linked_figure.packed(facts, numbers))
    assert again["panels"][0] == facts["panels"][0] and plain.tobytes() == numbers


def test_marks_say_what_they_mean(opened):
    marks = pd.DataFrame({"layer": [4], "head": [1], "sign": ["✕"], "means": ["a dead head"]})
    page = opened(Panel("run", made_cube(), marks=marks))
    page.mouse.move(*place_of(maps(page).first, 4, 1))
    assert "a dead head" in told(page)
    page.mouse.move(*place_of(maps(page).first, 4, 0))
    assert "a dead head" not in told(page)


@pytest.mark.parametrize("width", [375, 1200])
def test_labels_of_an_axis_stay_apart_over_many_decades(opened, width):
    cube = made_cube()
    spread = cube * 10.0 ** -np.linspace(0, 14, cube.sizes["layer"])[None, :, None]
    page = opened(Panel("wide", spread.astype(np.float32)), Panel("again", cube), width=width)
    written = page.evaluate(
        """async () => {
            const found = [], plain = CanvasRenderingContext2D.prototype.fillText;
            CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
                const half = this.measureText(text).width / 2;
                if (this.textAlign === "center" && /^[\\d.e−-]+$/.test(text))
                    found.push([this.canvas.closest("figure")?.className ?? "", y, x - half, x + half]);
                return plain.call(this, text, x, y, ...rest);
            };
            view.update({selection: {...options.selection, layers: [0, 4]}});
            await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
            return found;
        }"""
    )
    labels = pd.DataFrame(written, columns=["plot", "y", "left", "right"])
    own = labels[labels["plot"].str.contains("lv-histogram")].drop_duplicates().sort_values("left")
    assert len(own) >= 2 and (own["left"].to_numpy()[1:] > own["right"].to_numpy()[:-1]).all()
