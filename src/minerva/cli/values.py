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
from minerva.core.text import shortened
from minerva.grasp.options import NO_VALUE
from minerva.grasp.text import diagnostic, json_text

_FORMS: Final = ({"hex"}, {"tag", "value"}, {"map"}, {"float"}, {"simple"})
_FLOATS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_UNDEFINED: Final = 23
_ECHO: Final = 60

MAX_NESTING: Final = cbor.MAX_DEPTH - 3
"""How deep a value may nest: a flood, the deepest of the messages, puts it into three arrays more."""

_TOO_DEEP: Final = f"the value is nested too deeply: at most {MAX_NESTING} lists, maps and tags in each other"


def shown(value: Any) -> str:
    """Return the value of an objective for people."""
    return "no value" if value is NO_VALUE else diagnostic(value)


def quoted(text: str) -> str:
    """Return what somebody typed, fit for a sentence: in quotes, printable, and cut if it is long."""
    return f"'{shortened(text, _ECHO)}'"


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
        raise UsageError(
            f"{shortened(json_text(item), _ECHO)} is none of the forms for what JSON cannot say"
        ) from error


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
    value = _parsed(text, in_cbor, name, option)
    if _nests_deeper(value, MAX_NESTING):
        raise UsageError(_TOO_DEEP)
    return value


def _nests_deeper(value: Any, limit: int) -> bool:
    """Return whether ``value`` has more than ``limit`` arrays, maps and tags in each other."""
    match value:
        case list() | tuple():
            inner = list(value)
        case dict():
            inner = [*value.keys(), *value.values()]
        case CBORTag():
            inner = [value.value]
        case _:
            return False
    return limit == 0 or any(_nests_deeper(item, limit - 1) for item in inner)


def _parsed(text: str | None, in_cbor: str | None, name: str, option: str) -> Any:
    if in_cbor is not None:
        if text is not None:
            raise UsageError(f"give {name} or {option}, not both")
        try:
            return cbor.loads(bytes.fromhex(in_cbor))
        except ValueError:
            raise UsageError(f"{option} takes hexadecimal digits, not {quoted(in_cbor)}") from None
        except cbor.CborError as error:
            raise UsageError(f"{option}: {error}") from error
    if text is None:
        return NO_VALUE
    try:
        return from_json(json.loads(text))
    except RecursionError:
        raise UsageError(_TOO_DEEP) from None
    except ValueError:
        shown = shortened(text, _ECHO)
        hint = "" if text.startswith(("{", "[", '"')) else f"; text needs its own quotes, as in '\"{shown}\"'"
        raise UsageError(f"{shown} is not JSON{hint}") from None
