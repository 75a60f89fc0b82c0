"""Keeps docs/conformance.md: which test shows which requirement.

The requirements and their class are in docs/requirements.tsv (id, level, class, what); which test shows
one is said in the docstring of the test, in a line ``covers: 6.4-8, 6.4-9``. Without arguments this checks
that the matrix is up to date; with ``--write`` it writes it.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MATRIX = ROOT / "docs" / "conformance.md"
REQUIREMENTS = ROOT / "docs" / "requirements.tsv"

_COVERS = re.compile(r"^\s*covers:\s*(.+?)\s*$", re.MULTILINE)


def requirements() -> dict[str, tuple[str, str, str, str]]:
    """Return part, level, class and text of every requirement by its id, in the order of the file."""
    found = {}
    for line in REQUIREMENTS.read_text().splitlines():
        if line and not line.startswith("#"):
            ident, part, level, cls, text = line.split("\t")
            found[ident] = (part, level, cls, text)
    return found


def coverage() -> dict[str, list[str]]:
    """Return the tests that say they cover each id, as ``file::function``."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                continue
            for line in _COVERS.findall(ast.get_docstring(node, clean=False) or ""):
                name = "" if isinstance(node, ast.Module) else f"::{node.name}"
                for ident in re.split(r"[,\s]+", line):
                    found.setdefault(ident.rstrip("."), []).append(f"{path.relative_to(ROOT)}{name}")
    return found


def matrix() -> str:
    """Return docs/conformance.md."""
    tests, wanted = coverage(), requirements()
    core = [ident for ident, (_, _, cls, _) in wanted.items() if cls == "C"]
    shown = sum(1 for ident in core if ident in tests)
    lines = [
        "# Conformance",
        "",
        "Which test shows which requirement. The ids are those of the project's checklist: the number of the",
        "section in RFC 8994 (or `G` for RFC 8990, `R` for RFC 6550, `OF0` for RFC 6552) and a counter.",
        "Levels are those of RFC 2119 (M MUST, S SHOULD, O MAY, a minus sign for NOT, I what it takes to",
        "interoperate). A requirement without a test is not done; parts that belong to later milestones are",
        "left out. Made by `make matrix` from the tests themselves.",
        "",
        f"{shown} of {len(core)} core requirements have a test.",
    ]
    part = ""
    for ident, (of, level, _, text) in wanted.items():
        if of != part:
            part = of
            lines += ["", f"## {part}", "", "| id | level | requirement | shown by |", "|---|---|---|---|"]
        missing = "**not yet**" if wanted[ident][2] == "C" else "later"
        where = "<br>".join(f"`{name}`" for name in dict.fromkeys(tests.get(ident, []))) or missing
        lines.append(f"| {ident} | {level} | {text} | {where} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check the matrix."""
    unknown = sorted(set(coverage()) - set(requirements()))
    if unknown:
        print(f"tests cover ids that no requirement has: {', '.join(unknown)}", file=sys.stderr)
        return 1
    if "--write" in sys.argv[1:]:
        MATRIX.write_text(matrix())
        return 0
    if not MATRIX.is_file() or MATRIX.read_text() != matrix():
        print("docs/conformance.md is not what the tests say: run 'make matrix'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
