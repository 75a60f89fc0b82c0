"""The description of the registrar's HTTP interface (OpenAPI 3.1), for those who test it."""

from __future__ import annotations

from typing import Any

from minerva import __version__
from minerva.brski.registrar import app, est
from minerva.brski.registrar.masa_client import VOUCHER_CMS_JSON
from minerva.brski.registrar.telemetry import JSON

_REFUSALS = {
    "400": "The request cannot be read",
    "401": "The device sees another certificate than ours in TLS, or shows none; the connection is closed",
    "403": "Not let in; an operator could change that",
    "404": "The device is not known here, or refused",
    "406": "In an unknown format, or the manufacturer's answer is not acceptable",
    "413": "The request is too long",
    "415": "The request is of another media type",
    "501": "Not offered",
    "502": "The manufacturer's service gives no voucher",
    "503": "Try again later",
}
_STATUS = {
    "type": "object",
    "required": ["version", "status"],
    "properties": {
        "version": {"type": "integer", "minimum": 0},
        "status": {"type": "boolean"},
        "reason": {"type": "string"},
        "reason-context": {"type": "object"},
    },
}
_BINARY = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_PKCS7 = "application/pkcs7-mime"


def describe() -> dict[str, Any]:
    """Return the description."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Registrar (RFC 8995, RFC 7030)", "version": __version__},
        "paths": {
            f"{app.PREFIX}/requestvoucher": {
                "post": _operation(
                    "Ask for a voucher (RFC 8995 section 5.2)",
                    {VOUCHER_CMS_JSON: _BINARY},
                    {VOUCHER_CMS_JSON: _BINARY},
                    waits=True,
                )
            },
            f"{app.PREFIX}/voucher_status": {
                "post": _operation("Report on the voucher (RFC 8995 section 5.7)", {JSON: _STATUS}, {})
            },
            f"{app.PREFIX}/enrollstatus": {
                "post": _operation("Report on the enrolment (RFC 8995 section 5.9.4)", {JSON: _STATUS}, {})
            },
            f"{est.PREFIX}/cacerts": {
                "get": _operation("The CA certificates (RFC 7030 section 4.1)", None, {_PKCS7: _BASE64})
            },
            f"{est.PREFIX}/csrattrs": {
                "get": _operation(
                    "What a certificate request has to hold (RFC 7030 section 4.5)",
                    None,
                    {"application/csrattrs": _BASE64},
                )
            },
            **{
                f"{est.PREFIX}/{name}": {
                    "post": _operation(
                        f"A certificate (RFC 7030 section 4.2): {name}",
                        {"application/pkcs10": _BASE64},
                        {_PKCS7: _BASE64},
                        waits=True,
                    )
                }
                for name in ("simpleenroll", "simplereenroll")
            },
        },
    }


def _operation(
    summary: str, request: dict[str, Any] | None, response: dict[str, Any], *, waits: bool = False
) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": "It is done", **_content(response)}}
    if waits:
        answers["202"] = {
            "description": "Not yet: ask the same again after Retry-After",
            **_TEXT,
        }
    answers |= {status: {"description": text, **_TEXT} for status, text in _REFUSALS.items()}
    operation: dict[str, Any] = {"summary": summary, "responses": answers}
    if request is not None:
        operation["requestBody"] = {"required": True, **_content(request)}
    return operation


def _content(types: dict[str, Any]) -> dict[str, Any]:
    return {"content": {kind: {"schema": schema} for kind, schema in types.items()}} if types else {}


_TEXT = _content({"text/plain": {"type": "string"}})
