"""Gated attention: its forms in checkpoints, the modules that apply it, the processor that carries it."""
