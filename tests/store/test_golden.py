"""Files of every version stay readable; `python tests/store/test_golden.py` makes one of this version."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"

if __name__ == "__main__":
    sys.path[:0] = [str(GOLDEN.parents[1]), str(GOLDEN.parent)]
    from making.stores import make_store

    from sd35h5.store.schema import SCHEMA_VERSION

    made = GOLDEN / f"v{SCHEMA_VERSION}.h5"
    if made.exists():
        sys.exit(f"{made} is there: a golden file is never made anew, another format has another version")
    print(
        make_store(
            made,
            samples=2,
            layers=2,
            heads=3,
            steps=2,
            height=48,
            width=32,
            gates=True,
            t5_length=8,
            atlas=True,
            second_heads=4,
        )
    )
    sys.exit(0)

from sd35h5 import open_store, verify  # noqa: E402
from sd35h5.store import schema  # noqa: E402


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("v*.h5")), ids=lambda path: path.stem)
def test_a_golden_file_is_sound_and_reads_as_it_did(path):
    assert verify(path, deep=True).problems == ()
    with open_store(path) as store:
        assert store.samples["prompt"].tolist() == ["a red apple left of a cat", "a blue car"]
        hashes = [digest[:16] for digest in store.samples["content_sha256"]]
        assert hashes == HASHES[path.stem]
        masses = store.read("sinks/mass_group", branch="cond", query="image", sample=0, layer=1, head=2)
        assert masses.sel(group="clip_bos").values.tolist() == pytest.approx(CLIP_BOS[path.stem], rel=1e-6)
        assert store.tokens(1).loc[2, ["text", "group", "id_t5"]].tolist() == ["blue</w>", "clip_word", -1]
        assert store.image(0).shape == (48, 32, 3)


def test_this_version_has_a_golden_file():
    assert (GOLDEN / f"v{schema.SCHEMA_VERSION}.h5").is_file()


HASHES = {
    "v1.0": ["75dc567aab4178a6", "eb9685184ca6987b"],
    "v1.1": ["a85d42aa5a080f40", "56887e2fa943d77a"],
}
CLIP_BOS = {"v1.0": [0.12175976, 0.23651269], "v1.1": [0.12175976, 0.23651269]}
