"""python -m sd35h5: info, verify, runs, missing, pack, scores, slice, merge, import, analyze, compare, publish …"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sd35h5.commands import (
    bringing_in,
    cutting_and_joining,
    inspecting,
    packing_and_scores,
    publishing,
    reporting,
)
from sd35h5.commands.command_line import Help
from sd35h5.errors import Sd35h5Error
from sd35h5.gates.cli import add_gates
from sd35h5.store.opening import reason
from sd35h5.store.showable import showable

DESCRIPTION = """Look at, check, pack, cut, join, analyse, compare and export the attention of Stable Diffusion 3.5.

A PATH is run.h5 (also while it is being captured), one sealed sample, or a folder of sealed samples.
To capture: python capture_cli.py --help. To browse: streamlit run dashboard/app.py -- PATH"""


def parser() -> argparse.ArgumentParser:
    """The command line: a subparser a command, each with an example."""
    top = argparse.ArgumentParser("python -m sd35h5", description=DESCRIPTION, formatter_class=Help)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for family in (
        inspecting, packing_and_scores, cutting_and_joining, bringing_in, reporting, publishing,
    ):  # fmt: skip
        family.add(commands)
    add_gates(commands, Help)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns: 0, or 1 after an error in one line on stderr."""
    args = parser().parse_args(arguments)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except Sd35h5Error as error:
        if args.debug:
            raise
        print(f"error: {showable(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except MemoryError:
        if args.debug:
            raise
        print(
            f"error: {args.command} ran out of memory: end other programs, or run it where there is more",
            file=sys.stderr,
        )
        return 1
    except OSError as error:  # `... | head`, or where the output goes is full
        if error.filename is None:  # what is left of the output is not tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        if args.debug:
            raise
        print(f"error: {error.filename or 'the output'}: {reason(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
