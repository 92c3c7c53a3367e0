"""Random small models for the comparison with brute force: with and without norms, attn2 and gates."""

from __future__ import annotations

import torch
from making.pipelines import make_pipeline

from sd35h5.gates.modules import build_gates, install_gates

DUAL = ((0, 1), (1,), ())  # layers with a second attention, by model


def sharpen(transformer, factor: float) -> None:
    """Multiply all queries, so that heads choose among keys as SD3.5's do.

    Random weights attend almost evenly, and a Gini coefficient near 0 is the difference of two near-equal numbers: its
    error, 2e-7 (1e-4 through rounded arrays), would be large beside it.
    """
    for block in transformer.transformer_blocks:
        for attn in filter(None, (block.attn, block.attn2)):
            names = ("to_q", "add_q_proj") if attn.norm_q is None else ("norm_q", "norm_added_q")
            for module in filter(None, (getattr(attn, name, None) for name in names)):
                for parameter in module.parameters():
                    parameter.data *= factor


def models(count: int):
    """Yield (name, pipeline, seed): random models, each also with random gates on every attention, and those with
    attn2 also in sd-scripts' layout of it."""
    for seed in range(count):
        dual = DUAL[seed % len(DUAL)]
        kind = "headwise" if seed % 2 == 0 else "elementwise"
        variants = [(None, "diffusers"), (kind, "diffusers")] + [(kind, "sd-scripts")] * bool(dual)
        for gate_type, layout in variants:
            norm = "rms_norm" if seed % 2 == 0 else None
            pipe = make_pipeline(qk_norm=norm, seed=seed, dual_attention_layers=dual)
            sharpen(pipe.transformer, 2 if norm else 8)
            if gate_type is not None:
                gates = build_gates(pipe.transformer, gate_type, target="all")
                for _, _, gate in gates.all():
                    for parameter in gate.parameters():
                        torch.nn.init.normal_(parameter, std=0.5)
                install_gates(pipe.transformer, gates, layout)
            told = f"attn2 in layers {list(dual)}, {layout}' layout" if dual else "no attn2"
            yield f"model {seed}, {told}, gates {gate_type or 'none'}", pipe, 100 * seed
