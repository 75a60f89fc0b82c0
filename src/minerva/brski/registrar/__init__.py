"""The registrar: it lets devices into the operator's domain (RFC 8995 section 5)."""
