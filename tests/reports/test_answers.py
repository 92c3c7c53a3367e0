"""The sentences that pages open with say what a plain look at the file's arrays says, honestly and in few words."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from making.stores import make_store

from sd35h5 import compare, metrics, open_store
from sd35h5.comparing import effects
from sd35h5.metrics import gate_statistics, heaviest_keys
from sd35h5.metrics.standing_out import held_by_a_tenth, leading
from sd35h5.metrics.targets import FIRST_TOKEN, Target
from sd35h5.reports import view_page
from sd35h5.reports.answers import (
    cell_answers,
    gate_answers,
    map_answers,
    pair_answers,
    run_answers,
    sink_answers,
    token_answers,
)
from sd35h5.reports.answers.sentence import percent, text_of
from sd35h5.store.schema import GROUPS

LAYERS, HEADS, STEPS, PROMPTS = 3, 2, 2, 7
SINK = (2, 1)


def planted(height: float, cell: tuple[int, int] = SINK) -> np.ndarray:
    """Logits of the start token that make one head its sink."""
    sink = np.zeros((LAYERS, HEADS, 1))
    sink[cell] = height
    return sink


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run with one sink of the first token, one that has less of it, and one without any."""
    folder = tmp_path_factory.mktemp("answers")
    prompts = tuple(f"a {thing}" for thing in ("car", "cat", "dog", "sun", "hat", "pen", "cup"))
    shape = {"samples": PROMPTS, "prompts": prompts, "layers": LAYERS, "heads": HEADS, "steps": STEPS, "every": 1,
             "branches": ("cond",), "height": 64, "width": 48}  # fmt: skip
    make_store(folder / "planted.h5", sink=planted(4.0), **shape)
    make_store(folder / "less.h5", sink=planted(2.0), gates=True, seed=1, **shape)
    make_store(folder / "even.h5", sink=0.0, seed=2, **shape)
    return folder


def first_token(path: Path) -> tuple[np.ndarray, float]:
    """Its mass as the file has it, (sample, step, layer, head), and under uniform attention."""
    with h5py.File(path) as file:
        dims = [dim[0].name.rsplit("/", 1)[-1] for dim in file["sinks/mass_group"].dims]
        assert dims == ["sample", "branch", "query", "group", "step", "layer", "head"]
        mass = file["sinks/mass_group"][:, 0, 0, GROUPS.index("clip_bos")].astype(float)
        pixels = len(file["pixel_y"]) * len(file["pixel_x"])
        return mass, 1 / (len(file["token"]) + pixels // 256)


def said(path: Path, spreads: dict | None = None):
    with open_store(path) as store:
        table = metrics.by_layer_head(metrics.first_token_mean(store))
    return sink_answers.heads(table, "first_token_mean", FIRST_TOKEN, first_token(path)[1], spreads)


def numbers(text: str) -> list[float]:
    return [float(one.replace(",", "")) for one in re.findall(r"\d[\d,]*\.?\d*(?= ×| %)", text)]


def test_a_planted_sink_is_named_with_its_share_and_nothing_above_what_is_left(folder):
    mass, uniform = first_token(folder / "planted.h5")
    cells = mass.mean((0, 1))
    rest = np.sort(cells.ravel())[-2]
    found = said(folder / "planted.h5")
    assert text_of(found).startswith("Layer 2, head 1 sends ") and found[0].selects == {"cell": "2.1"}
    share, times, bound = numbers(text_of(found))
    assert share == pytest.approx(100 * cells[SINK], rel=0.05)
    assert times == pytest.approx(cells[SINK] / uniform, rel=0.05)
    assert 100 * rest <= bound <= 110 * rest
    assert "no other head exceeds" in text_of(found) and "interval" not in text_of(found)


def test_without_a_sink_the_sentence_says_that_none_stands_out(folder):
    mass, uniform = first_token(folder / "even.h5")
    cells = mass.mean((0, 1))
    found = said(folder / "even.h5")
    most = np.unravel_index(cells.argmax(), cells.shape)
    assert text_of(found).startswith(
        "No head stands out as a sink: the most that one sends to the first token is "
    )
    assert found[-2].selects == {"cell": f"{most[0]}.{most[1]}"}
    assert numbers(text_of(found)) == pytest.approx([100 * cells.max(), cells.max() / uniform], rel=0.05)


def test_many_sinks_are_counted_in_place_of_named():
    table = pd.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], "value": [0.5, 0.49, 0.4, 0.002]})
    text = text_of(sink_answers.heads(table, "first_token_mean", uniform=0.01))
    assert text.startswith("Layer 0, head 0, layer 0, head 1 and layer 1, head 0 send 50 %, 49 % and 40 %")
    every = text_of(
        sink_answers.heads(table.assign(value=[0.5, 0.4, 0.3, 0.2]), "first_token_mean", uniform=0.01)
    )
    assert every.startswith(
        "4 of 4 heads send the first token more than 10 × uniform; none stands out: the most is 50 %"
    )


