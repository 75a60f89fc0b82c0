"""The menu of consoles, for whoever comes without naming one. Like a session, it waits for nothing."""

from __future__ import annotations

from typing import Final

from minerva.console.access import Action, Guard, Identity
from minerva.console.line import LineEditor
from minerva.console.session import Consoles
from minerva.core.text import printable, shortened

_LONGEST: Final = 80
_DESCRIPTION: Final = 50
_QUIT: Final = ("q", "quit", "exit")


def listed(identity: Identity, consoles: Consoles, guard: Guard) -> list[str]:
    """Return the names of the consoles that somebody may look at."""
    return [name for name in consoles.names() if guard.may(identity, Action.ATTACH, name)]


def table(identity: Identity, consoles: Consoles, guard: Guard) -> list[str]:
    """Return a line for each console that somebody may look at: its state, who writes, what it is."""
    names = listed(identity, consoles, guard)
    width = max((len(name) for name in names), default=0)
    lines = []
    for name in names:
        if (console := consoles.get(name)) is None:
            continue
        hub = console.hub
        holder = "" if hub.holder is None else f" {printable(hub.holder.user)} writes"
        people = f" {len(hub.who())} attached" if hub.who() else ""
        description = shortened(console.description, _DESCRIPTION)
        lines.append(f"{name:<{width}}  {hub.state.value:<9}{people}{holder}  {description}".rstrip())
    return lines


class Menu:
    """Shows the consoles and asks for one."""

    def __init__(self, identity: Identity, consoles: Consoles, guard: Guard) -> None:
        self._identity = identity
        self._consoles = consoles
        self._guard = guard
        self._editor = LineEditor(_LONGEST)
        self._names: list[str] = []
        self.chosen: str | None = None
        self.over = False
        """Whether the user wants to go."""

    def show(self) -> str:
        """Return the menu, with line ends as in a text."""
        self._editor = LineEditor(_LONGEST)
        self.chosen = None
        self._names = listed(self._identity, self._consoles, self._guard)
        lines = table(self._identity, self._consoles, self._guard)
        numbered = [f"{number:4} {line}" for number, line in enumerate(lines, 1)]
        if not numbered:
            numbered = [f"there is no console that {printable(self._identity.user)} may look at"]
        return "\n" + "\n".join(numbered) + "\nnumber or name (Enter to look again, q to go): "

    def receive(self, data: bytes) -> str:
        """Take what was typed; return what is to be shown. Then look at ``chosen`` and ``over``."""
        shown = []
        for byte in data:
            echo, line = self._editor.receive(byte)
            shown.append(echo)
            if not self._editor.done:
                continue
            if line is None or line in _QUIT:
                self.over = True
                break
            shown.append(self._choose(line))
            if self.chosen is not None:
                break
        return "".join(shown)

    def _choose(self, line: str) -> str:
        if line.isascii() and line.isdigit() and 1 <= int(line) <= len(self._names):
            self.chosen = self._names[int(line) - 1]
            return ""
        if line in self._names:
            self.chosen = line
            return ""
        if not line:
            return self.show()
        self._editor = LineEditor(_LONGEST)
        return f"there is no console {printable(line)}\nnumber or name: "
