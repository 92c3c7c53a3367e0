"""Following a pipeline: which it may be, which branch each row is, what becomes of its steps."""
