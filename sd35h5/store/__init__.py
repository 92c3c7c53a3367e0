"""The file: its schema, written, packed, read, verified. Without torch, as all that comes after it."""
