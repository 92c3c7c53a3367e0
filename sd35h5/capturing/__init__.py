"""From a call of the pipeline to a sealed sample: options, plan, probe, reductions, recorder."""
