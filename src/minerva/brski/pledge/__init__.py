"""The pledge: a device that knows nothing but its maker (RFC 8995 sections 2 and 5)."""
