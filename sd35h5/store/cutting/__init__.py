"""Files made of other files: slices, which hold a part of one, and merges, which hold the samples of several."""
