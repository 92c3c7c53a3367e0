"""How every command looks on the command line: its help, its PATH, flags in both spellings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from sd35h5.store.places.addresses import is_address, place
from sd35h5.store.showable import showable

Subparsers = argparse._SubParsersAction
A_RUN = "run.h5, a sealed sample, or a folder of them"


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps line breaks and shows defaults."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, False) else action.help


def command(
    commands: Subparsers,
    run: Callable,
    example: str,
    path: str = A_RUN,
    several: bool = False,
    afar: bool = False,
) -> argparse.ArgumentParser:
    """Add a command, named and explained by the function that runs it; `path` explains its PATH.

    Args: afar: whether PATH may be the address of a file elsewhere.
    """
    name = run.__name__.rstrip("_")  # `import_` and `slice_`: Python has both words
    told = (run.__doc__ or "").strip()
    one = commands.add_parser(
        name, help=told, description=told, formatter_class=Help,
        epilog=f"example:\n  python -m sd35h5 {name} {example}",
    )  # fmt: skip
    one.set_defaults(run=run)
    path += "; or the address of a file elsewhere (https://…, hf://…, s3://…)" if afar else ""
    one.add_argument(
        "path", type=place if afar else _here, metavar="PATH", nargs="+" if several else None, help=path
    )
    flag(one, "--debug", help="show the traceback of an error")
    return one


def _here(text: str) -> Path:
    if is_address(text):
        raise argparse.ArgumentTypeError(
            "a file elsewhere can be looked at, not worked on: download it first"
        )
    return Path(text)


def flag(one: argparse.ArgumentParser, name: str, **more: object) -> None:
    """Add a switch."""
    option(one, name, action="store_true", **more)


def option(one: argparse.ArgumentParser, name: str, **more: object) -> None:
    """Add an option, which is also read with hyphens for underscores."""
    hyphened = name.replace("_", "-")
    one.add_argument(name, *([hyphened] if hyphened != name else []), **more)


def print_paths(paths: Sequence[Path]) -> int:
    """Tell which files a command made. Returns: the exit status."""
    print("\n".join(map(showable, paths)))
    return 0
