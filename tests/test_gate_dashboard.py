"""The overview tells which gates a run drew with, and warns of untrained and left-out ones."""

from __future__ import annotations

import sys
from pathlib import Path

from stores import make_store
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[1]


def test_the_card_of_a_run_tells_its_gates_and_what_to_beware_of(tmp_path, monkeypatch):
    facts = {"gate_target": "joint", "gate_activation": "2sigmoid", "gate_layers": "[0, 1, 2]"}
    runs = {
        "trained": {"gates": True, **facts, "gate_override": "open", "gate_weights": "trained"},
        "untrained": {"gates": True, **facts, "gate_override": "none", "gate_weights": "untrained"},
        "dropped": {"gate_weights": "dropped", "gate_layers": "[]"},
    }
    for name, changes in runs.items():
        make_store(tmp_path / f"{name}.h5", samples=1, steps=2, **changes)
    monkeypatch.setattr(sys, "argv", ["app.py", str(tmp_path)])
    app = AppTest.from_file(str(ROOT / "dashboard" / "app.py"), default_timeout=60).run()
    assert not app.exception, app.exception
    captions = "\n".join(str(each.value) for each in app.caption).replace("\\", "")
    assert "gate: headwise · joint · 2sigmoid · [0, 1, 2] · forced open · 3 layers" in captions
    assert "untrained gates: all weights are zero" in captions and "which is not the baseline" in captions
    assert "gate: none · 3 layers" in captions
