"""The adjacency table and whom to build a channel with (RFC 8994 sections 6.3 to 6.7)."""
