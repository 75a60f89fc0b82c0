"""Values of objectives on the command line: given and shown as JSON, or shown in CBOR's diagnostic notation.

JSON says less than CBOR does, so some values have a form of their own, here in both directions:

* bytes are ``{"hex": "c0ffee"}``;
* a tag is ``{"tag": 24, "value": {"hex": "182a"}}``;
* a map with keys that are not text, or that looks like one of these, is ``{"map": [[key, value], ...]}``;
* ``{"float": "NaN"}``, ``"Infinity"``, ``"-Infinity"``; ``{"simple": 23}`` is undefined.

What comes from the network may hold anything, terminal escape sequences included: nothing here lets a
character through that does not print.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cbor2 import CBORSimpleValue, CBORTag, undefined

from minerva.core import cbor
from minerva.core.errors import UsageError
from minerva.grasp.options import NO_VALUE

_FORMS: Final = ({"hex"}, {"tag", "value"}, {"map"}, {"float"}, {"simple"})
_FLOATS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_UNDEFINED: Final = 23
_WIDTH: Final = 60
"""A table shows that much of a cell."""


def printable(text: str) -> str:
    """Return ``text`` with everything that does not print as an escape sequence of JSON."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else json.dumps(char)[1:-1].replace("\x7f", "\\u007f") for char in text
    )


def dumps(item: Any) -> str:
    """Return ``item`` as one line of JSON, in ASCII without control characters."""
    return json.dumps(item).replace("\x7f", "\\u007f")


def to_json(value: Any) -> Any:
    """Return a decoded CBOR item as what JSON can say, in the forms above."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": _float(value)}
    if isinstance(value, CBORTag):
        return {"tag": value.tag, "value": to_json(value.value)}
    if value is undefined:
        return {"simple": _UNDEFINED}
    if isinstance(value, CBORSimpleValue):
        return {"simple": int(value.value)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and set(value) not in _FORMS:
            return {key: to_json(item) for key, item in value.items()}
        return {"map": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(item: Any) -> Any:
    """Return the value that decoded JSON stands for. Raises UsageError."""
    if isinstance(item, list):
        return [from_json(element) for element in item]
    if not isinstance(item, dict):
        return item
    if set(item) not in _FORMS:
        return {key: from_json(element) for key, element in item.items()}
    try:
        return _from_form(item)
    except (TypeError, ValueError, LookupError) as error:
        raise UsageError(f"{printable(dumps(item))} is none of the forms for what JSON cannot say") from error


def _from_form(item: dict[str, Any]) -> Any:
    if "hex" in item:
        return bytes.fromhex(item["hex"])
    if "float" in item:
        return _FLOATS[item["float"]]
    if "simple" in item:
        return undefined if item["simple"] == _UNDEFINED else CBORSimpleValue(item["simple"])
    if "map" in item:
        return {_key(from_json(key)): from_json(value) for key, value in item["map"]}
    return CBORTag(item["tag"], from_json(item["value"]))


def _key(key: Any) -> Any:
    """Return a key as Python can have it in a dictionary."""
    return tuple(_key(item) for item in key) if isinstance(key, list) else key


def _float(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def shown(value: Any) -> str:
    """Return a decoded CBOR item for people: diagnostic notation (RFC 8949 section 8), printable."""
    if value is NO_VALUE:
        return "no value"
    if isinstance(value, str):
        return printable(json.dumps(value, ensure_ascii=False))
    if isinstance(value, bytes):
        return f"h'{value.hex()}'"
    if isinstance(value, float) and not math.isfinite(value):
        return _float(value)
    if isinstance(value, CBORTag):
        return f"{value.tag}({shown(value.value)})"
    if value is undefined:
        return "undefined"
    if isinstance(value, CBORSimpleValue):
        return f"simple({value.value})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{shown(key)}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return json.dumps(value)


def parse(
    text: str | None, in_cbor: str | None = None, *, name: str = "VALUE", option: str = "--cbor"
) -> Any:
    """Return the value given as JSON ``text`` or as CBOR in hexadecimal; ``NO_VALUE`` if neither is.

    Raises UsageError.
    """
    if in_cbor is not None:
        if text is not None:
            raise UsageError(f"give {name} or {option}, not both")
        try:
            return cbor.loads(bytes.fromhex(in_cbor))
        except ValueError:
            raise UsageError(f"{option} takes hexadecimal digits, not {printable(in_cbor)!r}") from None
        except cbor.CborError as error:
            raise UsageError(f"{option}: {error}") from error
    if text is None:
        return NO_VALUE
    try:
        return from_json(json.loads(text))
    except (ValueError, RecursionError):
        hint = f"; text needs its own quotes, as in '\"{text}\"'" if text.isalnum() else ""
        raise UsageError(f"{printable(text)} is not JSON{hint}") from None


def table(head: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> str:
    """Return a table, or ``empty`` in its place. Every cell is made printable, and cut if it is too long."""
    if not rows:
        return empty
    cells = [list(head), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _cell(cell: object) -> str:
    text = "-" if cell is None or cell == "" else printable(str(cell))
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
