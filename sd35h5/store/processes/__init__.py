"""What runs in a process of its own: the checker, the readers, the writer; and what speaks with them."""
