"""A view's URL restores it, and what a URL asks for in vain gets a sentence and the default."""

from __future__ import annotations

import re

import pytest
from making.pages import linked_of, text_of
from making.stores import make_store

from dashboard.choosing import address
from sd35h5 import metrics

LAYERS, HEADS, STEPS = 3, 2, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("address")
    for name in ("demo-baseline", "demo-headwise", "third, with a comma"):
        make_store(folder / f"{name}.h5", layers=LAYERS, heads=HEADS, steps=STEPS, samples=3)
    return folder


def query_of(test) -> dict[str, list[str]]:
    return {
        name: [values] if isinstance(values, str) else values for name, values in test.query_params.items()
    }


def test_a_url_restores_every_choice_and_is_written_back(app, folder):
    url = {
        "run": "demo-headwise", "with": ["demo-baseline", "third, with a comma"], "samples": "0,2", "sample": "2",
        "branch": "uncond", "target": "group:t5_pad", "metric": "text_mass_fraction", "layers": "1-2", "heads": "1",
        "steps": "0-2", "cell": "2.1", "x": "sigma",
    }  # fmt: skip
    test = app(folder, page="sinks", url=url)
    view = test.session_state["view"]
    assert view.run.name == "demo-headwise" and sorted(run.name for run in view.others) == url["with"]
    assert (view.samples, view.sample, view.branch) == ((0, 2), 2, "uncond")
    assert (view.target, view.metric) == (metrics.Target("group", "t5_pad"), "text_mass_fraction")
    assert (view.layers, view.heads, view.steps, view.cell) == ((1, 2), (1,), (0, 1, 2), (2, 1))
    assert test.session_state["x"] == "sigma" == linked_of(test)[0].chosen["x"]
    written = query_of(test)
    assert written == {name: value if isinstance(value, list) else [value] for name, value in url.items()}
    again = app(folder, page="sinks", url=written)
    assert again.session_state["view"] == view


def test_choices_of_the_page_appear_in_the_url(app, folder):
    test = app(folder, page="sinks")
    assert set(query_of(test)) == {"with"}
    test.sidebar.slider(key=f"layers-{LAYERS}").set_value((1, 2)).run()
    test.sidebar.selectbox(key="target-demo-baseline-cond").set_value("word “apple”").run()
    assert query_of(test)["layers"] == ["1-2"] and query_of(test)["target"] == ["word:apple"]
    test.sidebar.slider(key=f"layers-{LAYERS}").set_value((0, 2)).run()
    assert "layers" not in query_of(test)


def test_no_run_beside_it_is_a_choice_that_the_url_keeps(app, folder):
    test = app(folder, page="sinks", url={"with": "-"})
    assert test.session_state["view"].others == () and query_of(test)["with"] == ["-"]


@pytest.mark.parametrize(
    "url",
    [
        {"run": "../../etc/passwd", "with": "nobody", "samples": "0,99", "sample": "x", "branch": "left",
         "target": "group:nothing", "metric": "__class__", "layers": "2-1", "heads": "٣", "steps": "-1", "cell": "9.9",
         "x": "🙂" * 3000},
        {"target": "token:99999999999999999999", "layers": "1-2-3", "cell": "1"},
        {"target": "token:²", "cell": "<script>"},
        {"target": ""},
    ],
)  # fmt: skip
def test_bad_values_show_the_defaults_and_are_told_by_their_names(app, folder, url):
    test = app(folder, page="sinks", url=url)
    told = "\n".join(str(caption.value) for caption in test.sidebar.caption)
    assert test.session_state["view"].run.name == "demo-baseline"
    names = re.search("asked for another (.*), which this run does not have", told)[1].split(", ")
    assert sorted(names) == sorted(set(url) - {"x"})  # a page's own choices fall back quietly
    found = query_of(test)
    assert not [name for name, value in url.items() if value in found.get(name, [])]
    assert "Traceback" not in text_of(test)


def test_unknown_names_in_the_url_are_ignored(app, folder):
    app(folder, page="sinks", url={"utm_source": "mail", "": "x"})


@pytest.mark.parametrize(
    "target", [metrics.FIRST_TOKEN, metrics.Target("word", "a:b, c"), metrics.Target("group", "image")]
)
def test_a_target_survives_being_text(target):
    assert address.target(address.target_text(target)) == target


@pytest.mark.parametrize(
    ("page", "url"),
    [
        ("maps", {"word": "2", "layer": "1", "at": "0", "opacity": "35", "smooth": "0", "stretch": "1"}),
        ("maps", {"cell": "2.1", "layer": "mean"}),
        (
            "sinks",
            {"tokens": "words only", "top": "top 48", "log": "1", "keys": "over steps", "x": "timestep"},
        ),
        ("tokens", {"log": "0", "top": "top 12"}),
        ("evidence", {"cell": "1.0", "at": "1"}),
    ],
)
def test_the_choices_of_a_page_are_in_its_url_too(app, folder, page, url):
    test = app(folder, page=page, url=url)
    found = query_of(test)
    assert {name: found.get(name) for name in url} == {name: [value] for name, value in url.items()}
    assert not test.info and not test.warning


def test_the_map_s_url_is_what_the_widgets_show(app, folder):
    test = app(folder, page="maps", url={"word": "2", "layer": "1", "at": "0", "opacity": "35"})
    shown = {box.label: box.value for box in test.main.selectbox}
    assert shown["Layer"] == 1
    assert [slider.value for slider in test.select_slider] == [35, 0]


def test_a_link_finds_its_run_where_a_folder_above_or_below_is_looked_at():
    read = address.run_of(["exp1/run", "exp2/run", "mine"])
    assert [read(text) for text in ("exp2/run", "old/exp2/run", "mine", "exp3/mine")] == [
        "exp2/run", "exp2/run", "mine", "mine",
    ]  # fmt: skip
    assert read("run") is None and read("xmine") is None
    both = address.several_of(["exp1/run", "mine"], "\n", address.run_of(["exp1/run", "mine"]))
    assert both("run\nmine") == ["exp1/run", "mine"] and both("-") == [] and both("mine\nyours") is None
