"""Findings: views that were kept with a note, in a small JSON beside their run."""
