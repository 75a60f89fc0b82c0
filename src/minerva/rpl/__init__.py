"""RPL (RFC 6550) to the profile of RFC 8994 section 6.12."""
