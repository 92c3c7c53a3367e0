"""README and docs/*.md against the code: every command and flag is in one of them and every flag there is real, as is
every file and link; examples run."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import io
import re
import shlex
import tokenize
from dataclasses import fields
from pathlib import Path

import pytest
import tyro
from making.stores import make_store

import capture_cli
from sd35h5 import __main__ as commands
from sd35h5.planning import options, validation

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
README, ALL = PAGES["README.md"], "\n".join(PAGES.values())
GROUPS = (
    *(
        getattr(options, name)
        for name in (
            "Model",
            "Prompts",
            "Sampling",
            "Tiers",
            "GateOptions",
            "CausalOptions",
            "Output",
            "Spread",
        )
    ),
    capture_cli.Action,
)
NOT_OURS = {  # pip's, Slurm's, torchrun's, accelerate's, dask's
    *("--no-deps", "--extra-index-url", "--array", "--time", "--wrap", "--nproc_per_node", "--num_processes"),
    *("--port", "--nthreads", "--memory-limit"),
    *("--rm", "--server"),  # docker's, and Streamlit's --server.baseUrlPath
}
OF_ALL = {"--help"}
BENCHMARK = {"--random", "--rate", "--shape", "--size"}


def _blocks(language: str, text: str = ALL) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _examples(start: str, text: str = ALL) -> list[str]:
    """Lines of the pages' shell blocks that begin a command so."""
    lines = [line for block in _blocks("bash", text) for line in block.splitlines()]
    return [line for line in lines if line.startswith(start)]


def _subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (each for each in commands.parser()._actions if isinstance(each, argparse._SubParsersAction))
    return action.choices


def _store_flags() -> set[str]:
    options = (each for parser in _subcommands().values() for each in parser._actions)
    return {flag for each in options for flag in each.option_strings if flag.startswith("--")} - {"--help"}


SECOND_SPELLINGS = {
    "--skip_images", "--prompts_file", "--ckpt_path", "--clip_l", "--clip_g", "--t5xxl", "--cfg_scale",
    "--t5xxl_token_length", "--keep_unconditional",
}  # fmt: skip


def _capture_flags() -> set[str]:
    return {f"--{field.name}" for group in GROUPS for field in fields(group)} | SECOND_SPELLINGS


def test_every_flag_is_in_the_documentation():
    here = set(re.findall(r"--[a-z][\w-]*", ALL))
    store_flags = {
        flag for flag in _store_flags() if flag.replace("-", "_") == "__" + flag[2:]
    }  # one spelling
    assert not (_capture_flags() | store_flags) - here


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_in_the_documentation_exists(page):
    here = set(re.findall(r"--[a-z][\w-]*", PAGES[page]))
    assert not here - _capture_flags() - _store_flags() - OF_ALL - NOT_OURS - BENCHMARK


@pytest.mark.parametrize("name", sorted(_subcommands()))
def test_every_command_has_help_an_example_of_its_own_and_one_in_the_documentation(name):
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


def _heading_names(text: str) -> set[str]:
    """What GitHub calls the headings of a page in links to them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page):
    links = re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", PAGES[page])
    for name, heading in links:
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), name
        assert not heading or heading in _heading_names(target.read_text(encoding="utf-8")), heading


def test_the_readme_leads_to_every_page_and_stays_short():
    assert set(PAGES) | {"LICENSE", "CITATION.cff"} <= {*re.findall(r"\]\(([\w./-]+)\)", README), "README.md"}
    assert len(README.splitlines()) < 150


SOURCES = [
    *(
        path
        for folder in ("sd35h5", "dashboard", "benchmarks", "tests", "data")
        for path in (ROOT / folder).rglob("*.py")
    ),
    ROOT / "capture_cli.py",
]
OF_OTHERS = {"mmditx.py", "sd3_impls.py"}  # of the original release


def _remarks(source: Path) -> str:
    """The docstrings and comments of a module."""
    tokens = tokenize.generate_tokens(io.StringIO(source.read_text(encoding="utf-8")).readline)
    told = (
        token.string for token in tokens if token.type == tokenize.COMMENT or token.string.startswith('"""')
    )
    return "\n".join(told)


def _absent(text: str) -> list[str]:
    """Programs that a text names, by their name or the end of their path, and that are not there."""
    there = tuple(f"/{path.relative_to(ROOT).as_posix()}" for path in SOURCES)
    named = set(re.findall(r"[\w/]*\w\.py\b", text)) - OF_OTHERS
    return sorted(name for name in named if not any(path.endswith(f"/{name}") for path in there))


def test_every_program_that_a_page_a_docstring_or_a_comment_names_is_there():
    others = [*(ROOT / "data").rglob("README.md"), *(ROOT / "benchmarks" / "results").glob("*.md")]
    texts = PAGES | {path.as_posix(): path.read_text(encoding="utf-8") for path in others}
    texts |= {path.as_posix(): _remarks(path) for path in SOURCES}
    assert not {place: absent for place, text in texts.items() if (absent := _absent(text))}


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_a_page_runs_or_imports_is_there(page):
    modules = re.findall(r"\bpython -m ((?:sd35h5|dashboard)[\w.]*)", PAGES[page])
    modules += re.findall(r"(?:from|import) ((?:sd35h5|dashboard)[\w.]*)", PAGES[page])
    assert not [name for name in modules if importlib.util.find_spec(name) is None]


def test_the_benchmarks_and_their_results_are_named():
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts == set(re.findall(r"^python benchmarks/(\w+\.py)", ALL, re.MULTILINE))
    results = {path.name for path in (ROOT / "benchmarks" / "results").glob("*.md")}
    assert not [name for name in results if f"benchmarks/results/{name})" not in ALL]
    stems = tuple(name.removesuffix(".py") for name in scripts)
    assert all(name.startswith(stems) for name in results)


def test_ci_finds_the_test_line_and_contributing_has_the_same_two():
    lines = [line for line in _examples("python3 -m venv", README) if " && pytest" in line]
    assert len(lines) == 1 and lines[0].index("requirements.txt") < lines[0].index(" && pytest")
    contributing = PAGES["CONTRIBUTING.md"]
    assert _examples("python3 -m venv", contributing) == _examples("python3 -m venv", README)


@pytest.fixture
def example_folder(tmp_path, monkeypatch):
    """A folder with the stores that the examples open; they run there."""
    make_store(tmp_path / "run.h5", sink=4.0)
    make_store(tmp_path / "gated.h5", sink=2.0, gates=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _python_blocks() -> list[str]:
    return [block for block in _blocks("python") if not block.startswith("# needs the weights")]


@pytest.mark.parametrize("block", _python_blocks(), ids=lambda block: block.split("\n\n")[1][:30])
def test_python_examples_run(block, example_folder, tiny_pipeline, capsys):
    exec(compile(block, "example.py", "exec"), {"pipe": tiny_pipeline})
    assert ("print(" in block) == bool(capsys.readouterr().out)
    assert ("capture(" in block) == (example_folder / "apple.h5").is_file()


def test_only_loading_the_weights_is_left_out_of_the_examples():
    left_out = [block for block in _blocks("python") if block.startswith("# needs the weights")]
    assert len(left_out) == 1 and "from_pretrained" in left_out[0] and len(_python_blocks()) >= 4
