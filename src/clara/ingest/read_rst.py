r"""reStructuredText, with the marks taken off that only tell a program how to set it: roles, targets, options.

Headings become ``# Heading``, tables rows of cells. Sphinx's directives are too many to know, so what a directive says
is kept, and only those that say nothing to a reader go.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from typing import NamedTuple

from clara.ingest.decode import decode_text
from clara.ingest.document import Extract
from clara.ingest.read_text import markdown_headings
from clara.ingest.scripts import subscript, superscript

_GRID = re.compile(r"\s*\+(?:[-=]+\+)+\s*")
_GRID_LINE = re.compile(r"\s*[|+].*[|+]\s*")
_SIMPLE = re.compile(r"\s*=+(?: +=+)+\s*")
_COLUMN = re.compile(r"=+")
_LONGEST = 2000  # lines looked at for a table's end

_RULE = re.compile(r"([!-/:-@[-`{-~])\1{2,}[ \t]*")
_DIRECTIVE = re.compile(r"(?P<indent>\s*)\.\. (?:\|[^|]+\| )?(?P<name>[\w:.+-]+?):: ?(?P<words>.*)")
_TARGET = re.compile(r"\s*(?:\.\. _|__ )")
_NOTE = re.compile(r"(\s*)\.\. (\[[^\]]+\]) ?")
_COMMENT = re.compile(r"\s*\.\.(?: |$)")
_OPTION = re.compile(r"\s*:[\w-]+:(?: .*)?$")
# fmt: off
# Directives for programs, with all that is in them.
_SILENT = frozenset([
    "contents", "currentmodule", "default-domain", "default-role", "highlight", "include", "index", "meta", "module",
    "py:currentmodule", "raw", "role", "sectionauthor", "sectnum", "tabularcolumns", "toctree", "unicode", "replace",
])
# Their content is set as it stands.
_VERBATIM = frozenset([
    "code", "code-block", "doctest", "literalinclude", "math", "parsed-literal", "sourcecode", "testcode", "testoutput",
    "productionlist", "prompt",
])
# Their name is a word for readers: "Note", "New in version 3.8".
_NAMED = {
    **{name: name.capitalize() for name in (
        "attention", "caution", "danger", "deprecated", "error", "hint", "important", "note", "seealso", "tip",
        "todo", "warning",
    )},
    "seealso": "See also", "versionadded": "New in version", "versionchanged": "Changed in version",
    "deprecated": "Deprecated since version",
}
# fmt: on
_UNMARKED = frozenset(["admonition", "csv-table", "list-table", "rubric", "sidebar", "tab", "table", "topic"])
_PICTURES = frozenset(["figure", "image"])
# What they say is for Sphinx.
_SETTINGS = frozenset(["class", "container", "cssclass", "ifconfig", "only", "rst-class"])
_VERSIONS = frozenset(["deprecated", "versionadded", "versionchanged"])
_ROLE = re.compile(r":(?P<role>[\w:.+-]+):`(?P<text>[^`]+)`(?:(?=\W)|$)")
_LITERAL = re.compile(r"``(.+?)``")
_LINK = re.compile(r"`([^`<]+?)\s*(?:<[^`>]*>)?`_{0,2}")
_TITLE_WITH_TARGET = re.compile(r"(.+?)\s*<[^<>]*>", re.DOTALL)
_EMPHASIS = re.compile(r"(?<![\w*\\])(\*{1,2})(?=\S)(.+?)(?<=[^\s\\])\1(?![\w*])")
_REFERENCE = re.compile(r"(?<=\w)_{1,2}(?=[\s.,;:!?)'\"-]|$)")
_NOTE_MARK = re.compile(r"\s?(\[(?:#?\w*|\*)\])_(?=\W|$)")
_SUBSTITUTION = re.compile(r"\|(\S(?:[^|]*\S)?)\|_{0,2}")
_ESCAPE = re.compile(r"\\(?:\s|(\S))")


def _extract_rst(data: bytes, uri: str) -> Extract:
    """Read a text in reStructuredText; its first heading is its title."""
    source = _Source(decode_text(data, uri).replace("\r\n", "\n").replace("\r", "\n").expandtabs().split("\n"))
    text = "\n".join(source.lines).strip("\n")
    headings = markdown_headings(text)
    return Extract(
        title=headings[0].text if headings else "",
        text=text,
        metadata={"media_type": "text/x-rst"},
        headings=headings,
        left_out=source.left_out,
    )


class _Source:
    """One pass over the lines of a text; ``lines`` is what comes of them."""

    def __init__(self, source: list[str]) -> None:
        self.lines: list[str] = []
        self.left_out = Counter[str]()
        self._source = source
        self._levels: list[tuple[str, bool]] = []  # the marks of headings, outermost first
        self._outdent = [(0, 0)]  # from which indentation on lines belong to a directive, and by how much they go left
        self._at = 0
        while self._at < len(source):
            self._next()

    def _next(self) -> None:
        line = self._source[self._at]
        if self._heading():
            return
        if found := _DIRECTIVE.match(line):
            self._directive(found)
        elif _TARGET.match(line):
            self._pass_block(_indent(line))
        elif note := _NOTE.match(line):
            self._add(line, note[1] + note[2] + " " + line[note.end() :])
            self._at += 1
        elif _COMMENT.match(line):
            self._pass_block(_indent(line))
        elif rows := _table_rows(self._source, self._at):
            self.lines += [_plain(row) for row in rows.rows]
            self._at = rows.end
        elif line.rstrip().endswith("::"):
            self._literal_block(line)
        else:
            self._add(line, line)
            self._at += 1

    def _heading(self) -> bool:
        """Take a heading with the line below it, and the one above it if there is one."""
        above = self._source[self._at]
        is_over = _RULE.fullmatch(above) is not None
        words = self._line(self._at + is_over).strip()
        below = self._line(self._at + is_over + 1)
        rule = _RULE.fullmatch(below)
        if not words or rule is None or _RULE.fullmatch(words) or len(below.rstrip()) < min(len(words), 3):
            return False
        if (is_over and above.rstrip() != below.rstrip()) or (not is_over and above[:1].isspace()):
            return False
        mark = (rule[1], is_over)
        if mark not in self._levels:
            self._levels.append(mark)
        self.lines += ["", "#" * min(self._levels.index(mark) + 1, 6) + " " + _plain(words), ""]
        self._at += is_over + 2
        self._outdent = [(0, 0)]
        return True

    def _directive(self, found: re.Match[str]) -> None:
        name, indent = found["name"], len(found["indent"])
        if name in _SILENT:
            self.left_out["directives for programs"] += 1
            self._pass_block(indent)
            return
        self._at += 1
        alternative = self._options(indent)
        if name in _VERBATIM:
            self._verbatim(indent, [found["words"]] if found["words"].strip() and name in ("math", "prompt") else [])
            return
        words = alternative if name in _PICTURES else "" if name in _SETTINGS else found["words"].strip()
        self._add(found.string, " " * indent + _labelled(name, words))
        content = _indent(next((line for line in self._source[self._at : self._at + 3] if line.strip()), ""))
        if content > indent:
            self._outdent.append((content, content - indent))

    def _options(self, indent: int) -> str:
        """Pass the options of a directive; what stands for a picture is returned."""
        alternative = ""
        while _OPTION.match(self._line(self._at)) and _indent(self._line(self._at)) > indent:
            option = self._line(self._at).strip()
            if option.startswith(":alt:"):
                alternative = option[5:].strip()
            self._at += 1
        return alternative

    def _literal_block(self, line: str) -> None:
        """A paragraph that ends in two colons, and the block below it."""
        words = line.rstrip().removesuffix("::")
        self._add(line, f"{words}:" if words.strip() and not words.endswith(" ") else words.rstrip())
        self._at += 1
        self._verbatim(_indent(line), [])

    def _verbatim(self, indent: int, first: list[str]) -> None:
        block = [*first, *self._block(indent)]
        depth = min((_indent(line) for line in block if line.strip()), default=0)
        self.lines += ["", *(("    " + line[depth:]).rstrip() for line in block), ""]

    def _block(self, indent: int) -> list[str]:
        """Take the lines that are set in further than ``indent``."""
        block: list[str] = []
        while self._at < len(self._source):
            line = self._source[self._at]
            if line.strip() and _indent(line) <= indent:
                break
            block.append(line)
            self._at += 1
        return block

    def _pass_block(self, indent: int) -> None:
        self._at += 1
        self._block(indent)

    def _add(self, line: str, words: str) -> None:
        """Add a line, moved left by the directives that it stands in."""
        if line.strip():
            while len(self._outdent) > 1 and _indent(line) < self._outdent[-1][0]:
                self._outdent.pop()
        shift = sum(by for _, by in self._outdent)
        own = len(words) - len(words.lstrip())
        self.lines.append(_plain(words[min(own, shift) :]))

    def _line(self, number: int) -> str:
        return self._source[number] if number < len(self._source) else ""


def _labelled(name: str, words: str) -> str:
    """What a directive says, with its name where that is a word for readers."""
    if name in _UNMARKED or name in _PICTURES or name in _SETTINGS:
        return words
    if name not in _NAMED:
        return f"{name.rpartition(':')[2]} {words}".rstrip()  # a function, a class, an option
    return f"{_NAMED[name]} {words}" if name in _VERSIONS else f"{_NAMED[name]}: {words}".rstrip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _plain(line: str) -> str:
    """A line without the marks inside it; what stands in double backquotes stays as it is."""
    parts = _LITERAL.split(line)
    parts[::2] = map(_plain_part, parts[::2])
    return "".join(parts)


def _plain_part(text: str) -> str:
    if not any(mark in text for mark in "`*_|\\"):
        return text
    text = _ROLE.sub(_role, text)
    text = _LINK.sub(r"\1", text)
    text = _NOTE_MARK.sub(r"\1", text)
    text = _EMPHASIS.sub(r"\2", text)
    text = _SUBSTITUTION.sub(r"\1", text)
    text = _REFERENCE.sub("", text)
    return _ESCAPE.sub(lambda found: found[1] or "", text)


def _role(found: re.Match[str]) -> str:
    role, text = found["role"].rpartition(":")[2], found["text"]
    before = found.string[: found.start()].removesuffix("\\ ")
    if role in ("sup", "superscript"):
        return superscript(before, text)
    if role in ("sub", "subscript"):
        return subscript(before, text)
    titled = _TITLE_WITH_TARGET.fullmatch(text)
    if titled:
        return titled[1]
    return text.rpartition(".")[2] if text.startswith("~") else text.lstrip("!.")


class _Rows(NamedTuple):
    """A table: a line for each row, and the number of the line after it."""

    rows: list[str]
    end: int


def _table_rows(lines: list[str], start: int) -> _Rows | None:
    """The table that begins at a line, or None."""
    if _GRID.fullmatch(lines[start]):
        return _grid(lines, start)
    return _simple(lines, start) if _SIMPLE.fullmatch(lines[start]) else None


def _grid(lines: list[str], start: int) -> _Rows:
    rows: list[str] = []
    cells: list[str] = []
    end = start
    while end < len(lines) and _GRID_LINE.fullmatch(lines[end]):
        line = lines[end].strip()
        if _GRID.fullmatch(line):
            rows += [" | ".join(cells)] if any(cells) else []
            cells = []
        else:
            parts = [part.strip() for part in line.strip("|").split("|")]
            cells = parts if len(parts) != len(cells) else _below(cells, parts)
        end += 1
    return _Rows(["", *rows, ""], end)


def _simple(lines: list[str], start: int) -> _Rows | None:
    """A table between lines of equals signs, each of which is a column; a row without a first cell goes on."""

    def is_last(rule: int) -> bool:
        """Whether it stands below a row, with nothing below itself."""
        below = lines[rule + 1].strip() if rule + 1 < len(lines) else ""
        return rule > start + 1 and not below and lines[rule - 1].strip() != ""

    rules = (at for at in range(start + 1, min(len(lines), start + _LONGEST)) if _SIMPLE.fullmatch(lines[at]))
    end = next(filter(is_last, islice(rules, 2)), None)  # below names, below rows
    if end is None:
        return None
    starts = [found.start() for found in _COLUMN.finditer(lines[start])]
    stops = [*starts[1:], None]
    rows: list[list[str]] = []
    for line in lines[start + 1 : end]:
        if not line.strip() or _SIMPLE.fullmatch(line) or not line.strip(" -"):
            continue
        cells = [line[left:right].strip() for left, right in zip(starts, stops, strict=True)]
        if rows and not cells[0]:
            rows[-1] = _below(rows[-1], cells)
        else:
            rows.append(cells)
    return _Rows(["", *(" | ".join(row) for row in rows), ""], end + 1)


def _below(cells: list[str], more: list[str]) -> list[str]:
    return [f"{cell} {other}".strip() for cell, other in zip(cells, more, strict=True)]


READERS = {".rst": _extract_rst}
