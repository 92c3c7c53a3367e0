"""Files and pages: analyze, export, comparisons, HTML, what is in a file, the tables of docs/."""
