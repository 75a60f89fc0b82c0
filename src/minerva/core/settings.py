"""Configuration files: a table of TOML becomes frozen dataclasses, or one sentence names what is wrong."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any, Final, TypeVar

from minerva.core.errors import UsageError

DEFAULT_FILE: Final = Path("/etc/minerva/minerva.toml")
"""Where the configuration of this machine's node and console server is."""

_T = TypeVar("_T")

_WORDS = {bool: "true or false", str: "a string", int: "a whole number"}


def parse(cls: type[_T], text: str, source: str, separator: str = ": ") -> _T:
    """Return the dataclass ``cls`` made from TOML ``text``, which comes from ``source``.

    Its fields, and those of dataclasses in it, are bool, str, int, tuple[str, ...], dict[str, ...] of
    dataclasses, and dict[str, Any] for a table that somebody else reads; all need defaults.
    ``separator`` stands between ``source`` and the name of a setting. Raises :class:`UsageError`.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} is not TOML: {error}") from error
    return build(cls, table, source, separator)


def build(cls: type[_T], table: object, where: str, separator: str = ".") -> _T:
    """Return the dataclass ``cls`` made from what TOML has at ``where``; as :func:`parse`."""
    return typing.cast(_T, _build(cls, table, where, separator))


def _build(cls: Any, value: object, where: str, separator: str = ".") -> Any:
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be a table")
    hints = typing.get_type_hints(cls)
    known = {item.name for item in dataclasses.fields(cls)}
    if unknown := sorted(set(value) - known):
        raise UsageError(
            f"{where}: there is no setting {unknown[0]!r}; there are: {', '.join(sorted(known))}"
        )
    return cls(
        **{name: _convert(hints[name], item, f"{where}{separator}{name}") for name, item in value.items()}
    )


def _convert(kind: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{where} must be a table of tables")
        inner = typing.get_args(kind)[1]
        if inner is Any:
            return value
        return {name: _convert(inner, item, f'{where}."{name}"') for name, item in value.items()}
    if kind == tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise UsageError(f"{where} must be a list of strings")
    if type(value) is not kind:
        raise UsageError(f"{where} must be {_WORDS[kind]}")
    return value
