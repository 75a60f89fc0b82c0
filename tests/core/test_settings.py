"""Dataclasses made from TOML; tests/connect/test_config.py and others have the settings themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from minerva.core import settings
from minerva.core.errors import UsageError


@dataclass(frozen=True)
class Inner:
    names: tuple[str, ...] = ()
    flag: bool = False


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    others: dict[str, Inner] = field(default_factory=dict)
    foreign: dict[str, Any] = field(default_factory=dict)
    number: int = 7
    text: str = "x"


def test_what_is_not_said_has_its_default() -> None:
    assert settings.parse(Outer, "", "f") == Outer()
    assert settings.parse(Outer, '[inner]\nnames = ["a"]', "f") == Outer(Inner(("a",)))
    assert settings.parse(Outer, '[others."x:1"]\nflag = true', "f").others == {"x:1": Inner(flag=True)}
    assert settings.parse(Outer, "foreign.a.b = 1.5", "f").foreign == {"a": {"b": 1.5}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("number = true", "f: number must be a whole number"),
        ("text = 1", "f: text must be a string"),
        ("inner = 1", "f: inner must be a table"),
        ("[inner]\nnames = [1]", "f: inner.names must be a list of strings"),
        ("[inner]\nflag = 1", "f: inner.flag must be true or false"),
        ("[inner]\nother = 1", "f: inner: there is no setting 'other'; there are: flag, names"),
        ('[others."x:1"]\nflag = 1', 'f: others."x:1".flag must be true or false'),
        ("foreign = 1", "f: foreign must be a table of tables"),
        ("others = 1", "f: others must be a table of tables"),
        ("others.x = 1", 'f: others."x" must be a table'),
        ("number =", "f is not TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings.parse(Outer, text, "f")
    assert str(caught.value).startswith(sentence)
