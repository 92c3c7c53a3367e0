"""`python -m sd35h5 import`: whole folders, what is asked for, what is refused, and how it goes on."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from making.equal_arrays import differing
from making.older_tool import random_maps, write_older
from PIL import Image

from sd35h5 import __main__ as commands
from sd35h5 import open_store, verify
from sd35h5.store.runs import parts_of

A, B = "a red apple", "a cat on a blue tree"
PIXELS = (64, 96)  # of 4 × 6 patches


def _picture(level: int) -> Image.Image:
    return Image.fromarray(np.full((*PIXELS, 3), level, np.uint8))


def _run(*words: object) -> int:
    return commands.main(["import", *map(str, words)])


@pytest.fixture
def root(tmp_path) -> Path:
    """OUT_ROOT of a batch: 000, 001 and 010, with pictures and the older tool's own charts beside."""
    for number, name in enumerate(("000", "001", "010")):
        folder = write_older(tmp_path / "root" / name, random_maps(seed=number), [(A, B, A)[number]],
                             pictures=[_picture(50 * number)])  # fmt: skip
        _picture(255).save(folder / "layer_head_heatmap.png")
    (tmp_path / "root" / "002").mkdir()  # a call that died
    (tmp_path / "root" / "notes").mkdir()
    return tmp_path / "root"


def test_a_whole_folder_becomes_one_packed_file_that_says_what_is_not_known(root, tmp_path, capsys):
    out = tmp_path / "run.h5"
    assert _run(root, "--out", out, "--model_id", "old", "--guidance", 4.5) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(out) and "002: no attn_maps.pt, left out" in told.err
    assert verify(out, deep=True).ok and not parts_of(out).exists()
    with open_store(out) as store:
        assert list(store.samples["prompt"]) == [A, B, A]
        assert list(store.samples["prompt_id"]) == ["p000", "p001", "p000"]
        assert list(store.samples["sample_id"]) == ["p000-image0", "p001-image0", "p000-image1"]
        assert list(store.samples["seed"]) == [-1, -1, -1]
        assert [int(store.image(sample).max()) for sample in range(3)] == [0, 50, 100]
        origin = store.provenance["origin"]
        assert (
            origin["kind"] == "import" and "seed" in origin["unknown"] and "model_id" not in origin["unknown"]
        )
        assert store.config["guidance"] == 4.5 and "scheduler" not in store.config
        folders = [each["folder"] for each in store.provenance["events"] if each["event"] == "imported"]
        assert folders == ["000", "001", "010"]
        mass = store.read("sinks/mass_image", sample=1, branch="cond").values
    maps = random_maps(seed=1)
    expected = np.array(
        [[layer[1].double().numpy().mean((1, 2)) for layer in step.values()] for step in maps.values()]
    )
    np.testing.assert_allclose(mass, expected, rtol=1e-3)  # (step, layer, head, token)


def test_two_prompts_of_one_call_are_the_second_half_of_its_rows(tmp_path):
    maps = random_maps(prompts=2)
    folder = write_older(tmp_path / "out", maps, [A, B], pictures=[_picture(10), _picture(20)])
    assert _run(folder, "--out", tmp_path / "run.h5", "--branches", "cond", "uncond", "--precision", "exact",
                "--seed", 5, 6) == 0  # fmt: skip
    with open_store(tmp_path / "run.h5") as store:
        assert list(store.samples["sample_id"]) == ["p000-seed5", "p001-seed6"]
        for sample, row in ((0, 2), (1, 3)):
            for branch, at in (("cond", row), ("uncond", row - 2)):
                mass = store.read("sinks/mass_image", sample=sample, branch=branch).values
                expected = [
                    [layer[at].mean((1, 2)).numpy() for layer in step.values()] for step in maps.values()
                ]
                np.testing.assert_allclose(mass, expected, rtol=1e-5)
        groups = store.read("sinks/mass_group", query="image")
        np.testing.assert_allclose(groups.sum("group"), 1, atol=1e-5)


