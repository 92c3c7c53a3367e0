"""FLUX's VAE has the shapes of SD3's and draws wrong colours: told apart by config, metadata and hash, else asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making.published import sparse_file
from making.weights import DIT, VAE, mmdit_shapes, original_state, save, small_pipeline, vae_shapes

from sd35h5.errors import ConfigError
from sd35h5.planning.options import Model
from sd35h5.weights.sources import Part, find_part

SD3 = "8f53304a79335b55e13ec50f63e5157fee4deb2f30d5fae0654e2b2653c109dc"  # sd3.5-medium's vae/, say
FLUX = "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38"  # ae.safetensors
QUESTION = "nothing in the file tells whether it is SD3's VAE or FLUX's, .* --vae_is_sd3"


def _part(path: Path, base: Path | None = None, **options: object) -> Part:
    return find_part("vae", Model(vae_path=str(path), **options), base)


@pytest.fixture
def small_folder(tmp_path) -> Path:
    small_pipeline().save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def test_a_published_file_is_told_by_its_hash(tmp_path):
    part = _part(sparse_file(tmp_path / "a.safetensors", vae_shapes(), sha256=SD3))
    assert (part.config["scaling_factor"], part.config["shift_factor"]) == (1.5305, 0.0609)
    with pytest.raises(ConfigError, match="b.safetensors holds FLUX's VAE, which has the shapes of SD3's"):
        _part(sparse_file(tmp_path / "b.safetensors", vae_shapes(), sha256=FLUX))


def test_what_a_file_says_of_itself_is_heeded(tmp_path):
    for told in ("Flux.1-AE", "flux.1-dev/vae"):
        file = sparse_file(tmp_path / "a.safetensors", vae_shapes(), {"modelspec.architecture": told})
        with pytest.raises(ConfigError, match="holds FLUX's VAE"):
            _part(file)
    own = {"modelspec.architecture": "stable-diffusion-v3.5-large/vae"}
    assert (
        _part(sparse_file(tmp_path / "b.safetensors", vae_shapes(), own)).config["scaling_factor"] == 1.5305
    )


def test_where_nothing_tells_it_is_asked_and_answered(tmp_path):
    file = sparse_file(tmp_path / "a.safetensors", vae_shapes(), {"format": "pt"})
    with pytest.raises(ConfigError, match=QUESTION):
        _part(file)
    assert _part(file, vae_is_sd3=True).config["scaling_factor"] == 1.5305


def test_a_folders_config_is_held_against_the_models(small_folder, tmp_path):
    other = tmp_path / "flux"
    other.mkdir()
    for file in (small_folder / "vae").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert _part(other).config["scaling_factor"] == 1.5305
    config = json.loads((other / "config.json").read_text()) | {
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    }
    (other / "config.json").write_text(json.dumps(config))
    said = "has scaling_factor 0.3611, which is FLUX's, but the model draws latents of 1.5305: it would draw wrong"
    for base in (None, small_folder):
        with pytest.raises(ConfigError, match=said):
            _part(other, base)
    (small_folder / "vae" / "config.json").write_text(json.dumps(config))  # a model of those very latents
    assert _part(other, small_folder).config["scaling_factor"] == 0.3611


def test_a_vae_of_other_shapes_or_beside_its_own_transformer_is_not_asked_about(tmp_path, small_folder):
    assert _part(save(tmp_path / "a.safetensors", original_state("vae", small_pipeline().vae)))
    held = {VAE + key: shape for key, shape in vae_shapes().items()}
    held |= {DIT + key: shape for key, shape in mmdit_shapes(2, 128, 8, 64).items()}
    file = sparse_file(tmp_path / "all.safetensors", held)
    assert find_part("vae", Model(model_id=str(file)), file).config["scaling_factor"] == 1.5305
    assert find_part("vae", Model(dit_path=str(file)), None).config["scaling_factor"] == 1.5305
    assert _part(file).config["scaling_factor"] == 1.5305
    assert find_part("vae", Model(), small_folder)
