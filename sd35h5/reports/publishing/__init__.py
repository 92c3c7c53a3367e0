"""A page to send: runs as a static site or as one HTML file, with no Python behind it."""
