"""The console server: serial consoles and BMCs, over the ACP, for many who read and one who writes.

``hub``, ``ring``, ``lease`` and ``events`` are the core of one console and do no input or output; what is
around them is described in docs/console.md.
"""
