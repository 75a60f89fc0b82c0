"""The description of the MASA's HTTP interface (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any

from minerva import __version__

_VOUCHER = "application/voucher-cms+json"


def describe(path: str) -> dict[str, Any]:
    """Return the description of the interface below ``path``."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "MASA (RFC 8995)", "version": __version__},
        "paths": {
            f"{path}/requestvoucher": {
                "post": {
                    "operationId": "requestVoucher",
                    "summary": "Ask for a voucher (section 5.5)",
                    "requestBody": _request_body(),
                    "responses": {
                        "200": {"description": "The voucher", "content": {_VOUCHER: {"schema": _BINARY}}},
                        **_refusals(
                            {
                                "400": "The request cannot be read",
                                "403": "Not signed by a registrar, stale, or the device is another's",
                                "404": "The device is not known",
                                "406": "No voucher of the wanted type",
                                "413": "The request is too long",
                                "415": "The request is of another media type",
                                "503": "Try again later",
                            }
                        ),
                    },
                }
            },
            f"{path}/requestauditlog": {
                "post": {
                    "operationId": "requestAuditLog",
                    "summary": "Ask for the log of a device (section 5.8)",
                    "requestBody": _request_body(),
                    "responses": {
                        "200": {
                            **_log(),
                            "headers": {
                                "Location": {
                                    "description": "Where the log can be had again",
                                    "schema": {"type": "string"},
                                }
                            },
                        },
                        **_refusals(
                            {
                                "400": "The request cannot be read",
                                "403": "Not signed by a registrar",
                                "404": "The device is not known, or was never the registrar's",
                                "413": "The request is too long",
                                "415": "The request is of another media type",
                                "503": "Try again later",
                            }
                        ),
                    },
                }
            },
            f"{path}/auditlog/{{slug}}": {
                "get": {
                    "operationId": "auditLog",
                    "summary": "Get a log by the URL that an answer gave",
                    "parameters": [
                        {
                            "name": "slug",
                            "in": "path",
                            "required": True,
                            "schema": {"type": "string", "minLength": 1},
                        }
                    ],
                    "responses": {
                        "200": _log(),
                        **_refusals({"404": "There is no such log", "503": "Try again later"}),
                    },
                }
            },
        },
    }


_BINARY = {"type": "string", "format": "binary"}

_COUNT = {"type": "integer", "minimum": 0, "maximum": 1024}

# RFC 8995 figure 17.
_LOG = {
    "type": "object",
    "required": ["version", "events"],
    "properties": {
        "version": {"type": "integer", "minimum": 1},
        "events": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["date", "domainID", "nonce", "assertion"],
                "properties": {
                    "date": {"type": "string", "format": "date-time"},
                    "domainID": {"type": "string"},
                    "nonce": {"type": ["string", "null"]},
                    "assertion": {"enum": ["verified", "logged", "proximity"]},
                    "truncated": _COUNT,
                },
            },
        },
        "truncation": {
            "type": "object",
            "properties": {
                "nonced duplicates": _COUNT,
                "nonceless duplicates": _COUNT,
                "arbitrary": _COUNT,
            },
        },
    },
}


def _request_body() -> dict[str, Any]:
    return {"required": True, "content": {_VOUCHER: {"schema": _BINARY}}}


def _log() -> dict[str, Any]:
    return {"description": "The log", "content": {"application/json": {"schema": _LOG}}}


def _refusals(reasons: dict[str, str]) -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {status: {"description": reason, "content": text} for status, reason in reasons.items()}
