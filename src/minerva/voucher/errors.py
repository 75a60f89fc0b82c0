"""What can go wrong with vouchers and voucher requests."""

from __future__ import annotations

from minerva.core.errors import DecodeError, MinervaError


class VoucherError(MinervaError):
    """Base of all errors of this package; itself, a voucher that must not be made."""


class VoucherDecodeError(DecodeError, VoucherError):
    """Bytes are not the JSON of a voucher or of a voucher request."""


class CmsError(DecodeError, VoucherError):
    """Bytes are not a CMS SignedData with one valid signature of a certificate in it."""


class StatusDecodeError(DecodeError, VoucherError):
    """Bytes are not a status that a pledge reports."""


class AuditLogDecodeError(DecodeError, VoucherError):
    """Bytes are not the audit log of a MASA."""