def test_layers_that_did_not_run_are_never_named_and_one_sample_has_no_interval(tmp_path):
    path = make_store(
        tmp_path / "some.h5", samples=1, layers=LAYERS, heads=HEADS, steps=STEPS, nan="some", sink=0.0
    )
    mass, _ = first_token(path)
    assert np.isnan(mass[:, :, 0]).all() and np.isfinite(mass[:, 0, 1:]).all()
    found = said(path)
    cells = np.nanmean(mass[:, :, 1:], (0, 1))
    layer, head = np.unravel_index(cells.argmax(), cells.shape)
    assert found[-2].text == f"layer {layer + 1}, head {head}" and "interval" not in text_of(found)
    nothing = pd.DataFrame({"layer": [0, 1], "head": [0, 0], "value": [np.nan, np.nan]})
    assert "Nothing of this was measured" in text_of(sink_answers.heads(nothing, "first_token_mean"))
    nowhere = sink_answers.heads(nothing.assign(value=0.0), "first_token_mean", Target("word", "cat"))
    assert text_of(nowhere) == "No head sends anything to the word “cat”."


def test_what_stands_out_is_at_least_twice_all_others():
    random = np.random.default_rng(0)
    for size in (1, 2, 5, 40):
        for spread in (0.1, 1.0, 3.0):
            values = np.exp(random.normal(0, spread, size))
            values[random.random(size) < 0.2] = np.nan
            found, there = leading(values), np.sort(values[np.isfinite(values)])[::-1]
            if not there.size:
                assert found is None
                continue
            count = len(found.places)
            assert list(values[list(found.places)]) == list(found.values) == there[:count].tolist()
            assert found.count == there.size and (
                np.isnan(found.rest) if count == there.size else found.rest == there[count]
            )
            cuts = [cut for cut in (1, 2, 3) if cut < there.size and there[cut - 1] >= 2 * there[cut]]
            assert found.stands_out == bool(cuts) and (count in cuts if cuts else count == 1)


@pytest.mark.parametrize(
    ("share", "told"), [(0.076, "7.6 %"), (0.8349, "83 %"), (0.00021, "0.021 %"), (1, "100 %"), (0, "0 %")]
)
def test_percents_have_two_digits(share, told):
    assert percent(share) == told


def test_a_bound_in_percent_is_never_below_its_number():
    for value in np.random.default_rng(1).uniform(0, 1, 200) ** 4:
        assert value * 100 <= numbers(percent(value, up=True))[0] * (1 + 1e-9)


def test_the_kind_of_the_heaviest_key_and_where_the_mass_goes_equal_a_plain_count(folder):
    path = folder / "planted.h5"
    with open_store(path) as store:
        shares = heaviest_keys.kind_shares(heaviest_keys.top_keys(store))
        mass = metrics.mean_group_mass(store, "cond", "image", range(PROMPTS)).mean(["step", "layer", "head"])
    with h5py.File(path) as file:
        stream, index = (file[f"topk/top_{name}"][:, 0, 0, ..., 0] for name in ("stream", "index"))
        groups = file["sinks/mass_group"][:, 0, 0].astype(float).mean((0, 2, 3, 4))
    starts = ((stream == 1) & (index == 0)).mean()
    found = sink_answers.kinds(shares)
    share = shares.set_index("kind")["share"]
    assert share["clip_bos"] == pytest.approx(starts)
    assert numbers(text_of(found))[0] == pytest.approx(100 * share.max(), rel=0.05)
    links = {part.selects["target"] for part in found if part.is_link}
    assert links <= {"token:0", *(f"group:{name}" for name in GROUPS)}
    told = sink_answers.groups({str(name): float(each) for name, each in mass.to_series().items()})
    text = {name: each for name, each in zip(GROUPS, groups, strict=True) if name != "image"}
    of_image = groups[GROUPS.index("image")]
    expected = [100 * of_image, 100 * sum(text.values()), 100 * max(text.values())]
    assert numbers(text_of(told)) == pytest.approx(expected, rel=0.05)
    heaviest = max(text, key=text.get)
    assert told[-2].selects == {"target": "token:0" if heaviest == "clip_bos" else f"group:{heaviest}"}


