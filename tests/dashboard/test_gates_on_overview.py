"""The overview tells with which gates and interventions a run drew, and warns of untrained and left-out gates."""

from __future__ import annotations

import sys
from pathlib import Path

from making.stores import make_store
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[2]


def _captions(folder: Path, monkeypatch) -> str:
    monkeypatch.setattr(sys, "argv", ["app.py", str(folder)])
    app = AppTest.from_file(str(ROOT / "dashboard" / "app.py"), default_timeout=60).run()
    assert not app.exception, app.exception
    return "\n".join(str(each.value) for each in app.caption).replace("\\", "")


def test_the_card_of_a_run_tells_its_gates_and_what_to_beware_of(tmp_path, monkeypatch):
    facts = {"gate_target": "joint", "gate_activation": "2sigmoid", "gate_layers": "[0, 1, 2]"}
    runs = {
        "trained": {"gates": True, **facts, "gate_override": "open", "gate_weights": "trained"},
        "untrained": {"gates": True, **facts, "gate_override": "none", "gate_weights": "untrained"},
        "dropped": {"gate_weights": "dropped", "gate_layers": "[]"},
    }
    for name, changes in runs.items():
        make_store(tmp_path / f"{name}.h5", samples=1, steps=2, **changes)
    captions = _captions(tmp_path, monkeypatch)
    assert "gate: headwise · joint · 2sigmoid · layers 0–2 · forced open · 3 layers" in captions
    assert "untrained gates: all weights are zero" in captions and "which is not the baseline" in captions
    assert "gate: none · 3 layers" in captions


def test_the_card_of_a_causal_run_tells_what_was_altered(tmp_path, monkeypatch):
    told = {"intervention": "mask:clip_bos@layers=1-2"}
    make_store(tmp_path / "plain.h5", samples=1, steps=2, intervention="none", intervention_control="none")
    make_store(tmp_path / "masked.h5", samples=1, steps=2, **told)
    make_store(tmp_path / "control.h5", samples=1, steps=2, **told, intervention_control="random:3")
    captions = _captions(tmp_path, monkeypatch)
    assert captions.count("intervention:") == 2 and "intervention: mask:clip_bos@layers=1-2" in captions
    assert "intervention: as much mass as mask:clip_bos@layers=1-2 in other keys (random:3)" in captions
