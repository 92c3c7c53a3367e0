"""The linked figure on the dashboard's pages: mounting it, what it is given of a view, what comes back."""
