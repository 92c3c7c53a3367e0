"""Many processes that fill one capture: whose sample is whose, names that nobody else writes to, what failed."""