def test_a_kind_that_is_heaviest_no_more_often_than_chance_is_told_so():
    even = pd.DataFrame({"kind": ["inner", "t5_pad"], "share": [0.6, 0.4], "chance": [0.62, 0.38]})
    assert "not more than chance gives" in text_of(sink_answers.kinds(even))
    assert sink_answers.kinds(even.assign(share=0.0)) is None


def pair_change(one: Path, other: Path) -> tuple[str, np.ndarray]:
    """The sentence, and each prompt's difference by a plain look at the files."""
    with open_store(one) as first, open_store(other) as second:
        pairing = compare.pair(first, second)
        sides = compare.paired_values(first, second, pairing)
        row = effects.overall_effect(compare.difference(*sides), list(pairing.pairs["prompt_id"]))
    plain = [first_token(path)[0].mean((1, 2, 3)) for path in (one, other)]
    told = (row["mean_difference"], row["low"], row["high"], row["p"])
    made = pair_answers.Change(
        one.stem, other.stem, "first_token_mean", plain[0].mean(), plain[1].mean(), *told, PROMPTS, PROMPTS
    )
    return text_of(pair_answers.change(made)), plain[1] - plain[0]


def test_a_planted_difference_falls_with_an_interval_that_holds_it(folder):
    text, differences = pair_change(folder / "planted.h5", folder / "less.h5")
    assert (differences < 0).all() and ", a fall that holds across prompts: " in text
    low, high = re.search(r"interval (\S+) to (\S+),", text).groups()
    low, high = (float(each.replace("−", "-")) for each in (low, high))
    assert low <= differences.mean() <= high < 0 and low == pytest.approx(
        differences.mean(), abs=4 * differences.std()
    )


def test_an_interval_that_covers_zero_shows_no_difference(folder):
    text, differences = pair_change(folder / "even.h5", folder / "even.h5")
    assert not differences.any() and "no difference that these prompts show" in text and "covers 0" in text
    few = pair_answers.Change("a", "b", "first_token_mean", 0.1, 0.2, 0.1, *[float("nan")] * 3, 2, 2)
    assert "with fewer than 6 prompts no interval" in text_of(pair_answers.change(few))


def test_the_head_that_changed_most_is_the_planted_one(folder):
    paths = folder / "planted.h5", folder / "less.h5"
    before, after = (first_token(path)[0].mean((0, 1)) for path in paths)
    rows = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    cells = pd.DataFrame(rows, columns=["layer", "head"]).assign(
        reference_mean=before.ravel(),
        other_mean=after.ravel(),
        mean_difference=(after - before).ravel(),
        q=0.5,
    )
    none = pair_answers.changed_heads(cells)
    assert text_of(none).startswith("No single one of 6 heads survives")
    assert [part.selects for part in none if part.is_link] == [{"cell": "2.1"}]
    cells.loc[[rows.index(SINK), 0], "q"] = 0.01
    signs = np.sign(cells.loc[[rows.index(SINK), 0], "mean_difference"])
    assert f"{(signs < 0).sum()} fall" in text_of(pair_answers.changed_heads(cells))
    assert "None of 6 heads differs at all" in text_of(
        pair_answers.changed_heads(cells.assign(mean_difference=0.0))
    )


def test_gates_are_told_as_their_arrays_say(folder):
    with open_store(folder / "less.h5") as store:
        heads = gate_statistics.gate_heads(store)
    with h5py.File(folder / "less.h5") as file:
        mean = file["gates/mean"][:, 0, 0].astype(float).mean((0, 1))
    found = gate_answers.openness("less", heads)
    closed, opened = (np.unravel_index(which(mean), mean.shape) for which in (np.argmin, np.argmax))
    assert [part.selects["cell"] for part in found if part.is_link] == [
        f"{a}.{b}" for a, b in (closed, opened)
    ]
    assert f"is {mean.mean():.3g};" in text_of(found)
    told = gate_answers.dead_and_open(heads.assign(state=["dead", *["varying"] * 5]))
    assert text_of(told).startswith(
        "Of 6 heads on image queries 1 is dead (layer 0, head 0) and none are always open"
    )
    shares = pd.DataFrame({"kind": ["clip_bos", "inner"], "mass": [0.7, 0.3], "added": [0.2, 0.8]})
    passing = text_of(gate_answers.passing("less", shares))
    assert (
        "the start token (clip_bos) holds 70 % of the heaviest keys' mass and 20 % of what they add"
        in passing
    )


