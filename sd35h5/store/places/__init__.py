"""Where a file is: on this machine, or afar and read a few blocks at a time."""
