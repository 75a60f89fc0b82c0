"""The node: a supervisor and its unprivileged children."""
