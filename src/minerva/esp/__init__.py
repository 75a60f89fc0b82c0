"""ESP packets and security associations (RFC 4303)."""
