"""From a job to a file: what is left of it, drawing batches here or with workers, and what becomes of the samples."""
