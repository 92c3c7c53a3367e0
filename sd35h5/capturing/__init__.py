"""From a plan to sealed samples: the pipeline, its calls, the recorder, sealing. Needs torch."""
