"""`compare` from the command line: the report, its sentences and tables, what it refuses, and allowed mismatches."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from making.stores import PROMPTS, make_store

from sd35h5 import __main__ as commands
from sd35h5 import compare, metrics, open_store
from sd35h5.comparing import comparison
from sd35h5.comparing.comparison import Question
from sd35h5.errors import StoreError
from sd35h5.reports import comparison_page
from sd35h5.reports.comparison_folder import compare_runs
from sd35h5.reports.findings import findings_file, kept_views
from sd35h5.store.score_joining import join_scores

MANY = tuple(
    f"a {color} {thing}" for color in ("red", "blue", "green") for thing in ("car", "cat", "<b>dog</b>")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A baseline, a gated run with a much smaller sink, and one of other lengths; seven prompts."""
    folder = tmp_path_factory.mktemp("runs")
    make_store(folder / "base.h5", samples=7, prompts=MANY, steps=2, sink=4.0, seed=1)
    make_store(folder / "gated.h5", samples=7, prompts=MANY, steps=2, sink=1.0, gates=True, seed=2)
    make_store(folder / "longer.h5", samples=2, prompts=MANY, steps=3, sink=4.0)
    with open_store(folder / "gated.h5") as store:
        address = kept_views.address("sinks", [("run", "gated")])
        kept = kept_views.finding(
            None, "a <i>dark</i> head", "Sinks", address, "", "gated.h5", store.samples, 0
        )
    findings_file.add(findings_file.beside(folder / "gated.h5"), kept)
    return folder


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    """The folder of a report from the command line, and the page."""
    out = tmp_path_factory.mktemp("out")
    line = ["compare", folder / "base.h5", folder / "gated.h5", "--out_dir", out, "--resamples", "199"]
    assert commands.main(list(map(str, line))) == 0
    return out, (out / "report.html").read_text(encoding="utf-8")


def test_the_report_is_one_file_with_every_figure_in_it(report):
    out, page = report
    pictures = sorted(out.glob("*.png"))
    assert len(pictures) == 6
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "<script" not in page and not re.search(r'(?:src|href)="(?!data:)', page)


def test_the_report_holds_what_was_kept_of_its_runs(report):
    assert "<h1>Findings</h1>" in report[1] and "a &lt;i&gt;dark&lt;/i&gt; head" in report[1]
    assert "The view: <code>sinks?run=gated</code>" in report[1]


def test_the_pictures_of_each_pair_are_compared_beside_the_mass_that_was_altered(report, folder, tmp_path):
    table = pd.read_csv(report[0] / "images.csv")
    assert table["run"].tolist() == ["gated"] * 7 and table["altered_mass"].isna().all()
    with open_store(folder / "base.h5") as base, open_store(folder / "gated.h5") as gated:
        first, second = base.image(6) / 255, gated.image(6) / 255
    assert table["rms"].iloc[6] == pytest.approx(np.sqrt(np.mean((first - second) ** 2)))
    assert table["ssim"].between(-0.1, 0.1).all()  # noise beside noise
    masked = make_store(
        tmp_path / "masked.h5", samples=7, prompts=MANY, steps=2, intervention="mask:clip_bos"
    )
    compare_runs([folder / "base.h5", masked], tmp_path / "out", Question(resamples=100))
    assert "mask:clip_bos" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_sentences_hold_the_numbers_of_the_tables(report, folder):
    out, page = report
    row = pd.read_csv(out / "overall.csv").set_index("measure").loc["first_token_mean"]
    with open_store(folder / "base.h5") as base, open_store(folder / "gated.h5") as gated:
        means = [float(metrics.first_token_mean(store).mean()) for store in (base, gated)]
    assert [row["reference_mean"], row["other_mean"]] == pytest.approx(means)
    assert row["mean_difference"] == pytest.approx(means[1] - means[0])
    assert f"{means[0]:.3g} in base and {means[1]:.3g} in gated" in page
    assert "a fall that holds across prompts" in page
    assert f"p = {2 / 2**7:.3g}" in page
    assert "Of 6 heads, 6 fall and 0 rise" in page


def test_cells_are_the_differences_of_the_heads(report, folder):
    cells = pd.read_csv(report[0] / "cells.csv").set_index(["layer", "head"])
    with open_store(folder / "base.h5") as base, open_store(folder / "gated.h5") as gated:
        change = metrics.first_token_mean(gated).mean(["sample", "step"]) - metrics.first_token_mean(
            base
        ).mean(["sample", "step"])
    for (layer, head), row in cells.iterrows():
        assert row["mean_difference"] == pytest.approx(float(change[layer, head]), rel=1e-6)
        assert row["other_mean"] - row["reference_mean"] == pytest.approx(row["mean_difference"], rel=1e-5)


def test_every_measure_of_the_default_tiers_is_in_the_table_and_the_page_says_what_others_need(report):
    table = pd.read_csv(report[0] / "overall.csv")
    asking = {"entropy_all", "patch_top", "patch_gini", "border_share"}
    assert set(table["measure"]) == {n for n in comparison.MEASURES if not n.startswith("attn2")} - asking
    assert (
        "Not computed (entropy_all, patch_top, patch_gini, border_share): capture it with --atlas."
        in report[1]
    )
    assert np.isfinite(table["q"]).all()


