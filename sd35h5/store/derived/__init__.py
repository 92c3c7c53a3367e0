"""What a file holds besides what was measured: made of that, and said to be."""
