"""Every way SD3 weights come, to one diffusers pipeline."""
