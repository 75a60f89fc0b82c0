"""Identity: acp-node-name, ACP addresses, certificates and the membership check (RFC 8994 section 6.2)."""
