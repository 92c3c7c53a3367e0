"""Command line of a capture: flags -> CaptureConfig -> Job -> printed or drawn, and nothing else."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import OmitArgPrefixes

from sd35h5.errors import ConfigError, Sd35h5Error
from sd35h5.planning.older_flags import check_flags
from sd35h5.planning.options import CaptureConfig, Flag, Text
from sd35h5.store.showable import seen, showable

DESCRIPTION = """Draw with Stable Diffusion 3.5 and measure where every head looks, into one HDF5 file. The
picture is the one that the plain pipeline draws, bit for bit. Options may be written with hyphens, too.

Without weights or a GPU: the bundled tiny models, then the dashboard
$ python capture_cli.py --demo
$ streamlit run dashboard/app.py

For real, and on to the numbers
$ python capture_cli.py --prompt "a red apple" "a cat on a chair" --out run.h5 --seed 0
$ python -m sd35h5 analyze run.h5 --out_dir out

What would it write, and how much?
$ python capture_cli.py --prompt "a red apple" --map_heads all --dry_run"""


@dataclass(frozen=True)
class Action:
    """What to do beside capturing."""

    demo: Flag = False
    """Capture six prompts with the bundled tiny models, baseline and gated, equal seeds, into runs/."""
    dry_run: Flag = False
    """Print the plan (shapes, tiers, bytes) and stop. Nothing is loaded."""
    analyze: Text = ""
    """Then write metrics and charts into this folder, as `python -m sd35h5 analyze` does."""
    first_token_index: int = 0
    """Position on the text axis of the token that --analyze is about."""
    value_col: Literal["first_token_mean", "first_token_share", "text_mass_fraction"] = "first_token_mean"
    """The metric that the charts of --analyze show; its table holds all three."""
    debug: Flag = False
    """Show the traceback of an error, not only its sentence."""


@dataclass(frozen=True)
class CommandLine(CaptureConfig):
    action: Action = field(default_factory=Action)


def main(args: list[str] | None = None) -> int:
    """Parse, capture, and say in one sentence what went wrong. Returns: the exit status."""
    try:
        check_flags(sys.argv[1:] if args is None else args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    line = tyro.cli(
        OmitArgPrefixes[CommandLine],
        prog="capture_cli.py",
        description=DESCRIPTION,
        args=args,
        use_underscores=True,
    )
    from sd35h5.capturing.interrupts import Stopped, heeded_interrupts  # not to print help

    try:
        with heeded_interrupts(is_ending=True):
            return _act(line, line.action)
    except KeyboardInterrupt as stop:
        by = stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT)
        print("stopped" if by.number == signal.SIGINT else f"stopped by {by}", file=sys.stderr)
        return by.status
    except BrokenPipeError:  # `... --dry_run | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if line.action.debug:
            raise
        kind = "" if isinstance(error, Sd35h5Error) else f"{type(error).__name__}: "
        print(f"error: {kind}{showable(error)}", file=sys.stderr)
        return 1


def _act(config: CaptureConfig, action: Action) -> int:
    from sd35h5.planning.demo import demo_configs, run_demo
    from sd35h5.planning.describing import describe
    from sd35h5.planning.job import make_job
    from sd35h5.store.runs import running

    configs = demo_configs(config) if action.demo else [config]
    jobs = [make_job(each, offline_guess=action.dry_run) for each in configs]  # before torch is imported
    if action.dry_run:
        print(seen("\n".join(map(describe, jobs))))
        return 0
    with ExitStack() as held:  # before torch is imported: who has to wait is told at once
        for job in jobs:
            held.enter_context(running(job.out, shared=job.share is not None))
        run, finish_shares, say = _load_capture()
        draw = partial(run, is_held=True)
        stores = run_demo(jobs, draw, say) if action.demo else [draw(job) for job in jobs]
    if jobs[0].share:  # who has let go of the run packs it, if nobody else holds it
        stores = [finish_shares(job.out, job.samples) for job in jobs]
    if action.analyze:
        from sd35h5.reports.analyze import analyze

        for store in stores if not jobs[0].share else filter(Path.is_file, stores):  # by who comes last
            folder = Path(action.analyze) / store.stem if action.demo else Path(action.analyze)
            analyze(store, folder, action.first_token_index, action.value_col)
            print(showable(folder))
    print("\n".join(map(showable, stores)))
    paths = "" if action.demo else f" -- {stores[0]}"
    say(f"look at {'them' if action.demo else 'it'} with: streamlit run dashboard/app.py{paths}")
    return 0


def _load_capture():
    """Import torch and all that needs it, with the libraries' chatter off and our notes on stderr."""
    # before torch is imported: idle threads that spin starve busy cores; torchvision is not needed
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    print("loading torch and diffusers …", file=sys.stderr)
    from sd35h5.capturing.finishing import finish_shares
    from sd35h5.capturing.progress import say
    from sd35h5.capturing.run_job import run

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(f"note: {record.getMessage()}")

    logging.getLogger("sd35h5").addHandler(Notes())
    logging.getLogger("sd35h5").setLevel(logging.INFO)
    return run, finish_shares, say


if __name__ == "__main__":
    sys.exit(main())
