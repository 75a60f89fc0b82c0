"""TLS between components of the ACP, without sockets (RFC 8994 section 6.1)."""
