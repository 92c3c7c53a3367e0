"""A comparison as one self-contained HTML page: what was run, the answer in sentences, figures, tables, provenance."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sd35h5 import __version__
from sd35h5.comparing import effects
from sd35h5.figures.html_page import document
from sd35h5.metrics.catalogue import MEASURES
from sd35h5.reports.answers import pair_answers, sentence

if TYPE_CHECKING:
    from sd35h5.comparing.comparison import Comparison

#: attributes that tell a file from another
IDENTITY = (
    "model_id", "model_revision", "model_shape", "gate_type", "gate_target", "gate_override", "intervention",
    "intervention_control", "file_uuid",
    "created_utc", "writer",
)  # fmt: skip
CAPTIONS = {
    "heatmaps": "Each cell is a head: the reference, the other run, and their mean difference over prompts (purple "
    "lower, orange higher). A dot marks the cells that survive correction for all cells of the panel (q ≤ 0.05).",
    "steps": "The measure over the denoising steps, paired samples only; the band is the 10th to 90th percentile "
    "across prompts: how prompts differ, not how sure the mean is.",
    "effects": "Every measure on one scale: the mean difference divided by its standard deviation over prompts, with "
    "its interval.",
    "sink_rates": "The share of heads whose mass at the target exceeds ε, for every ε; dashed: uniform attention and "
    "ε = 0.3 of causal language models.",
    "key_kinds": "Which key is the heaviest of all text tokens and image patches, as a share of heads, captured steps "
    "and samples.",
    "pairs": "One line a paired sample: the mean over steps, layers and heads.",
    "scores": "The joined scores against the measure, a point a paired sample.",
}
HEADS = {
    "low": "95 % from",
    "high": "to",
    "effect": "effect d",
    "reference_mean": "reference",
    "other_mean": "compared",
}
SIGNED = (
    f"sd35h5 {__version__}. The numbers behind every figure are in the CSV files beside this page; their definitions "
    "are in docs/metrics.md."
)
_STATISTICS = ("reference_mean", "other_mean", "mean_difference", "low", "high", "effect", "p", "q")


def page(found: Comparison, pictures: dict[str, Path], findings: Iterable[str] = ()) -> str:
    """Return the report as HTML without scripts or links to other files. Args: findings: HTML of what was kept."""
    names = ", ".join(found.others)
    parts = [
        f"<h1>{escape(names)} against {escape(found.reference)}</h1>",
        "<h2>What was run</h2>", _table(runs(found)),
        f"<p>{escape(asked(found))}</p>",
        "<h2>The answer</h2>",
        *(f'<p class="answer">{escape(" ".join(answer(found, name)))}</p>' for name in found.others),
        "<h2>Figures</h2>", *(_figure(name, path) for name, path in pictures.items()),
        "<h2>All measures</h2>", _table(shown_overall(found)),
        *_scores(found),
        "<h2>Heads that changed most</h2>", _table(shown_cells(found)),
        "<h2>Caveats</h2>", "<ul>", *(f"<li>{escape(line)}</li>" for line in caveats(found)), "</ul>",
        *_unpaired(found),
        *findings,
        "<h2>Provenance</h2>", _table(provenance(found)),
        f"<p>{escape(SIGNED)}</p>",
    ]  # fmt: skip
    return document(f"{names} against {found.reference}", parts)


def answer(found: Comparison, name: str) -> list[str]:
    """Return three sentences: the change in all, the heads that changed, and what the heaviest key is."""
    return [sentence.text_of(one) for one in (_change(found, name), _heads(found, name), _sink(found, name))]


def _change(found: Comparison, name: str) -> sentence.Sentence:
    row, asked_for = _row(found, name, found.question.metric), found.question
    told = (row.reference_mean, row.other_mean, row.mean_difference, row.low, row.high, row.p)
    return pair_answers.change(
        pair_answers.Change(
            found.reference, name, asked_for.metric, *told, int(row.prompts), int(row.pairs), asked_for.target
        )
    )


def _heads(found: Comparison, name: str) -> sentence.Sentence:
    return pair_answers.changed_heads(found.cells[found.cells["run"] == name])


def _sink(found: Comparison, name: str) -> sentence.Sentence:
    kinds = {run: part.set_index("kind")["share"] for run, part in found.kinds.groupby("run")}
    names = (found.reference, name)
    if all(run in kinds for run in names):
        return pair_answers.heaviest_kinds((kinds[names[0]], kinds[names[1]]), names)
    row = _row(found, name, "sink_rate_uniform")
    return pair_answers.above_uniform((row.reference_mean, row.other_mean), names, found.question.target)


def runs(found: Comparison) -> pd.DataFrame:
    """Return a row a run: role, model, gate, intervention, shape, samples, pairs."""
    rows = []
    for name, store in found.stores.items():
        paired = found.pairings[name].pairs if name in found.pairings else None
        sizes = store.sizes
        rows.append(
            {
                "run": name,
                "role": "reference" if paired is None else "compared",
                "gate": store.attributes.get("gate_type", ""),
                "intervention": store.attributes.get("intervention", "none"),
                "control": store.attributes.get("intervention_control", "none"),
                "model": Path(store.attributes.get("model_id", "")).name,
                "layers × heads": f"{sizes['layer']} × {sizes['head']}",
                "steps": sizes["step"],
                "text tokens": sizes["token"],
                "samples": sizes["sample"],
                "prompts": store.samples["prompt_id"].nunique(),
                "paired": "" if paired is None else len(paired),
            }
        )
    return pd.DataFrame(rows)


def asked(found: Comparison) -> str:
    """Say what the figures are about."""
    question = found.question
    return (
        f"Asked: the {MEASURES[question.metric].title} ({MEASURES[question.metric].unit}) of "
        f"{sentence.told_target(question.target)}, "
        f"{question.branch} branch, image queries, mean over steps. Samples are paired when prompt, seed and every "
        "setting but weights and gates are equal; a prompt with several seeds counts once."
    )


def shown_overall(found: Comparison) -> pd.DataFrame:
    """Return the table of all measures as people read it."""
    table = found.overall.copy()
    table["measure"] = [f"{MEASURES[name].title} ({MEASURES[name].unit})" for name in table["measure"]]
    return table[["run", "measure", *_STATISTICS]]


def shown_cells(found: Comparison, count: int = 12) -> pd.DataFrame:
    """Return the heads with the largest changes of each run."""
    parts = []
    for name in found.others:
        own = found.cells[found.cells["run"] == name]
        parts.append(own.loc[own["mean_difference"].abs().sort_values(ascending=False).index[:count]])
    return pd.concat(parts)[["run", "layer", "head", *_STATISTICS]]


def caveats(found: Comparison) -> Iterator[str]:
    """Say what the numbers do not mean."""
    few = found.overall["prompts"].min()
    yield (
        "Intervals are percentile bootstraps over prompts with seeds nested, expanded for few prompts; p-values flip "
        "the signs of the prompts' differences; q is Benjamini–Hochberg, over the heads of a panel or all rows of the "
        f"table. Resampling: {found.question.resamples} times, seed {found.question.seed}."
    )
    if few < 20:
        smallest = f", and no p-value can be below {2 / 2**few:.2g}" if few >= effects.MIN_PROMPTS else ""
        yield (
            f"There are {int(few)} prompts only{smallest}: the interval says what these prompts tell, and prompts of "
            "another kind may differ."
        )
    yield (
        "A is a share over text tokens and image patches together: when another part of the sequence gains, this one "
        "loses. first_token_share is a ratio to the average text token, padding included, not a fraction."
    )
    yield "Attention mass is not influence: a key with a small value vector, or behind a closed gate, adds little."
    for name, pairing in found.pairings.items():
        if len(pairing.unpaired):
            yield (
                f"{len(pairing.unpaired)} samples of {found.reference} and {name} have no partner and are left out."
            )
        for row in pairing.mismatch.itertuples():
            yield (
                f"Allowed to differ by --allow_mismatch: {row.field} is {row.reference} in {found.reference} and "
                f"{row.other} in {name}; what is seen may come from it."
            )
    for reason, part in found.skipped.groupby("reason"):
        yield f"Not computed ({', '.join(dict.fromkeys(part['measure']))}): {reason}."


def provenance(found: Comparison) -> pd.DataFrame:
    """Return what tells the files apart, a column a run."""
    table = {
        name: [*(store.attributes.get(key, "") for key in IDENTITY), _hashes(store)]
        for name, store in found.stores.items()
    }
    return pd.DataFrame({"field": [*IDENTITY, "content_sha256 of the first sample"], **table})


def _hashes(store) -> str:
    samples = store.samples
    return str(samples["content_sha256"].iloc[0]) if "content_sha256" in samples else ""


def _scores(found: Comparison) -> Iterator[str]:
    if len(found.scores):
        yield "<h2>Joined scores</h2>"
        yield (
            f"<p>Pearson and Spearman are of the score with the {escape(MEASURES[found.question.metric].title)} over "
            "a run's paired samples; those of one prompt are not independent. The change is from the reference.</p>"
        )
        yield _table(found.scores)


def _unpaired(found: Comparison) -> Iterator[str]:
    alone = pd.concat([one.unpaired.assign(compared=name) for name, one in found.pairings.items()])
    if len(alone):
        yield "<h2>Not paired</h2>"
        yield _table(alone.head(50))
        if len(alone) > 50:
            yield f"<p>… and {len(alone) - 50} more in unpaired.csv</p>"


def _row(found: Comparison, name: str, measure: str):
    table = found.overall
    return next(table[(table["run"] == name) & (table["measure"] == measure)].itertuples())


def number(value: object) -> str:
    """Return a number with three digits, small ones as 2.3e-06, a missing one as a dash."""
    if isinstance(value, float):
        return sentence.number(value)
    return str(value)


def _table(table: pd.DataFrame) -> str:
    head = "".join(
        f"<th>{escape(HEADS.get(str(name), str(name)).replace('_', ' '))}</th>" for name in table.columns
    )
    rows = "".join(
        "<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in table.itertuples(index=False)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _cell(value: object) -> str:
    shown = escape(number(value))
    kind = "n" if isinstance(value, (int, float)) else "long" if len(shown) > 30 else ""
    return f'<td class="{kind}">{shown}</td>'


def _figure(name: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = CAPTIONS[name]
    wide = " class=wide" if name == "heatmaps" else ""
    return (
        f'<figure><img{wide} src="data:image/png;base64,{data}" alt="{escape(caption, quote=True)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
