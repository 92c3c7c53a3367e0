"""One linked figure of layer × head × step, as JavaScript and the data that it is given: see linked_view.js."""
