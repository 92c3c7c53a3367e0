"""One call of the transformer: the attention call itself, the probe beside it, and the reductions. Needs torch."""