def test_keys_and_layers_are_sorted_by_their_numbers_whatever_their_types(tmp_path):
    maps = random_maps(layers=12)
    mixed = {("333.3", 666, 1000.0)[place]: dict(reversed(maps[timestep].items()))
             for place, timestep in enumerate(sorted(maps))}  # fmt: skip
    write_older(tmp_path / "mixed", mixed, [A])
    assert _run(tmp_path / "mixed", "--out", tmp_path / "run.h5", "--maps", "off") == 0
    with open_store(tmp_path / "run.h5") as store:
        mass = store.read("sinks/mass_image", sample=0, branch="cond")
        np.testing.assert_allclose(mass.coords["timestep"], [1000, 666, 333.3], rtol=1e-6)
        expected = maps[1000.0]["layer-10"][1].mean((1, 2))
        np.testing.assert_allclose(mass.sel(step=0, layer=10), expected, rtol=1e-3)
        assert "images/image" not in store and "maps/image_to_text" not in store


def test_an_import_that_was_broken_off_goes_on_with_the_same_command(root, tmp_path, capsys):
    out = tmp_path / "run.h5"
    torn = root / "010" / "attn_maps.pt"
    whole = torch.load(torn)
    whole[1000.0]["layer-2"][0, 0, 0, 0, 0] = float("nan")
    torch.save(whole, torn)
    assert _run(root, "--out", out) == 1
    told = capsys.readouterr().err
    assert "2 of 3 samples are sealed" in told and "the same command goes on from there" in told
    assert "010/attn_maps.pt, timestep 1000, layer 2 has values that are not finite" in told
    assert len(list(parts_of(out).glob("*.h5"))) == 2 and not list(parts_of(out).glob("*.tmp"))
    assert commands.main(["missing", str(parts_of(out))]) == 1
    assert "python -m sd35h5 import, goes on" in capsys.readouterr().out
    sealed = {path.name: path.stat().st_mtime_ns for path in parts_of(out).glob("*.h5")}
    write_older(root / "010", random_maps(seed=2))
    assert _run(root, "--out", out) == 1  # 010 is another file now: another import
    assert "another configuration" in capsys.readouterr().err
    write_older(root / "010", whole)
    whole[1000.0]["layer-2"][0, 0, 0, 0, 0] = 0.0
    assert {path.name: path.stat().st_mtime_ns for path in parts_of(out).glob("*.h5")} == sealed
    write_older(root / "010", whole)
    assert _run(root, "--out", out, "--overwrite") == 0
    with open_store(out) as store:
        assert len(store) == 3
    assert _run(root, "--out", out) == 0  # nothing is left to do


def _with_other_values(dump: Path) -> None:
    """Let every probability of a dump be no number, and its list stay as it is."""
    raw = bytearray(dump.read_bytes())
    with zipfile.ZipFile(dump) as archive:
        for record in archive.infolist():
            if "/data/" in record.filename:
                lengths = raw[record.header_offset + 26 : record.header_offset + 30]
                start = (
                    record.header_offset
                    + 30
                    + sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
                )
                raw[start : start + record.file_size] = b"\xff" * record.file_size
    dump.write_bytes(raw)


def test_an_import_goes_on_where_it_stopped_without_reading_again_what_is_sealed(root, tmp_path, capsys):
    assert _run(root, "--out", tmp_path / "whole.h5") == 0
    out, torn = tmp_path / "run.h5", root / "010" / "images" / "00.png"
    picture = torn.read_bytes()
    torn.write_bytes(picture[:50])
    assert _run(root, "--out", out) == 1
    assert "2 of 3 samples are sealed" in capsys.readouterr().err
    torn.write_bytes(picture)
    for folder in ("000", "001"):
        _with_other_values(dump := root / folder / "attn_maps.pt")
        assert torch.load(dump)[1000.0]["layer-0"].isnan().all()  # who reads it again refuses it
    assert _run(root, "--out", out) == 0
    assert differing(out, tmp_path / "whole.h5") == [] and not parts_of(out).exists()
    with open_store(out) as store:
        assert store.samples["sample_id"].is_unique and len(store) == 3


def test_a_dump_that_was_saved_on_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    maps = random_maps()
    write_older(tmp_path / "here", maps, [A])
    with monkeypatch.context() as there:
        there.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        write_older(tmp_path / "there", maps, [A])
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):  # so it was saved
            torch.load(tmp_path / "there" / "attn_maps.pt")
    for name in ("here", "there"):
        assert _run(tmp_path / name, "--out", tmp_path / f"{name}.h5") == 0
    told = differing(tmp_path / "here.h5", tmp_path / "there.h5")
    assert told == ["samples/content_sha256", "samples/pairing_key"]  # the key is of the dump's bytes


