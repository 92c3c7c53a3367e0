"""The README against the code: every command and flag is in it and every flag in it is real; examples run."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import tyro
from making.stores import make_store

import capture_cli
from sd35h5 import __main__ as commands
from sd35h5.planning import options, validation

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUPS = (
    *(
        getattr(options, name)
        for name in ("Model", "Prompts", "Sampling", "Tiers", "GateOptions", "CausalOptions", "Output")
    ),
    capture_cli.Action,
)
NOT_OURS = {"--no-deps", "--extra-index-url"}  # pip's
BENCHMARK = {"--random", "--shape", "--size"}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def _examples(start: str) -> list[str]:
    """Lines of the README's shell blocks that begin a command so, comments taken off."""
    lines = [line for block in _blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith(start)]


def _subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (each for each in commands.parser()._actions if isinstance(each, argparse._SubParsersAction))
    return action.choices


def _store_flags() -> set[str]:
    options = (each for parser in _subcommands().values() for each in parser._actions)
    return {flag for each in options for flag in each.option_strings if flag.startswith("--")} - {"--help"}


SECOND_SPELLINGS = {"--skip_images", "--ckpt_path", "--clip_l", "--clip_g", "--t5xxl"}


def _capture_flags() -> set[str]:
    return {f"--{field.name}" for group in GROUPS for field in fields(group)} | SECOND_SPELLINGS


def test_every_flag_is_in_the_readme():
    here = set(re.findall(r"--[a-z][\w-]*", README))
    store_flags = {
        flag for flag in _store_flags() if flag.replace("-", "_") == "__" + flag[2:]
    }  # one spelling
    assert not (_capture_flags() | store_flags) - here


def test_every_flag_in_the_readme_exists():
    here = set(re.findall(r"--[a-z][\w-]*", README))
    assert not here - _capture_flags() - _store_flags() - NOT_OURS - BENCHMARK


@pytest.mark.parametrize("name", sorted(_subcommands()))
def test_every_command_has_help_an_example_of_its_own_and_one_in_the_readme(name):
    parser = _subcommands()[name]
    assert parser.description and parser.epilog.startswith(f"example:\n  python -m sd35h5 {name} ")
    assert all(action.help for action in parser._actions)
    assert _examples(f"python -m sd35h5 {name} ")


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_every_flag_group_and_flag_of_a_capture_has_help_and_the_group_an_example(group):
    assert group.__doc__ and not group.__doc__.startswith(group.__name__)
    body = ast.parse(inspect.getsource(group)).body[0].body
    for node, after in zip(body, body[1:] + [None], strict=True):
        if isinstance(node, ast.AnnAssign):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
            assert told, f"--{node.target.id} has no explanation after its field"
    flags = {f"--{field.name}" for field in fields(group)}
    assert any(flags & set(shlex.split(line)) for line in _examples("python capture_cli.py"))


@pytest.mark.parametrize("line", _examples("python capture_cli.py"))
def test_capture_examples_are_understood(line):
    parsed = tyro.cli(
        tyro.conf.OmitArgPrefixes[capture_cli.CommandLine], args=shlex.split(line)[2:], use_underscores=True
    )
    validation.validate_tiers(parsed.tiers, parsed.sampling.steps)


@pytest.mark.parametrize("line", _examples("python -m sd35h5"))
def test_examples_of_the_store_are_understood(line):
    assert commands.parser().parse_args(shlex.split(line, comments=True)[3:]).command


def test_the_files_that_the_readme_names_are_there():
    named = set(re.findall(r"\]\(([\w./-]+)\)", README)) | set(
        re.findall(r"python (benchmarks/\w+\.py)", README)
    )
    assert {"docs/format.md", "LICENSE", "CITATION.cff", "benchmarks/demo_cost.py"} <= named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_ci_finds_the_test_line():
    lines = [line for line in _examples("python3 -m venv") if " && pytest" in line]
    assert len(lines) == 1 and lines[0].index("requirements.txt") < lines[0].index(" && pytest")


@pytest.fixture
def readme_folder(tmp_path, monkeypatch):
    """A folder with the stores that the README's examples open; they run there."""
    make_store(tmp_path / "run.h5", sink=4.0)
    make_store(tmp_path / "gated.h5", sink=2.0, gates=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _python_blocks() -> list[str]:
    return [block for block in _blocks("python") if not block.startswith("# needs the weights")]


@pytest.mark.parametrize("block", _python_blocks(), ids=lambda block: block.split("\n\n")[1][:30])
def test_python_examples_run(block, readme_folder, tiny_pipeline, capsys):
    exec(compile(block, "README.md", "exec"), {"pipe": tiny_pipeline})
    assert ("print(" in block) == bool(capsys.readouterr().out)
    assert ("capture(" in block) == (readme_folder / "apple.h5").is_file()


def test_only_loading_the_weights_is_left_out_of_the_examples():
    left_out = [block for block in _blocks("python") if block.startswith("# needs the weights")]
    assert len(left_out) == 1 and "from_pretrained" in left_out[0] and len(_python_blocks()) >= 4
