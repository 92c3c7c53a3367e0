"""The file: its schema, written, packed, read, verified. Without torch."""
