"""Parts of the picture: what lies in a region of it, and where the true objects are."""
