"""The bundled gated models through all forms: fused, separate and our own file draw the same picture, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from making.mmdit import original_state
from making.pipelines import pixels, torch_generator
from safetensors.torch import load_file, save_file

from sd35h5.capturing.pipeline import load
from sd35h5.gates.forms import fuse_gates, separate_gates
from sd35h5.gates.modules import GATE_TYPES, GATES_FILE
from sd35h5.planning.options import Model
from sd35h5.weights.model_facts import read_facts

EMOJI = Path(__file__).resolve().parents[2] / "data" / "models" / "emoji"


def _draw(**options: str) -> np.ndarray:
    model = Model(model_id=str(EMOJI), device="cpu", **options)
    pipe = load(model, read_facts(model)).pipe
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "max_sequence_length": 16}
    return pixels(pipe("a red apple", generator=torch_generator(0), **call).images[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "gate_type",
    [pytest.param(one, marks=[pytest.mark.long] if one == "elementwise" else []) for one in GATE_TYPES],
)
def test_a_bundled_model_goes_round_through_all_forms_to_equal_images(gate_type, tmp_path):
    folder = EMOJI / f"transformer_{gate_type}"
    ours = load_file(folder / GATES_FILE)
    (weights,) = (path for path in folder.glob("*.safetensors") if path.name != GATES_FILE)
    base = original_state(load_file(weights))
    wanted = _draw(transformer=folder.name)
    save_file(base, tmp_path / "bare.safetensors")
    bare = _draw(dit_path=str(tmp_path / "bare.safetensors"))
    assert not np.array_equal(bare, wanted)  # the gates do something
    drawn = [_draw(dit_path=str(tmp_path / "bare.safetensors"), gates=str(folder / GATES_FILE))]
    for form, put in (("a", fuse_gates), ("b", separate_gates)):
        save_file(put(base, ours), tmp_path / f"{form}.safetensors")
        drawn.append(_draw(dit_path=str(tmp_path / f"{form}.safetensors")))
    assert all(np.array_equal(each, wanted) for each in drawn)
