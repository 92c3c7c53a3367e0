"""The benchmark of causal runs: its intervals computed another way, and its pictures drawn by plain diffusers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from making.pipelines import make_pipeline, pixels, plain_image
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
PROMPTS, STEPS = 6, 1
JOINT_KEYS = 4 * 4 + 77 + 256  # patches of the tiny model's own 64 x 64 pixels, CLIP, T5


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("intervene", ROOT / "benchmarks" / "intervene.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # as for a script, whose own folder is on the path
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        spec.loader.exec_module(module)
    return module


def _pairs(benchmark) -> pd.DataFrame:
    """Made-up differences of ten prompts; each run's rows in an order of its own."""
    rng, tables = np.random.default_rng(0), []
    for keys in benchmark.KEYS:
        for control in ("", benchmark.CONTROL):
            numbers = {name: rng.gamma(2.0, 1 + len(tables), 10) for name in benchmark.NUMBERS}
            table = pd.DataFrame({"reference_sample": np.arange(10), **numbers})
            tables.append(table.sample(frac=1, random_state=len(tables)).assign(keys=keys, control=control))
    return pd.concat(tables, ignore_index=True)


def test_means_and_intervals_are_over_prompts_and_differences_within_each(benchmark):
    table = _pairs(benchmark)
    wide = table.pivot_table(
        index="reference_sample", columns=["keys", "control"], values=list(benchmark.NUMBERS)
    )
    found = {(row["keys"], row["what"]): row for row in benchmark.summary(table)}
    assert len(found) == 3 * len(benchmark.KEYS)
    tail = stats.norm.cdf(-np.sqrt(10 / 9) * stats.t.ppf(0.975, 9))  # Hesterberg's, as effects.py says
    for keys in benchmark.KEYS:
        for name in benchmark.NUMBERS:
            masked, control = wide[name][keys][""], wide[name][keys][benchmark.CONTROL]
            for what, units in {
                "masked": masked,
                "control": control,
                "masked − control": masked - control,
            }.items():
                row = found[keys, what]
                assert row["mean"][name] == pytest.approx(units.mean())
                drawn = stats.bootstrap(
                    (units,), np.mean, confidence_level=1 - 2 * tail, n_resamples=9999, method="percentile", rng=1
                ).confidence_interval  # fmt: skip
                np.testing.assert_allclose(row["interval"][name], drawn, atol=0.08 * units.std())


def test_the_report_shows_every_mean_beside_its_interval(benchmark):
    results = benchmark.summary(_pairs(benchmark))
    facts = {"versions": {"torch": "0"}, "prompts": 10, "steps": 3, "system": "here", "date": "today"}
    lines = benchmark.report(results, facts).splitlines()
    rows = [line for line in lines if line.startswith("| ") and "masked" in line or "| control |" in line]
    assert len(rows) == len(results) == 9
    for line, row in zip(rows, results, strict=True):
        assert f"| {row['what']} |" in line and (f"`{row['keys']}`" in line) == (row["what"] == "masked")
        for name in benchmark.NUMBERS:
            low, high = row["interval"][name]
            assert f"{row['mean'][name]:.3f} ({low:.3f} to {high:.3f})" in line


@pytest.mark.slow
def test_what_is_written_is_how_far_plain_diffusers_pictures_are_apart(
    benchmark, tiny_folder, tmp_path, monkeypatch, capsys
):
    flags = ["--models", tiny_folder, "--prompts", PROMPTS, "--steps", STEPS, "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["intervene.py", *map(str, flags)])
    assert benchmark.main() == 0
    assert capsys.readouterr().out == (tmp_path / "intervene.md").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "intervene.json").read_text(encoding="utf-8"))
    pairs = pd.DataFrame(written["pairs"])
    assert (pairs.groupby(["keys", "control"]).size() == PROMPTS).all()
    assert (pairs.rms > 0).all() and (pairs.altered_mass.between(0, 1)).all()
    captions = [
        each["caption"] for each in json.loads((ROOT / "data/scenes_heldout.json").read_text("utf-8"))
    ]
    pipe, call = make_pipeline(), {"num_inference_steps": STEPS, "guidance_scale": 4.5}
    usual = torch.nn.functional.scaled_dot_product_attention

    def without_the_start(query, key, value, **options):
        if key.shape[2] == JOINT_KEYS:
            kept = torch.arange(JOINT_KEYS) != 4 * 4  # the start token is the first after the patches
            options["attn_mask"] = kept.expand(query.shape[2], -1)
        return usual(query, key, value, **options)

    for number in (0, PROMPTS - 1):
        plain = pixels(plain_image(pipe, captions[number], number, **call))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", without_the_start)
            masked = pixels(plain_image(pipe, captions[number], number, **call))
        rms = np.sqrt(np.mean((plain / 255 - masked / 255) ** 2))
        row = pairs[
            (pairs["keys"] == "clip_bos") & (pairs.control == "") & (pairs.reference_sample == number)
        ]
        assert row.rms.item() == pytest.approx(rms, rel=0.01) and rms > 0


def test_too_few_captions_and_missing_models_are_refused(benchmark, tmp_path, monkeypatch, capsys):
    for flags, told in (
        (["--prompts", "5"], "--prompts is 6 to"),
        (["--models", tmp_path], "give --models DIR"),
    ):
        monkeypatch.setattr(sys, "argv", ["intervene.py", "--out", str(tmp_path), *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            benchmark.main()
        assert ended.value.code == 2 and told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
