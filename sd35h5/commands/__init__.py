"""The commands of `python -m sd35h5`, a file a family: options, and the call that does the work elsewhere."""
