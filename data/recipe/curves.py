"""Draw the loss curves that training left beside the weights: training/*.jsonl -> training/curves.png.

python data/recipe/curves.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import altair as alt
import pandas as pd
import vl_convert

ROOT = Path(__file__).resolve().parents[2]


def curves(folder: Path) -> alt.Chart:
    """Return loss over steps: the VAE's by itself, the flow-matching losses on one scale."""
    frames = [
        pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()]).assign(stage=path.stem)
        for path in sorted(folder.glob("*.jsonl"))
    ]
    losses = pd.concat(frames)
    losses["of"] = losses["stage"].where(losses["stage"] == "vae", "transformers (velocity error)")
    return (
        alt.Chart(losses)
        .mark_line()
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("loss:Q", title="loss, mean of 250 steps", scale=alt.Scale(type="log", nice=False)),
            color=alt.Color("stage:N", scale=alt.Scale(scheme="tableau10")),
        )
        .properties(width=420, height=260)
        .facet(column=alt.Column("of:N", title=None))
        .resolve_scale(x="independent", y="independent")
    )


if __name__ == "__main__":
    training = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "data/models/emoji/training"
    png = vl_convert.vegalite_to_png(curves(training).to_json(), scale=2)
    (training / "curves.png").write_bytes(png)
    print(f"wrote {training / 'curves.png'}")
