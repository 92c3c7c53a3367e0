"""Adapters: LoRA, DoRA, LoHa and LoKr in files and on models, read, checked, applied and named."""
