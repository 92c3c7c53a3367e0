"""Files of weights that are stored in fewer bits than they are computed in."""
