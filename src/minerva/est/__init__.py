"""What the messages of Enrollment over Secure Transport hold (RFC 7030, RFC 8951, RFC 9908)."""
