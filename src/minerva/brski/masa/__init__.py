"""The MASA: the maker's service that says to whom a device belongs (RFC 8995 sections 5.4 to 5.8)."""
