"""What is chosen on all pages: the sidebar, the address, clicks, and the view that they make."""
