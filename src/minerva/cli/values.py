"""Values of objectives on the command line: JSON is taken for what it says.

What JSON cannot say has the forms that :func:`minerva.grasp.text.json_data` writes: ``{"hex": "c0ffee"}``,
``{"tag": 24, "value": ...}``, ``{"map": [[key, value], ...]}``, ``{"float": "NaN"}``, ``{"simple": 23}``.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from cbor2 import CBORSimpleValue, CBORTag, undefined

from minerva.core import cbor
from minerva.core.errors import UsageError
from minerva.core.text import printable
from minerva.grasp.options import NO_VALUE
from minerva.grasp.text import diagnostic, json_text

_FORMS: Final = ({"hex"}, {"tag", "value"}, {"map"}, {"float"}, {"simple"})
_FLOATS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_UNDEFINED: Final = 23


def shown(value: Any) -> str:
    """Return the value of an objective for people."""
    return "no value" if value is NO_VALUE else diagnostic(value)


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
        raise UsageError(f"{json_text(item)} is none of the forms for what JSON cannot say") from error


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
