r"""reStructuredText, with the marks taken off that only tell a program how to set it: roles, targets, options.

Headings become ``# Heading``, tables rows of cells. Sphinx's directives are too many to know, so what a directive says
is kept, and only those that say nothing to a reader go.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import NamedTuple

from clara.ingest.decode import decode_text
from clara.ingest.document import Extract
from clara.ingest.read_tables import GridCell, grid
from clara.ingest.read_text import markdown_headings
from clara.ingest.scripts import subscript, superscript

_GRID = re.compile(r"\s*\+(?:[-=]+\+)+\s*")
_GRID_LINE = re.compile(r"\s*[|+].*[|+]\s*")
_SIMPLE = re.compile(r"\s*=+(?: +=+)+\s*")
_COLUMN = re.compile(r"=+")
_LONGEST = 2000  # lines looked at for a table's end

# What tabs are counted in: each line, or only its indentation where they divide the cells of a table.
_TABS = re.compile(r"[^\n]*\t[^\n]*"), re.compile(r"^[ \t]*\t[ \t]*", re.MULTILINE)
_RULE = re.compile(r"([!-/:-@[-`{-~])\1{2,}[ \t]*")
_DIRECTIVE = re.compile(r"(?P<indent>\s*)\.\. (?:\|[^|]+\| )?(?P<name>[\w:.+-]+?):: ?(?P<words>.*)")
_TARGET = re.compile(r"\s*(?:\.\. _|__ )")
_NOTE = re.compile(r"(\s*)\.\. (\[[^\]]+\]) ?")
_COMMENT = re.compile(r"\s*\.\.(?: |$)")
_OPTION = re.compile(r"\s*:[\w-]+:(?: .*)?$")
# fmt: off
# Directives for programs, with all that is in them.
_SILENT = frozenset([
    "bibliography", "codeauthor", "contents", "currentmodule", "default-domain", "default-role", "highlight", "include",
    "index", "meta", "module", "moduleauthor", "py:currentmodule", "raw", "replace", "role", "sectionauthor", "sectnum",
    "tabularcolumns", "testcleanup", "testsetup", "toctree", "unicode",
])
# Their content is set as it stands.
_VERBATIM = frozenset([
    "code", "code-block", "doctest", "literalinclude", "math", "parsed-literal", "sourcecode", "testcode", "testoutput",
    "code-cell", "code-tab", "ipython", "jupyter-execute", "plot", "productionlist", "prompt",
])
# What their content says is how to draw.
_DRAWN = frozenset([
    "actdiag", "blockdiag", "digraph", "graph", "graphviz", "inheritance-diagram", "mermaid", "nwdiag", "plantuml",
    "seqdiag", "uml",
])
# Names that stand before what they describe, also without the name of their domain.
_OBJECTS = frozenset([
    "attribute", "class", "classmethod", "cmdoption", "confval", "data", "decorator", "django-admin", "enum", "envvar",
    "event", "exception", "fieldlookup", "function", "macro", "member", "method", "opcode", "option", "property",
    "setting", "signal", "staticmethod", "struct", "templatefilter", "templatetag", "type", "var",
])
# Their name is a word for readers: "Note", "New in version 3.8".
_NAMED = {
    **{name: name.capitalize() for name in (
        "attention", "caution", "danger", "deprecated", "error", "hint", "important", "note", "seealso", "tip",
        "todo", "warning",
    )},
    "seealso": "See also", "versionadded": "New in version", "versionchanged": "Changed in version",
    "deprecated": "Deprecated since version", "deprecated-removed": "Deprecated since version",
    "versionremoved": "Removed in version",
}
# fmt: on
_PICTURES = frozenset(["figure", "image"])
# What they say is for Sphinx.
_SETTINGS = frozenset(["class", "container", "cssclass", "ifconfig", "only", "rst-class"])
_VERSIONS = frozenset(["deprecated", "deprecated-removed", "versionadded", "versionchanged", "versionremoved"])
_SIGNATURE = re.compile(r"-|[\w.]*\w\(")
_PYTHON_CLASS = re.compile(r"[\w.]*(?:[A-Z]|\w[.(])")  # in Sphinx; in docutils, ``class`` sets a style
_ROLE = re.compile(r":(?P<role>[\w:.+-]+):`(?P<text>[^`]+)`(?:(?=\W)|$)")
_ROLE_BEHIND = re.compile(r"`(?P<text>[^`]+)`:(?P<role>[\w.+-]+):(?=\W|$)")
# Between two marks a line may end.
_LITERAL = re.compile(r"``(.{1,2000}?)``", re.DOTALL)
_LINK = re.compile(r"_?`([^`<]+?)\s*(?:<[^`>]*>)?`_{0,2}")
_TITLE_WITH_TARGET = re.compile(r"(.+?)\s*<[^<>]*>", re.DOTALL)
_EMPHASIS = re.compile(
    r"(?<![\w*\\])(?!(?<=[\"'])\*{1,2}[\"'])(\*{1,2})(?=[^\s\])}>])(.{1,2000}?)(?<=[^\s\\])\1(?![\w*])", re.DOTALL
)
_BEGINS = re.compile(r"\s*(?:[-*+•|]|\(?[\w#]{1,4}[.)]|:[^:\n]+:)(?:\s|$)")  # an item, a field, a line of verse
_REFERENCE = re.compile(r"(?<=\w)_{1,2}(?=[\s.,;:!?)'\"-]|$)")
_NOTE_MARK = re.compile(r"\s?(\[(?:#?\w*|\*)\])_(?=\W|$)")
_SUBSTITUTION = re.compile(r"\|(\S(?:[^|]*\S)?)\|_{0,2}")
_SUBSTITUTED = re.compile(r"\s*\.\. \|([^|]+)\| ([\w-]+)::(.*)")
_LONGEST_SUBSTITUTION = _LONGEST_OPTION = 20  # lines
_UNICODE = re.compile(r"(?:0x|x|\\x|U\+|u|\\u)([0-9a-fA-F]{2,6})\b")
_LIST_ROW = re.compile(r"\s*(?P<row>[*+-])\s+(?P<cell>[*+-])(?:\s+(?P<text>.*)|$)")
_LIST_CELL = re.compile(r"\s*(?P<cell>[*+-])(?:\s+(?P<text>.*)|$)")
_GIVEN = re.compile(r"\s*\(?(\d{1,4})[.)] ")
_AUTO = re.compile(r"\s*\(?(#)[.)] ")
_LITERAL_WHOLE = re.compile(r"(``.{1,2000}?``)", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:(\S)|\s|\Z)")


def _extract_rst(data: bytes, uri: str) -> Extract:
    """Read a text in reStructuredText; its first heading is its title."""
    written = decode_text(data, uri).replace("\r\n", "\n").replace("\r", "\n")
    source = _Source(_TABS[":delim: tab" in written].sub(lambda found: found[0].expandtabs(), written).split("\n"))
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
    """A pass over the lines of a text; ``lines`` is the result."""

    def __init__(self, source: list[str]) -> None:
        self.lines: list[str] = []
        self.left_out = Counter[str]()
        self._source = source
        self._substitutions = _substitutions(source)
        self._counts: dict[int, int] = {}  # of numbered items that the text does not number, by indentation
        self._levels: list[tuple[str, bool]] = []  # the marks of headings, outermost first
        self._outdent = [(0, 0)]  # from which indentation on lines belong to a directive, and by how much they go left
        self._at = 0
        self._words: list[int] = []  # numbers of lines whose inline marks are still to be taken off
        while self._at < len(source):
            self._next()
        self._take_off_marks()

    def _next(self) -> None:
        line = self._source[self._at]
        if self._heading():
            return
        if (named := _SUBSTITUTED.match(line)) and named[2] in ("image", "replace", "unicode"):
            self._pass_block(_indent(line))
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

    def _numbered(self, line: str) -> str:
        """A line with the number of an item that is written as ``#.``."""
        indent = _indent(line)
        found, given = _AUTO.match(line), _GIVEN.match(line)
        if line.strip():
            self._counts = {at: count for at, count in self._counts.items() if at < indent + (found is not None)}
        if given:  # with which the next ones go on
            self._counts[indent] = int(given[1])
        if found is None:
            return line
        self._counts[indent] = self._counts.get(indent, 0) + 1
        return f"{line[: found.start(1)]}{self._counts[indent]}{line[found.end(1) :]}"

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
        name, indent = found["name"].lower(), len(found["indent"])
        if name in _SILENT or name in _DRAWN:
            self.left_out["pictures" if name in _DRAWN else "directives for programs"] += 1
            self._pass_block(indent)
            return
        self._at += 1
        options = self._options(indent)
        if name in _VERBATIM:
            self._verbatim(indent, [found["words"]] if found["words"].strip() and name in ("math", "prompt") else [])
            return
        self._add(found.string, " " * indent + _labelled(name, found["words"].strip(), options))
        content_at = self._at
        if name in _TABLES and (rows := _TABLES[name](self._block(indent), options)):
            self.lines += ["", *(_plain(self._substituted(" | ".join(row))) for row in grid(rows) if row), ""]
            return
        self._at = content_at
        content = _indent(next((line for line in self._source[self._at : self._at + 3] if line.strip()), ""))
        if content > indent:
            self._outdent.append((content, content - indent))

    def _options(self, indent: int) -> dict[str, str]:
        """Pass the options of a directive, and return them."""
        options: dict[str, str] = {}
        while _OPTION.match(self._line(self._at)) and _indent(self._line(self._at)) > indent:
            own = _indent(self._line(self._at))
            _, name, value = self._line(self._at).strip().split(":", 2)
            self._at += 1
            more = _set_in(self._source[self._at : self._at + _LONGEST_OPTION], own)
            options[name] = "\n".join([value.strip(), *map(str.strip, more)])
            self._at += len(more)
        return options

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
        words = self._numbered(words)
        shift = sum(by for _, by in self._outdent)
        own = len(words) - len(words.lstrip())
        self._words.append(len(self.lines))
        self.lines.append(words[min(own, shift) :])

    def _take_off_marks(self) -> None:
        """Take the marks off that stand inside lines; between two of them, a line may end, but no paragraph."""
        words = set(self._words)
        paragraphs: list[list[str]] = []
        marked = set[int]()  # places of paragraphs
        for number, line in enumerate(self.lines):
            is_text = number in words and line.strip() != ""
            if is_text and len(paragraphs) - 1 in marked and not _BEGINS.match(line):
                paragraphs[-1].append(line)
                continue
            if is_text:
                marked.add(len(paragraphs))
            paragraphs.append([line])
        whole = map("\n".join, paragraphs)
        self.lines = [
            _plain(self._substituted(text)) if number in marked else text for number, text in enumerate(whole)
        ]

    def _substituted(self, line: str) -> str:
        """A line with what the text says in place of ``|name|``."""
        if "|" not in line or not self._substitutions:
            return line
        parts = _LITERAL_WHOLE.split(line)
        parts[::2] = (
            _SUBSTITUTION.sub(lambda at: self._substitutions.get(at[1].lower(), at[0]), part) for part in parts[::2]
        )
        return "".join(parts)

    def _line(self, number: int) -> str:
        return self._source[number] if number < len(self._source) else ""