def test_joined_scores_have_their_change_and_their_correlation_with_the_metric(folder, tmp_path):
    runs, scores = [], {"base": [5, 4, 3, 3, 1, 1, 0], "gated": [6, 6, 4, 3, 2, 2, ""]}
    for name, values in scores.items():
        runs.append(shutil.copy(folder / f"{name}.h5", tmp_path / f"{name}.h5"))
        table = tmp_path / f"{name}.csv"
        table.write_text("\n".join(["sample_id,clip", *(f"{i:06d},{v}" for i, v in enumerate(values))]))
        join_scores(runs[-1], table)
    compare_runs(runs, tmp_path / "out", Question(resamples=199))
    found = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("run")
    first, second = (
        np.array([np.nan if v == "" else v for v in values], float) for values in scores.values()
    )
    change = (second - first)[:6]
    assert found.loc["gated", "pairs"] == 6 and np.isnan(found.loc["base", "pairs"])
    assert found.loc["gated", "mean_difference"] == pytest.approx(change.mean())
    assert found.loc["gated", "effect"] == pytest.approx(change.mean() / change.std(ddof=1))
    assert found.loc["gated", "reference_mean"] == pytest.approx(first[:6].mean())
    with open_store(folder / "base.h5") as store:
        mass = metrics.first_token_mean(store).mean(["step", "layer", "head"]).values
    assert found.loc["base", "pearson"] == pytest.approx(np.corrcoef(mass, first)[0, 1], rel=1e-5)
    assert found["samples"].to_dict() == {"base": 7, "gated": 6}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Joined scores</h2>" in page and page.count("data:image/png;base64,") == 7


def test_few_prompts_are_told_and_get_no_interval(folder, tmp_path):
    stores = {
        name: open_store(make_store(tmp_path / f"{name}.h5", sink=s)) for name, s in (("a", 4.0), ("b", 1.0))
    }
    found = comparison.measure(stores, Question(resamples=199))
    said = comparison_page.answer(found, "b")
    assert len(said) == 3 and "fewer than 6 prompts" in said[0]
    assert found.cells["p"].isna().all()


def test_a_branch_without_top_keys_skips_what_needs_them_and_says_so(folder):
    with open_store(folder / "base.h5") as base, open_store(folder / "gated.h5") as gated:
        found = comparison.measure({"base": base, "gated": gated}, Question(branch="uncond", resamples=199))
        reasons = found.skipped.groupby("measure")["reason"].first()
        assert set(reasons[~reasons.str.contains("--atlas")].index) == {"top_1", "top_5", "value_norm_ratio"}
        assert any(line.startswith("Not computed (top_1, top_5") for line in comparison_page.caveats(found))
        assert found.kinds.empty
        assert "ten times uniform attention" in comparison_page.answer(found, "gated")[2]


def test_runs_that_do_not_pair_are_refused_by_the_field(folder, tmp_path, capsys):
    line = ["compare", folder / "base.h5", folder / "longer.h5", "--out_dir", tmp_path / "out"]
    assert commands.main(list(map(str, line))) == 1
    told = capsys.readouterr().err
    assert "steps" in told and "--allow_mismatch" in told
    assert not (tmp_path / "out").exists()


def test_an_allowed_mismatch_pairs_and_is_recorded(folder, tmp_path):
    question = Question(allow_mismatch=("steps",), resamples=199)
    compare_runs([folder / "longer.h5", folder / "base.h5"], tmp_path, question)
    told = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert told["allow_mismatch"] == ["steps"]
    assert told["mismatch"]["base"] == [{"field": "steps", "reference": "3", "other": "2"}]
    assert told["pairs"]["base"] == 2
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "steps is 3 in longer and 2 in base" in page
    assert "&lt;b&gt;dog" in page and "<b>dog" not in page  # text of files is text


def test_only_the_named_field_may_differ(tmp_path):
    first = make_store(tmp_path / "a.h5", samples=1)
    second = make_store(tmp_path / "b.h5", samples=1, steps=6, height=64)
    with open_store(first) as a, open_store(second) as b:
        pairing = compare.pair(a, b, allow_mismatch=["steps"])
        assert pairing.pairs.empty and pairing.mismatch.empty
        assert "height" in pairing.unpaired.iloc[0]["field"]
        assert "steps" not in pairing.unpaired.iloc[0]["field"]
        with pytest.raises(StoreError, match="stepz"):
            compare.pair(a, b, allow_mismatch=["stepz"])


def test_a_prompt_that_may_differ_pairs_by_seed(tmp_path):
    first = make_store(tmp_path / "a.h5", samples=2)
    second = make_store(tmp_path / "b.h5", samples=2, prompts=("a green tree", PROMPTS[1]))
    with open_store(first) as a, open_store(second) as b:
        pairing = compare.pair(a, b, allow_mismatch=["prompt"])
    assert list(pairing.pairs["other_sample"]) == [0, 1]
    assert pairing.mismatch.values.tolist() == [
        ["prompt", f"{PROMPTS[0]} (first of 1 pairs)", "a green tree (first of 1 pairs)"]
    ]


def test_wrong_questions_are_refused(folder, tmp_path):
    runs = [folder / "base.h5", folder / "gated.h5"]
    for paths, question, words in (
        (runs[:1], Question(), "two runs"),
        (runs, Question("depth"), "'depth'"),
        (runs, Question(resamples=5), "5 resamples"),
    ):
        with pytest.raises(StoreError, match=words):
            compare_runs(paths, tmp_path / "out", question)
