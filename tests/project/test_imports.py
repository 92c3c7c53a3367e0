"""The house's doors: what may import what, no torch from the store on, public names that nothing hides."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH_SIDE = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "accelerate", "peft")
MOST_FILES, MOST_LINES = 20, 300  # of a folder, of a module
LONGER = {ROOT / "sd35h5" / "store" / "schema.py": 400}  # data
# these may import all rooms, and are imported by none (`import sd35h5` gives the public names)
TELL_THE_VERSION = ("sd35h5.reports",)  # which the package itself holds
ENTRANCES = {"sd35h5", "sd35h5.__main__", "capture_cli", "dashboard.__main__"}


def _drawing() -> dict[str, tuple[str, tuple[str, ...]]]:
    """docs/architecture.md's table: room -> (torch: no, in part or yes; the rooms that it may import)."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(sd35h5\.\w+|dashboard)` \|[^|]+\| (no|in part|yes) \| ?([^|]*)\|$", text, re.MULTILINE
    )
    return {
        room: (torch, tuple(f"sd35h5.{name}" for name in others.replace(",", " ").split()))
        for room, torch, others in rows
    }


DRAWING = _drawing()
MAY_IMPORT = {room: others for room, (_, others) in DRAWING.items()}
TORCH_FREE = tuple(room for room, (torch, _) in DRAWING.items() if torch == "no")
TORCH_ROOMS = tuple(room for room, (torch, _) in DRAWING.items() if torch != "no")
ONLY_IN = {  # library -> where it may be imported
    "h5py": ("sd35h5.store",),
    "altair": ("sd35h5.figures", "sd35h5.reports", "dashboard"),
    "streamlit": ("dashboard", "dashboard.__main__"),
    "triton": ("sd35h5.measuring", "sd35h5.weights"),
    "tyro": ("sd35h5.flags", "sd35h5.planning", "sd35h5.gates", "sd35h5.weights", "capture_cli"),
    **dict.fromkeys(TORCH_SIDE, TORCH_ROOMS),
}


def _modules() -> dict[str, Path]:
    files = [*(ROOT / "sd35h5").rglob("*.py"), *(ROOT / "dashboard").rglob("*.py"), ROOT / "capture_cli.py"]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


MODULES = _modules()


@cache
def _imports(name: str) -> frozenset[str]:
    """Every module that a file imports when it runs, inside functions too."""
    return frozenset(_imports_of(ast.parse(MODULES[name].read_text(encoding="utf-8")), name, types=False))


@cache
def _imports_with_types(name: str) -> frozenset[str]:
    """The same with what is imported for type checking alone."""
    return frozenset(_imports_of(ast.parse(MODULES[name].read_text(encoding="utf-8")), name, types=True))


