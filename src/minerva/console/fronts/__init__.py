"""The ways in to consoles, for people and for tools; each serves sockets that it is given."""
