"""The kinds of lines: one module each, all with the same shape (``base.Backend``)."""