def _imports_of(tree: ast.AST, name: str, types: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name if name in ("sd35h5", "dashboard") else name.rpartition(".")[0]
            base = f"{package}.{node.module or ''}".strip(".") if node.level else str(node.module)
            inside = [f"{base}.{alias.name}" for alias in node.names]
            yield from ([module for module in inside if module in MODULES] or [base])
        elif types or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from _imports_of(node, name, types)


def _can_be_imported(name: str) -> bool:
    """False for the kernels where triton is not installed."""
    return "triton" not in _imports(name) or find_spec("triton") is not None


def _room(name: str) -> str:
    """The key of MAY_IMPORT that a module belongs to."""
    return next(room for room in MAY_IMPORT if name == room or name.startswith(f"{room}."))


INSIDE = sorted(set(MODULES) - ENTRANCES)


@pytest.mark.parametrize("name", INSIDE)
def test_imports_follow_the_flow(name):
    room = _room(name)
    for other in sorted(_imports_with_types(name) & set(MODULES)):
        if other == "sd35h5" and room in TELL_THE_VERSION:
            continue
        entrance = other in ENTRANCES
        assert other in MAY_IMPORT[room] if entrance else _room(other) in (room, *MAY_IMPORT[room]), other


def test_every_folder_is_in_the_drawing_and_the_drawing_has_no_others():
    rooms = {_room(name) for name in INSIDE}
    assert rooms == set(MAY_IMPORT)
    assert {other for others in MAY_IMPORT.values() for other in others} <= rooms


def test_the_drawing_runs_one_way():
    assert len(list(TopologicalSorter(MAY_IMPORT).static_order())) == len(MAY_IMPORT)


def test_folders_and_modules_stay_small():
    every = [
        path
        for part in ("sd35h5", "dashboard", "tests", "benchmarks")
        for path in (ROOT / part).rglob("*.py")
    ]
    folders = Counter(path.parent for path in every)
    assert not {str(folder): count for folder, count in folders.items() if count > MOST_FILES}
    for path in [*MODULES.values(), *(ROOT / "benchmarks").rglob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGER.get(path, MOST_LINES), path


def test_no_two_files_have_the_same_name():
    """A test, a room and the dashboard may speak of one subject; a name alone must tell which file is meant."""
    tracked = [
        path
        for folder in ("sd35h5", "dashboard", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    names = Counter(path.name for path in tracked if not path.name.startswith("__"))
    assert not [name for name, count in names.items() if count > 1]


def test_no_two_modules_import_each_other_even_by_detours():
    graph = {name: _imports_with_types(name) & set(INSIDE) - {name} for name in INSIDE}
    assert len(list(TopologicalSorter(graph).static_order())) == len(INSIDE)


@pytest.mark.parametrize("name", INSIDE)
def test_libraries_stay_in_their_rooms(name):
    libraries = {module.partition(".")[0] for module in _imports(name)}
    for library, rooms in ONLY_IN.items():
        assert library not in libraries or _room(name) in rooms, f"{name} imports {library}"


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_the_store_on_everything_imports_where_torch_is_not_installed():
    free = [module for module in INSIDE if _room(module) in TORCH_FREE]
    # the dashboard's pages and app draw when they are imported; their imports are checked above
    free = [module for module in free if not module.startswith(("dashboard.views", "dashboard.app"))]
    _run(
        "import sys, importlib\n"
        "class Absent:  # not None in sys.modules, which scipy takes for an imported torch\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] in {TORCH_SIDE!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"for name in {[*free, 'sd35h5', 'sd35h5.__main__']!r}: importlib.import_module(name)\n"
        "import sd35h5\n"
        "sd35h5.open_store, sd35h5.verify, sd35h5.metrics, sd35h5.compare"
    )


def test_options_are_read_without_torch():
    _run(
        "import sys, capture_cli, sd35h5.planning.plan, sd35h5.weights.model_facts; assert 'torch' not in sys.modules"
    )


def test_gates_need_neither_the_store_nor_the_command_line():
    code = (
        "import sys, json, sd35h5.gates.modules; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    )
    assert not set(json.loads(_run(code))) & {"h5py", "xarray", "pandas", "tyro", "streamlit", "altair"}


def test_importing_the_package_alone_imports_nothing_heavy():
    code = "import sys, json, sd35h5; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    assert not set(json.loads(_run(code))) & {"torch", "numpy", "h5py", "xarray", "pandas"}


def test_public_names_stay_functions_after_every_module_was_imported():
    code = (
        "import importlib, json, sd35h5\n"
        f"for name in {[name for name in INSIDE if name.startswith('sd35h5.') and _can_be_imported(name)]!r}:\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps({name: type(getattr(sd35h5, name)).__name__ for name in sd35h5.__all__}))"
    )
    kinds = json.loads(_run(code))
    assert [kinds[name] for name in ("capture", "open_store", "verify")] == ["function"] * 3
    assert [kinds[name] for name in ("metrics", "compare")] == ["module"] * 2
    assert {kinds[name] for name in kinds if name[0].isupper()} == {"type"}


def test_the_public_names_are_the_ones_that_type_checkers_see():
    import sd35h5

    tree = ast.parse(inspect.getsource(sd35h5))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert seen == set(sd35h5.__all__)
