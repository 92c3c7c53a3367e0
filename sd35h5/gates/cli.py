"""python -m sd35h5 gates inspect | extract FILE: which gates a checkpoint holds, and taking them out in form (c)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sd35h5.errors import ConfigError


def gates(args: argparse.Namespace) -> int:
    """Tell which gates a checkpoint holds (inspect), or write them as a gates file of our own (extract)."""
    return _extract(args) if args.action == "extract" else _inspect(args)


def add_gates(commands: argparse._SubParsersAction, formatter: type) -> None:
    """Add the command to the parser of `python -m sd35h5`."""
    one = commands.add_parser(
        "gates", help=gates.__doc__, description=gates.__doc__, formatter_class=formatter,
        epilog="example:\n  python -m sd35h5 gates extract model.safetensors --out gates.safetensors",
    )  # fmt: skip
    one.set_defaults(run=gates)
    one.add_argument(
        "action", choices=("inspect", "extract"), help="tell of the gates, or write them to --out"
    )
    one.add_argument("path", type=Path, metavar="FILE", help="a safetensors file: a model, or gates alone")
    one.add_argument("--debug", action="store_true", help="show the traceback of an error")
    one.add_argument("--json", action="store_true", help="inspect: print everything as JSON, for programs")
    one.add_argument("--out", type=Path, help="extract: the file to make, for capture_cli.py --gates")
    answers = {
        "--gate_activation": (("sigmoid", "2sigmoid"), "what the trainer applied to the gate's output"),
        "--gate_zero_rows": (
            ("off", "half"),
            "layers whose rows are all zero have no gate, or a gate of 0.5",
        ),
        "--attn2_layout": (("diffusers", "sd-scripts"), "how attn2 was computed when the model was trained"),
    }
    for name, (choices, told) in answers.items():
        one.add_argument(name, name.replace("_", "-"), choices=choices, help=f"extract: {told}")


def _inspect(args: argparse.Namespace) -> int:
    told = describe_file(args.path)
    if args.json:
        print(json.dumps(told))
        return 0
    for name, value in told.items():
        if isinstance(value, dict):
            value = "; ".join(f"{key} {each}" for key, each in value.items())
        print(f"  {name:<12} {_printable(value) if value is not None else 'not told by the file'}")
    return 0


def _printable(value: object) -> str:
    """A text of a file of weights, in which every character is seen."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))


def describe_file(path: Path) -> dict[str, Any]:
    """What a file tells of its gates, without a model to put them on.

    Raises:
        ConfigError: no readable file, or no gates in it.
    """
    from sd35h5.gates.forms import FORMS, is_zero, zero_attentions
    from sd35h5.gates.gate_files import read_gates
    from sd35h5.gates.texts import tell_layers
    from sd35h5.gates.writers import attn2_layout_by_writer

    source = read_gates(path)
    places = {(int(key.split(".")[1]), key.split(".")[2]) for key in source.tensors}
    shapes = {tuple(tensor.shape) for key, tensor in source.tensors.items() if key.endswith("weight")}
    told = {"headwise" if rows != width else "elementwise" for rows, width in shapes}
    zeros = zero_attentions(source.tensors, source.layers)
    weights = (tensor for key, tensor in source.tensors.items() if key.endswith("weight"))

    def by_target(found: set[tuple[int, str]]) -> dict[str, str]:
        names = {"attn": "joint", "attn2": "attn2"}
        layers = {name: [layer for layer, where in found if where == key] for key, name in names.items()}
        return {name: tell_layers(each) for name, each in layers.items() if each}

    by_writer = attn2_layout_by_writer(source.metadata) or None
    without = "no gate on one" if source.layers is None else "no second attention"
    return {
        "file": path.name,
        "form": f"{source.form}: {FORMS[source.form]}",
        "gate_type": ", ".join(sorted(told)),
        "layers": by_target(places),
        "rows": ", ".join(f"{rows} × {width}" for rows, width in sorted(shapes)),
        "activation": source.metadata.get("activation"),
        "attn2_layout": source.metadata.get("attn2_layout", by_writer if source.second else without),
        "zero_rows": by_target(set(zeros)) or "none",
        "weights": "trained" if any(not is_zero(tensor) for tensor in weights) else "untrained: all zero",
    }


def _extract(args: argparse.Namespace) -> int:
    """Write a form (c) file that answers what the checkpoint left open."""
    from safetensors.torch import save_file

    from sd35h5.gates.forms import OURS, zero_attentions
    from sd35h5.gates.gate_files import read_gates
    from sd35h5.gates.texts import attn2_question, zeros_question
    from sd35h5.gates.writers import attn2_layout_by_writer

    if args.out is None:
        raise ConfigError("say with --out FILE.safetensors where to write the gates")
    if args.out.exists():
        raise ConfigError(f"{args.out} is there already: remove it, or write to another file")
    source = read_gates(args.path)
    zeros = [] if source.form == OURS else zero_attentions(source.tensors, source.layers)
    told = {"activation": args.gate_activation, "attn2_layout": args.attn2_layout}
    for name, asked in told.items():
        if asked and source.metadata.get(name, asked) != asked:
            raise ConfigError(f"{source.name} says {name}={source.metadata[name]}, but {asked} was given")
        told[name] = asked or source.metadata.get(name)
    told["attn2_layout"] = told["attn2_layout"] or attn2_layout_by_writer(source.metadata)
    questions = []
    if source.form != OURS and source.second and not told["attn2_layout"]:
        questions.append(attn2_question(source.name, gated=True))
    if zeros and not args.gate_zero_rows:
        questions.append(zeros_question(source.name, tuple(zeros)))
    if questions:
        raise ConfigError("; and ".join(questions))
    off = (
        {f"transformer_blocks.{layer}.{where}." for layer, where in zeros}
        if args.gate_zero_rows == "off"
        else set()
    )
    kept = {
        key: tensor.contiguous()
        for key, tensor in source.tensors.items()
        if not any(key.startswith(place) for place in off)
    }
    if not kept:
        raise ConfigError(f"{source.name}: with --gate_zero_rows off no gate is left to write")
    rows, width = next(tensor.shape for key, tensor in kept.items() if key.endswith("weight"))
    metadata = {
        "gate_type": "elementwise" if rows == width else "headwise",
        "activation": told["activation"] or "sigmoid",
    }
    save_file(
        kept, args.out, metadata | ({"attn2_layout": told["attn2_layout"]} if told["attn2_layout"] else {})
    )
    print(args.out)
    return 0
