"""Vouchers and voucher requests, without sockets (RFC 8366, RFC 8995 section 3)."""