def test_prompts_are_asked_for_where_no_tokens_json_tells_them(tmp_path, capsys):
    folder = write_older(tmp_path / "out", random_maps())
    assert _run(folder, "--out", tmp_path / "run.h5") == 1
    assert "out has no tokens.json: say its 1 prompt with --prompt" in capsys.readouterr().err
    assert _run(folder, "--out", tmp_path / "run.h5", "--prompt", A, B) == 1
    assert "of which no folder needs 1" in capsys.readouterr().err
    assert _run(folder, "--out", tmp_path / "run.h5", "--prompt", A) == 0
    with open_store(tmp_path / "run.h5") as store:
        assert list(store.samples["prompt"]) == [A]


def test_the_length_of_t5_is_asked_for_where_77_positions_can_be_its_own_or_empty(tmp_path, capsys):
    folder = write_older(tmp_path / "out", random_maps(text=154, steps=1, layers=1), [A])
    assert _run(folder, "--out", tmp_path / "run.h5") == 1
    assert (
        "say --t5_length 77 if T5 read the prompt, --t5_length 0 if the pipeline had no T5"
        in capsys.readouterr().err
    )
    assert _run(folder, "--out", tmp_path / "run.h5", "--t5_length", 256) == 1
    assert "makes 333 text tokens" in capsys.readouterr().err
    for length, group in ((0, "t5_absent"), (77, "t5_pad")):
        assert _run(folder, "--out", tmp_path / "run.h5", "--t5_length", length, "--overwrite") == 0
        with open_store(tmp_path / "run.h5") as store:
            assert store.tokens(0)["group"].iloc[-1] == group


def test_without_guidance_every_row_is_a_prompt(tmp_path):
    maps = {
        step: {name: each[:1].clone() for name, each in layers.items()}
        for step, layers in random_maps().items()
    }
    folder = write_older(tmp_path / "out", maps, [A])
    assert _run(folder, "--out", tmp_path / "run.h5", "--guidance", 1) == 0
    with open_store(tmp_path / "run.h5") as store:
        assert store.sizes["branch"] == 1


def test_links_to_what_is_there_are_followed_and_others_are_told(tmp_path, capsys):
    real = write_older(tmp_path / "real", random_maps(steps=1), [A])
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "attn_maps.pt").symlink_to(real / "attn_maps.pt")
    (linked / "tokens.json").symlink_to(real / "tokens.json")
    assert _run(linked, "--out", tmp_path / "run.h5") == 0
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in (tmp_path / "loop", tmp_path / "nowhere", real / "tokens.json"):
        assert _run(place, "--out", tmp_path / "other.h5") == 1
        assert capsys.readouterr().err.count("error: ") == 1
    os.mkfifo(tmp_path / "pipe")
    (linked / "attn_maps.pt").unlink()
    (linked / "attn_maps.pt").symlink_to(tmp_path / "pipe")
    assert _run(linked, "--out", tmp_path / "other.h5") == 1  # and does not wait for a writer
    assert not (tmp_path / "other.h5").exists() and not parts_of(tmp_path / "other.h5").exists()


def test_folders_of_another_shape_and_pictures_of_something_else_are_told(root, tmp_path, capsys):
    write_older(root / "001", random_maps(heads=3))
    assert _run(root, "--out", tmp_path / "run.h5") == 1
    assert "001 has 3 heads, 000 has 2 heads: one file has one shape" in capsys.readouterr().err
    write_older(root / "001", random_maps(seed=1))
    Image.new("RGB", (32, 32)).save(root / "001" / "images" / "00.png")
    assert _run(root, "--out", tmp_path / "run.h5") == 1
    assert "has 32 × 32 pixels, its attention is of 96 × 64" in capsys.readouterr().err
    (root / "001" / "images" / "00.png").write_text("no picture")
    assert _run(root, "--out", tmp_path / "run.h5") == 1
    assert "is no PNG that can be read" in capsys.readouterr().err
    (root / "001" / "images" / "00.png").unlink()
    assert _run(root, "--out", tmp_path / "run.h5") == 1
    assert "001 has 0 pictures for 1 prompt" in capsys.readouterr().err
    assert _run(root, "--out", tmp_path / "run.h5", "--no_images", "--overwrite") == 0