def test_tokens_groups_and_words_are_told_as_the_arrays_say(folder):
    path = folder / "planted.h5"
    with open_store(path) as store:
        masses = metrics.token_mass(store, 1)
        words = metrics.with_words(store.tokens(1, "cond"), "a cat")["word_text"]
    with h5py.File(path) as file:
        plain = file["sinks/mass_image"][1, 0].astype(float).mean((0, 1, 2))
    table = masses.assign(word_text=words.to_numpy())
    found = token_answers.heaviest_tokens(table, None, by_word=False)
    assert plain.argmax() == 0 and found[0].selects == {"target": "token:0"}
    assert numbers(text_of(found))[0] == pytest.approx(100 * plain[0], rel=0.05)
    group = token_answers.heaviest_group(table)
    assert numbers(text_of(group))[0] == pytest.approx(100 * plain.sum(), rel=0.05)
    sums = {word: plain[words == word].sum() for word in ("a", "cat")}
    told = token_answers.heaviest_word(table)
    assert told[1].selects == {"target": f"word:{max(sums, key=sums.get)}"}
    assert numbers(text_of(told)) == pytest.approx(
        [100 * max(sums.values()), 100 * min(sums.values())], rel=0.05
    )


def test_maps_are_told_as_their_cells_say():
    values = np.random.default_rng(0).uniform(0, 0.01, (3, 4, 5, 8))
    values[:, 2] *= 3
    values[1] *= 2
    values[:, 3] = np.nan  # a layer whose maps were not captured
    maps = xr.DataArray(
        values, dims=("map_step", "layer", "y", "x"), coords={"map_step": [0, 4, 8], "layer": range(4)}
    )
    found = map_answers.layers(maps, 4, "“cat”")
    assert [part.selects["layer"] for part in found if part.is_link] == [
        "2",
        str(values[1, :3].mean((1, 2)).argmin()),
    ]
    steps = map_answers.steps(maps.sel(layer=2))
    assert steps[1].selects == {"at": "4"}
    cells = np.sort(values[1, 2].ravel())[::-1]
    assert held_by_a_tenth(values[1, 2]) == (pytest.approx(cells[:4].sum() / cells.sum()), 4 / 40)
    assert "nearly even" in text_of(map_answers.concentration(np.ones((10, 10))))
    assert map_answers.concentration(np.zeros((2, 2))) is None


def test_a_cell_is_told_with_its_steps_and_its_rank(folder):
    mass, uniform = first_token(folder / "planted.h5")
    own = mass[0, :, 2, 1]
    found = cell_answers.mass(SINK, dict(enumerate(own)), FIRST_TOKEN, uniform)
    assert found[2].selects == {"at": str(own.argmax())}
    assert numbers(text_of(found))[0] == pytest.approx(100 * own.mean(), rel=0.05)
    table = pd.DataFrame({"layer": [0, 2], "head": [0, 1], "value": [0.1, 0.3]})
    assert text_of(cell_answers.rank(SINK, table)) == "No other of 2 heads has more in this sample."
    assert "1 of 2 heads has more" in text_of(cell_answers.rank((0, 0), table))


def test_runs_that_are_not_complete_and_that_do_not_pair_are_told():
    counts = [run_answers.Counts("a", 2, 2, 1, "none"), run_answers.Counts("b", 1, 4, 1, "not told")]
    assert text_of(run_answers.unfinished(counts)) == "Not complete: b (1 of 4 samples)."
    assert run_answers.unfinished(counts[:1]) is None
    text = text_of(run_answers.beside("a", [run_answers.Beside("b", (), 0)]))
    assert "differs from a in nothing that is known" in text and "pairs in no sample" in text


def test_the_exported_page_opens_with_the_sentences_as_text():
    page = view_page.page("Sinks", "run", [], ["Layer 1 <script>", "more"])
    assert page.index("Layer 1 &lt;script&gt;") < page.index("<p>run</p>") and "<script>" not in page
