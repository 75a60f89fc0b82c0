"""IKEv2 (RFC 7296) to the profile of RFC 8994 section 6.8.3."""
