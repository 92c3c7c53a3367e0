"""The house's doors: what may import what, no torch from the store on, public names that nothing hides."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH_SIDE = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "accelerate")

# DESIGN section 3 as rows: the flow is left to right, top to bottom within a side. The file format stands
# between the two sides: both may import it, it imports neither, and neither imports the other.
STORE = (
    {"sd35h5.errors"},
    {"sd35h5.schema", "sd35h5.blocks", "sd35h5.layout", "sd35h5.runs", "sd35h5.packing"}
    | {"sd35h5.chunks", "sd35h5.drain"},
    {"sd35h5.writer", "sd35h5.parts", "sd35h5.reader", "sd35h5.tree", "sd35h5.spec", "sd35h5.info"}
    | {"sd35h5.verifying", "sd35h5.check", "sd35h5.check_objects"},
)
CAPTURE = (
    {"sd35h5.gate_texts", "sd35h5.gate_options"},
    {"sd35h5.tokens", "sd35h5.config", "sd35h5.facts", "sd35h5.plan", "sd35h5.call"}
    | {"sd35h5.selectors", "sd35h5.budget"}
    | {"sd35h5.checkpoints", "sd35h5.weight_layouts", "sd35h5.model_configs", "sd35h5.sources"},
    {"sd35h5.gate_forms", "sd35h5.attention", "sd35h5.gates", "sd35h5.gate_files", "sd35h5.pipelines"}
    | {"sd35h5.gate_choice"}
    | {"sd35h5.fetching", "sd35h5.frame", "sd35h5.loading"},
    {"sd35h5.reductions", "sd35h5.gate_measures", "sd35h5.tiers", "sd35h5.probe"},
    {"sd35h5.recorder", "sd35h5.session", "sd35h5.watcher"},
    {"sd35h5.capturing", "sd35h5.gate_cli", "sd35h5.demo"},
)
ANALYSIS = (
    {"sd35h5.targets", "sd35h5.means"},
    {"sd35h5.metrics", "sd35h5.sinks", "sd35h5.topkeys", "sd35h5.gating", "sd35h5.effects"},
    {"sd35h5.measures", "sd35h5.compare", "sd35h5.maps", "sd35h5.pictures", "sd35h5.definitions"},
    {"sd35h5.scales", "sd35h5.charts", "sd35h5.figures"},
    {"sd35h5.report", "sd35h5.comparison", "sd35h5.comparison_html"},
    {"dashboard", "dashboard.data", "dashboard.sidebar", "dashboard.panels", "dashboard.app"}
    | {f"dashboard.views.{path.stem}" for path in (ROOT / "dashboard/views").glob("*.py")},
)
# these may import all of them, and are imported by none
ENTRANCES = {"sd35h5", "sd35h5.__main__", "capture_cli", "dashboard.__main__"}
ROWS = {
    side: rows
    for side, rows in zip(("store", "capture", "analysis"), (STORE, CAPTURE, ANALYSIS), strict=True)
}
PLACE = {
    module: (side, row)
    for side, rows in ROWS.items()
    for row, modules in enumerate(rows)
    for module in modules
}
ONLY_IN = {  # library -> the modules that may import it
    "h5py": {module for rows in STORE for module in rows},
    "altair": {*ANALYSIS[3], *ANALYSIS[4], *ANALYSIS[5]},
    "streamlit": {*ANALYSIS[5], "dashboard.__main__"},
    **dict.fromkeys(TORCH_SIDE, {module for rows in CAPTURE for module in rows}),
}


def _modules() -> dict[str, Path]:
    files = [*(ROOT / "sd35h5").glob("*.py"), *(ROOT / "dashboard").rglob("*.py"), ROOT / "capture_cli.py"]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


MODULES = _modules()


@cache
def _imports(name: str) -> frozenset[str]:
    """Every module that a file imports, inside functions too, but not for type checking alone."""
    return frozenset(_imports_of(ast.parse(MODULES[name].read_text(encoding="utf-8")), name))


def _imports_of(tree: ast.AST, name: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name if name in ("sd35h5", "dashboard") else name.rpartition(".")[0]
            base = f"{package}.{node.module or ''}".strip(".") if node.level else str(node.module)
            inside = [f"{base}.{alias.name}" for alias in node.names]
            yield from ([module for module in inside if module in MODULES] or [base])
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from _imports_of(node, name)


def test_every_module_has_its_place_in_the_house():
    assert set(PLACE) | ENTRANCES == set(MODULES)
    assert not set(PLACE) & ENTRANCES


@pytest.mark.parametrize("name", sorted(PLACE))
def test_imports_follow_the_flow(name):
    side, row = PLACE[name]
    for other in sorted(_imports(name) & set(MODULES)):
        assert other in PLACE, f"{name} imports the entrance {other}"
        to_side, to_row = PLACE[other]
        assert to_side in (side, "store"), f"{name} ({side}) imports {other} ({to_side})"
        if to_side == side:
            assert to_row <= row, f"{name} imports {other}, which comes after it"


@pytest.mark.parametrize("name", sorted(PLACE))
def test_libraries_stay_in_their_rooms(name):
    libraries = {module.partition(".")[0] for module in _imports(name)}
    for library, rooms in ONLY_IN.items():
        assert library not in libraries or name in rooms, f"{name} imports {library}"


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_the_store_on_everything_imports_where_torch_is_not_installed():
    free = sorted(module for rows in (STORE, ANALYSIS) for row in rows for module in row)
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
    _run("import sys, capture_cli, sd35h5.plan, sd35h5.facts; assert 'torch' not in sys.modules")


def test_gates_need_neither_the_store_nor_the_command_line():
    code = "import sys, json, sd35h5.gates; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    assert not set(json.loads(_run(code))) & {"h5py", "xarray", "pandas", "tyro", "streamlit", "altair"}


def test_importing_the_package_alone_imports_nothing_heavy():
    code = "import sys, json, sd35h5; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    assert not set(json.loads(_run(code))) & {"torch", "numpy", "h5py", "xarray", "pandas"}


def test_public_names_stay_functions_after_every_module_was_imported():
    code = (
        "import importlib, json, sd35h5\n"
        f"for name in {sorted(name for name in PLACE if name.startswith('sd35h5.'))!r}:\n"
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