def _substitutions(source: list[str]) -> dict[str, str]:
    """Substitutions by the text's own definitions, each by its name in small letters."""
    found: dict[str, str] = {}
    for number, line in enumerate(source):
        match = _SUBSTITUTED.match(line) if "|" in line else None
        if match is None:
            continue
        name, kind, words = match[1].lower(), match[2], match[3].strip()
        more = _set_in(source[number + 1 : number + 1 + _LONGEST_SUBSTITUTION], _indent(line))
        if kind == "replace":
            found[name] = " ".join([words, *(line.strip() for line in more)]).strip()
        elif kind == "unicode":
            found[name] = _UNICODE.sub(_character, words.partition(" .. ")[0]).replace(" ", "")
        elif kind == "image":
            found[name] = next((line.partition(":alt:")[2].strip() for line in more if ":alt:" in line), "")
    return found


def _set_in(lines: list[str], indent: int) -> list[str]:
    """The first of the lines, as far as they are set in further and not empty."""
    return list(takewhile(lambda line: line.strip() and _indent(line) > indent, lines))


def _character(code: re.Match[str]) -> str:
    number = int(code[1], 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else code[0]


def _csv_rows(block: list[str], options: dict[str, str]) -> list[list[GridCell]]:
    """The rows of a ``csv-table``, its header first."""
    stated = options.get("delim", ",")
    delimiter = {"space": " ", "tab": "\t"}.get(stated, stated[:1] or ",")
    quote = options.get("quote", '"')[:1] or '"'
    header = options["header"].split("\n") if "header" in options else []
    lines = [f"{line}\n" for line in [*header, *map(str.strip, block)]]
    try:
        rows = list(
            csv.reader(lines, delimiter=delimiter, quotechar=quote, skipinitialspace="keepspace" not in options)
        )
    except (csv.Error, TypeError, ValueError):
        return []
    return [[GridCell(" ".join(cell.split())) for cell in row] for row in rows if row]


def _list_rows(block: list[str], _: dict[str, str]) -> list[list[GridCell]]:
    """The rows of a ``list-table``: the items of a list of lists."""
    rows: list[list[list[str]]] = []
    places: tuple[int, int] | None = None  # of the marks of rows and cells
    for line in block:
        found = _LIST_ROW.match(line)
        if found and (places is None or found.start("row") == places[0]):
            places = found.start("row"), found.start("cell")
            rows.append([[found["text"] or ""]])
        elif places and (cell := _LIST_CELL.match(line)) and cell.start("cell") == places[1]:
            rows[-1].append([cell["text"] or ""])
        elif places and _indent(line) > places[1]:
            rows[-1][-1].append(line)
        elif line.strip():
            return []
    return [[GridCell(" ".join(" ".join(cell).split())) for cell in row] for row in rows]


_TABLES = {"csv-table": _csv_rows, "list-table": _list_rows}


def _labelled(name: str, words: str, options: dict[str, str]) -> str:
    """Text of a directive, with its name where that is a word for readers."""
    if name in _PICTURES:
        return options.get("alt", "")
    if name in _SETTINGS and not (name == "class" and _PYTHON_CLASS.match(words)):
        return ""
    if name not in _NAMED:
        # A function, a class, an option; others have a title, or say nothing of their own.
        domain, _, kind = name.rpartition(":")
        named = domain or kind in _OBJECTS or _SIGNATURE.match(words)
        return f"{kind} {words}" if words and named else words
    return f"{_NAMED[name]} {words}" if name in _VERSIONS else f"{_NAMED[name]}: {words}".rstrip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _plain(text: str) -> str:
    """A paragraph without the marks inside it; what stands in double backquotes stays as it is."""
    parts = _LITERAL.split(text)
    parts[::2] = map(_plain_part, parts[::2])
    return "".join(parts)


def _plain_part(text: str) -> str:
    if not any(mark in text for mark in "`*_|\\"):
        return text
    text = _ROLE_BEHIND.sub(_role, _ROLE.sub(_role, text))
    text = _LINK.sub(r"\1", text)
    text = _NOTE_MARK.sub(r"\1", text)
    text = _EMPHASIS.sub(r"\2", text)
    text = _SUBSTITUTION.sub(r"\1", text)
    text = _REFERENCE.sub("", text)
    return _ESCAPE.sub(lambda found: found[1] or "", text)


def _role(found: re.Match[str]) -> str:
    role, text = found["role"].lower().rpartition(":")[2], found["text"]
    before, after = found.string[: found.start()].removesuffix("\\ "), found.string[found.end() :].removeprefix("\\ ")
    if role in ("sup", "superscript"):
        return superscript(before, text, after)
    if role in ("sub", "subscript"):
        return subscript(before, text, after)
    if role in ("pep", "rfc", "pep-reference", "rfc-reference"):
        return f"{role[:3].upper()} {text}"
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
    """A table between lines of plus signs; a cell ends where a line is drawn below it, so it may reach over others."""
    end = start
    while end < len(lines) and _GRID_LINE.fullmatch(lines[end]):
        end += 1
    table = [line.rstrip() for line in lines[start:end]]
    edges = sorted({at for line in table for at, sign in enumerate(line) if sign == "+" and _drawn_at(line, at)})
    rows: list[list[_GridText]] = []
    open_cells: dict[int, _GridText] = {}
    for line in table:
        drawn = {place for place, edge in enumerate(edges) if line[edge + 1 : edge + 2] in ("-", "=")}
        drawn &= {place for place, edge in enumerate(edges) if _drawn_at(line, edge)}
        if drawn:
            rows.append([])
            open_cells = {place: cell for place, cell in open_cells.items() if place not in drawn}
        for place, stop, text in _parts_between(line, edges, drawn):
            if place not in open_cells:
                open_cells[place] = _GridText([], len(rows), stop - place)
                rows[-1].append(open_cells[place])
            open_cells[place].lines.append(text)
            open_cells[place].last = len(rows)
    cells = [
        [GridCell(" ".join(" ".join(cell.lines).split()), cell.last - cell.first + 1, cell.columns) for cell in row]
        for row in rows
    ]
    return _Rows(["", *(" | ".join(row) for row in grid(cells) if row), ""], end)


@dataclass(slots=True)
class _GridText:
    """A cell while its lines are read, with the row it begins in, counted from 1, and the last so far."""

    lines: list[str]
    first: int
    columns: int
    last: int = 0


def _drawn_at(line: str, at: int) -> bool:
    """True if a plus sign joins drawn lines; a text may hold one too."""
    return line[at : at + 1] == "+" and not {line[max(0, at - 2) : at], line[at + 1 : at + 3]}.isdisjoint(("--", "=="))


def _parts_between(line: str, edges: list[int], drawn: set[int]) -> Iterator[tuple[int, int, str]]:
    """The texts of a line, each with its first column and the one behind its last."""
    parts = line.strip().strip("|").split("|")
    if not drawn and len(parts) == len(edges) - 1:  # wide characters do not stand below the edges
        yield from ((place, place + 1, part) for place, part in enumerate(parts))
        return
    place = 0
    while place < len(edges) - 1:
        stop = next((at for at in range(place + 1, len(edges)) if line[edges[at] : edges[at] + 1] in ("|", "+")), 0)
        if not stop:
            return
        if place not in drawn:
            yield place, stop, line[edges[place] + 1 : edges[stop]]
        place = stop


def _simple(lines: list[str], start: int) -> _Rows | None:
    """A table between lines of equals signs, each of which is a column; a row without a first cell goes on.

    A line of hyphens below a row says which of its cells reach over several columns.
    """

    def is_last(rule: int) -> bool:
        """True if it stands below a row, with nothing below itself."""
        below = lines[rule + 1].strip() if rule + 1 < len(lines) else ""
        return rule > start + 1 and not below and lines[rule - 1].strip() != ""

    rules = (at for at in range(start + 1, min(len(lines), start + _LONGEST)) if _SIMPLE.fullmatch(lines[at]))
    end = next(filter(is_last, islice(rules, 2)), None)  # below names, below rows
    if end is None:
        return None
    starts = [found.start() for found in _COLUMN.finditer(lines[start])]
    rows: list[list[str]] = []
    reaching: dict[int, list[int]] = {}  # row to the columns that its cells reach over
    above = ""
    for line in lines[start + 1 : end]:
        if not line.strip() or _SIMPLE.fullmatch(line):
            continue
        if not line.strip(" -"):
            firsts = [at for at in starts if line[at : at + 1] == "-" and line[max(0, at - 1) : at] != "-"]
            if rows and firsts and firsts[0] == starts[0]:
                rows[-1] = _cut(above, firsts)
                stops = [*map(starts.index, firsts[1:]), len(starts)]
                reaching[len(rows) - 1] = [stop - starts.index(at) for at, stop in zip(firsts, stops, strict=True)]
            continue
        cells = _cut(line, starts)
        if rows and not cells[0] and len(rows[-1]) == len(cells):
            rows[-1] = _below(rows[-1], cells)
        else:
            rows.append(cells)
        above = line
    table = [
        [GridCell(cell, columns=count) for cell, count in zip(row, reaching.get(at, [1] * len(row)), strict=True)]
        for at, row in enumerate(rows)
    ]
    return _Rows(["", *(" | ".join(row) for row in grid(table) if row), ""], end + 1)


def _cut(line: str, starts: list[int]) -> list[str]:
    return [line[left:right].strip() for left, right in zip(starts, [*starts[1:], None], strict=True)]


def _below(cells: list[str], more: list[str]) -> list[str]:
    return [f"{cell} {other}".strip() for cell, other in zip(cells, more, strict=True)]


READERS = {".rst": _extract_rst}
