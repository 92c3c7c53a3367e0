"""Every page opens with one to three sentences made from its numbers; a URL's choice is what they speak of."""

from __future__ import annotations

import h5py
import numpy as np
from making.pages import answers_of, said_first
from making.stores import make_store

from sd35h5.store.schema import GROUPS

PAGES = ("overview", "tokens", "maps", "gates", "compare", "evidence", "files", "sinks")


def test_every_page_opens_with_one_to_three_sentences_which_its_exports_hold(app, folder):
    test = app(folder)
    for page in PAGES:
        test = test.switch_page(f"views/{page}.py").run()
        assert not test.exception and 1 <= len(said_first(test)) <= 3, page
        assert test.session_state["answers"] == said_first(test)
        selects = [part["selects"] for parts in answers_of(test) for part in parts if part["link"]]
        assert page == "files" or selects, page
        assert all(one["link"] == bool(one["selects"]) for parts in answers_of(test) for one in parts)


def test_sinks_names_the_head_that_the_chosen_steps_and_layers_have_with_its_interval(app, tmp_path):
    sink = np.zeros((3, 2, 1))
    sink[0, 0], sink[2, 1] = 5.0, 4.0
    prompts = tuple(f"a {thing}" for thing in ("car", "cat", "dog", "sun", "hat", "pen"))
    path = make_store(
        tmp_path / "run.h5", samples=6, prompts=prompts, layers=3, heads=2, steps=2, branches=("cond",),
        every=1, sink=sink,
    )  # fmt: skip
    test = app(path, page="sinks", url={"layers": "1-2", "steps": "1"})
    said, told = said_first(test), answers_of(test)
    with h5py.File(path) as file:
        mass = file["sinks/mass_group"][:, 0, 0, GROUPS.index("clip_bos"), 1, 1:].astype(float)
    share = 100 * mass.mean(0)[1, 1]
    assert said[0].startswith(f"Layer 2, head 1 sends {share:.2g} % (95 % interval ")
    low, high = (float(one) for one in said[0].split("interval ")[1].split(" %")[0].split(" to "))
    assert low <= share <= high and "6 prompts)" in said[0] and told[0][0]["selects"] == {"cell": "2.1"}
    assert len(said) == 3 and "; most above chance is the start token (clip_bos), " in said[1]


def test_a_run_of_nothing_measured_says_so(app, tmp_path):
    path = make_store(tmp_path / "none.h5", samples=1, layers=2, heads=1, steps=2, nan="all")
    assert not said_first(app(path, page="sinks"))  # the panels say it
