"""Models that are in memory: what they hold, and which models they are."""
