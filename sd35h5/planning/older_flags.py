"""Flags of the tool that people come from, where ours are others: what to write in their place. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from sd35h5.errors import ConfigError

_ONE_FILE = "a capture is one file, --out run.h5; metrics and charts go into a folder with --analyze FOLDER"
_INSTEAD = {
    "--out_dir": _ONE_FILE,
    "--out_root": _ONE_FILE,
    "--fp16": "write --dtype fp16",
    "--bf16": "write --dtype bf16",
    "--dump_attn_png": "the file holds the maps; as pictures: python -m sd35h5 export run.h5 --out_dir out --maps",
}


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse flags of the older tool by naming ours.

    Raises:
        ConfigError: the first one that is among the arguments.
    """
    for argument in arguments:
        flag = argument.partition("=")[0].replace("-", "_").replace("__", "--", 1)
        if flag in _INSTEAD:
            raise ConfigError(f"there is no {flag} here: {_INSTEAD[flag]}")
