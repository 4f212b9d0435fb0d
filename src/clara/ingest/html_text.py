"""Visible text of a page, as lines: headings, lists, rows of tables. Only navigation and what is hidden is left out.

Nothing is judged by an element's name or class alone, because prose stands in every kind of box: navigation is what a
page calls so, and boxes named like menus that hold little but links. What is left out is counted. Bytes and parsing are
``read_html``'s work.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import lxml.etree

from clara.ingest.document import Element
from clara.ingest.flow import Cell, Flow, Gap, Table
from clara.ingest.scripts import STRUCK, Script, math_text, numeral, set_beside, symbols
from clara.ingest.style_sheets import StyleSheets
from clara.records import Heading

_ROLES = frozenset(["doc-toc", "menu", "menubar", "navigation"])
_BOXES = frozenset(["aside", "div", "footer", "header", "ol", "p", "section", "span", "table", "td", "ul"])
_NAMED_LIKE_MENUS = re.compile(
    r"nav|menu|sidebar|breadcrumb|pagination|pager|toctree|skip|(?:^|[\W_])toc", re.IGNORECASE
)
_NAMED_LIKE_CONTENTS = re.compile(r"(?:^|[\W_])(?:toc|contents)(?:$|[\W_])", re.IGNORECASE)
_LINKED = 0.5  # share of a menu's characters that are links; a paragraph with a few links has a tenth
_STEPS = frozenset(["back", "contents", "forward", "home", "index", "next", "prev", "previous", "top", "up"])
# What a link to another page of a document says of itself in any language: Texinfo writes both, DocBook the key.
_STEP_RELATIONS = _STEPS | {"first", "last", "start"}
_STEP_KEYS = frozenset(["h", "n", "p", "u"])
_BAR = 300  # characters: more is no bar of steps to other pages
_BESIDE_STEP = 12  # characters beside each link of a bar without a name: "Previous:"
_MAIN = frozenset(["article", "main"])
# fmt: off
# Elements without text for readers: programs, settings, what a browser shows only where it fails, readings of ruby.
_SILENT = frozenset([
    "applet", "audio", "base", "canvas", "col", "colgroup", "datalist", "defs", "desc", "head", "link", "meta",
    "metadata", "noembed", "param", "rp", "rt", "rtc", "script", "style", "template", "title", "video",
])
_BLANK_AROUND = frozenset([
    "address", "article", "aside", "blockquote", "center", "details", "dir", "dl", "fieldset", "figure", "footer",
    "form", "header", "hgroup", "hr", "main", "menu", "noframes", "ol", "p", "pre", "search", "section", "table", "ul",
])
_OWN_LINE = frozenset([
    "body", "caption", "dd", "dialog", "div", "dt", "figcaption", "frameset", "html", "legend", "li", "option",
    "optgroup", "summary", "svg", "tbody", "td", "text", "tfoot", "th", "thead", "tr",
])
# fmt: on
_OWN_LINES = _BLANK_AROUND | _OWN_LINE
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_LISTS = frozenset(["dir", "menu", "ol", "ul"])
_PREFORMATTED = frozenset(["listing", "plaintext", "pre", "xmp"])
_SCRIPTS = frozenset(["sub", "sup"])
_RAISED_STYLE = re.compile(r"vertical-align\s*:\s*(super|sub)\b", re.IGNORECASE)
_SCRIPT_CLASS = re.compile(r"(?:^|\s)(super|sub)script(?:$|\s)", re.IGNORECASE)
# What stands higher or lower by a length, or has a class of a shorter name, is a script where it is a number.
_MOVED_STYLE = re.compile(r"(?:^|;)\s*(?:vertical-align\s*:\s*(-?)|top\s*:\s*(-?))[\d.]*[1-9]", re.IGNORECASE)
_SHORT_CLASS = re.compile(r"(?:^|\s)(sup|sub)(?:er)?(?:$|\s)", re.IGNORECASE)
_NUMBER = re.compile(r"[+−–-]?\d{1,4}")
_KEPT_STYLE = re.compile(r"white-space\s*:\s*(?:pre|break-spaces)", re.IGNORECASE)
_KEPT_CLASS = re.compile(
    r"(?:^|\s)(?:pre(?:-wrap|-line|-in-pp|formatted)?|whitespace-pre(?:-wrap|-line)?)(?:$|\s)", re.IGNORECASE
)
_DISPLAY_STYLE = re.compile(r"display\s*:\s*(?:(table-cell)|block|flex|grid|list-item|table)", re.IGNORECASE)
_STRUCK_STYLE = re.compile(r"text-decoration[\w-]*\s*:[^;]*line-through", re.IGNORECASE)
_CONTAINERS = _LISTS | {"dl", "html", "table", "tbody", "tfoot", "thead", "tr"}  # of what has lines of its own
# What a style sheet calls the numbers of a list, by what the attribute ``type`` calls them.
_NUMERALS = {
    "lower-alpha": "a", "lower-latin": "a", "upper-alpha": "A", "upper-latin": "A", "lower-roman": "i",
    "upper-roman": "I",
}  # fmt: skip
_FONT_STYLE = re.compile(r"\bfont(?:-family)?\s*:\s*[\"']?([\w ]*)", re.IGNORECASE)
_NUMERALS_STYLE = re.compile(rf"list-style(?:-type)?\s*:[^;]*?({'|'.join(_NUMERALS)})", re.IGNORECASE)
_NO_NUMBERS_STYLE = re.compile(r"list-style(?:-type)?\s*:[^;]*\bnone\b", re.IGNORECASE)
_BOXED = frozenset(["button", "meter", "output", "progress", "select", "textarea"])  # stand apart from the words around
_HIDING_STYLE = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden|mso-hide\s*:\s*all)", re.IGNORECASE)
_PERMALINK = frozenset(["", "¶", "#", "§", "🔗", "\uf0c1", "\u200b"])
_NOTE = re.compile(r"[\[(]?(\d{1,4}|[a-z]|[ivx]{1,6}|[*†‡§¶]+)[\])]?")
_EPUB_TYPE = "{http://www.idpf.org/2007/ops}type"
_TEXT_INPUTS = frozenset(["", "date", "datetime-local", "email", "month", "number", "tel", "text", "time", "url"])
_NOTICE_WITHIN = 300  # characters: a longer text for browsers without scripts says more than to turn them on
_SIGN_WITHIN = 8  # characters of a sign
_MOST_ROMAN = 4000
_INDENTED = 8  # lists within lists whose items are set in further and further
_WORDS = re.compile(r"\w+")
SCRIPT_NOTICES = "notices to turn scripts on"


@dataclass(frozen=True, slots=True)
class PageText:
    """Visible text of a page, and the parts left out: kind to count."""

    text: str
    headings: tuple[Heading, ...]
    left_out: Counter[str]


def page_text(root: Element, frame: Callable[[str], Element]) -> PageText:
    """The text of a page by its tree, without comments and namespaces.

    A page that stands inside it (``<iframe srcdoc>``) is parsed by ``frame``.
    """
    page = _Page(root, frame)
    return PageText(*page.flow.text(), page.left_out)


class _Page:
    """A walk over a page's elements."""

    def __init__(self, root: Element, frame: Callable[[str], Element]) -> None:
        self.flow = Flow()
        self.left_out = Counter[str]()
        self._frame = frame
        self._menus = _Menus(root)
        self._sheets = StyleSheets(root)
        self._tables: list[Table] = []
        self._cells: list[tuple[Element, Flow]] = []  # the open cells, each with the flow around it
        self._lists: list[int | None] = []  # the next number of each open list, None for one with bullets
        self._scripts: list[tuple[Element, tuple[int, int]]] = []
        self._struck: list[Element] = []  # the open elements whose text is struck
        self._fonts: list[tuple[Element, str]] = []  # the open elements that name a font
        self._preformatted = 0
        self._keeping: list[Element] = []  # the open elements that keep their lines by their style
        self._heading: Element = None
        self._walk(root)

    def _walk(self, root: Element) -> None:
        walk = lxml.etree.iterwalk(root, events=("start", "end"))
        skipped: Element = None
        for event, element in walk:
            if event == "start":
                name = element.tag if isinstance(element.tag, str) else ""  # an entity that was not expanded has none
                if self._is_left_out(element, name) or self._is_replaced(element, name):
                    skipped = element
                    walk.skip_subtree()
                    continue
                self._open(element, name)
                if element.text:
                    self._text(element.text)
            else:
                if element is skipped:
                    skipped = None
                else:
                    self._close(element, element.tag)
                if element.tail and element is not root:
                    self._text(element.tail)

    def _text(self, text: str) -> None:
        if self._fonts:
            text = symbols(text, self._fonts[-1][1])
        if self._preformatted:
            self.flow.add_preformatted(text)
        else:
            self.flow.add(text)

    def _is_left_out(self, element: Element, name: str) -> bool:
        """True if an element is none of the page's text; counted where a reader might miss it."""
        if name == "script" and element.get("type", "").startswith("math/") and not _follows_formula(element):
            self.flow.add(f" {element.text or ''} ")  # the source of a formula that a script sets
        if not name or name in _SILENT:
            return True
        if kind := "page numbers" if _is_page_number(element) else self._kind_left_out(element, name):
            self.left_out[kind] += 1
        return bool(kind) or (name == "a" and _is_permalink(element))

    def _kind_left_out(self, element: Element, name: str) -> str:
        if name == "del":
            return "deleted parts"
        if _is_hidden(element, name, self._sheets):
            return "hidden parts"
        if element.get("aria-hidden") == "true" and _follows_formula(element):
            return "formulas shown twice"
        if name == "noscript" and _is_notice(element):
            return SCRIPT_NOTICES
        if name == "pre" and not self._preformatted and _is_line_numbers(element):
            return "columns of line numbers"
        return "menus" if self._menus.has(element, name) else ""

    def _is_replaced(self, element: Element, name: str) -> bool:
        """True if other words than the ones inside an element stand for it; adds them."""
        if name == "math":
            self.flow.add(set_beside(self.flow.tail(), math_text(element)))
        elif name == "img":
            words = element.get("alt", "")
            single = len(_WORDS.findall(words)) < 2  # mostly names an icon
            self.flow.add("" if single or _follows_formula(element) else f" {words} ")
        elif name == "input":
            self.flow.add(f" {_input_text(element)}")
        elif name == "iframe":
            self._inner_page(element.get("srcdoc"))
        elif name == "object":
            return element.get("data") is not None  # what it holds otherwise is for browsers that cannot show it
        elif name == "select":
            chosen = [option for option in element.iter("option") if option.get("selected") is not None]
            self.flow.add(f" {', '.join(''.join(option.itertext()).strip() for option in chosen)} ")
        else:
            return False
        return True

    def _inner_page(self, source: str | None) -> None:
        if not source or not source.strip():
            return
        inner = _Page(self._frame(source), lambda _: lxml.etree.Element("p"))  # pages inside it have no text
        self.left_out.update(inner.left_out)
        inner.flow.end()
        self.flow.extend(inner.flow.lines, Gap.BLANK)
        self.flow.end(Gap.BLANK)

    def _open(self, element: Element, name: str) -> None:
        if told := self._sheets.told(element, name):
            element.set("style", f"{element.get('style', '')};{told}")
        self._separate(_shown_as(element, name))
        if name in _HEADINGS:
            self.flow.mark(_HEADINGS[name], "heading")
            self._heading = element
        elif name in _LISTS:
            shows_numbers = name == "ol" and not _NO_NUMBERS_STYLE.search(element.get("style", ""))
            self._lists.append(_first_number(element) if shows_numbers else None)
        elif name == "li":
            self._item(element)
        elif name in _PREFORMATTED:
            self._preformatted += 1
        else:
            self._open_table_part(element, name)
        if name not in _PREFORMATTED and _keeps_lines(element):
            self._preformatted += 1
            self._keeping.append(element)
        self._open_marks(element, name)

    def _open_marks(self, element: Element, name: str) -> None:
        """Marks and fonts of the text in an element, on the line that it begins on."""
        if font := element.get("face") or _FONT_STYLE.search(element.get("style", "")):
            self._fonts.append((element, font if isinstance(font, str) else font[1]))
        if name == "q":
            self.flow.add("“")
        if _is_struck(element, name):
            self.flow.add("" if self._struck else STRUCK)
            self._struck.append(element)
        if _script_of(element, name) or (name == "a" and _is_note_mark(element)):
            self._scripts.append((element, self.flow.position()))

    def _close(self, element: Element, name: str) -> None:
        self._close_marks(element, name)
        if self._keeping and self._keeping[-1] is element:
            self._keeping.pop()
            self._preformatted -= 1
        if name in _LISTS:
            if self._lists:
                self._lists.pop()
        elif name == "br":
            self._break()
            return
        else:
            self._close_table_part(element, name)
        self._separate(_shown_as(element, name))
        if name in _PREFORMATTED:
            self._preformatted -= 1
        elif element is self._heading:
            self._heading = None
            self.flow.unmark()
        elif name == "li":
            self.flow.unmark()

    def _close_marks(self, element: Element, name: str) -> None:
        if self._fonts and self._fonts[-1][0] is element:
            self._fonts.pop()
        if self._scripts and self._scripts[-1][0] is element:
            self._script(element, name)
        if name == "q":
            self.flow.add("”")
        if self._struck and self._struck[-1] is element:
            self._struck.pop()
            self.flow.add("" if self._struck else STRUCK)

    def _separate(self, name: str) -> None:
        """Begin a new line where a browser does; a heading stays one line whatever it holds."""
        preformatted = self._preformatted > 0
        if name in _HEADINGS:
            self.flow.end(Gap.BLANK)
        elif self._heading is not None and not self._cells:
            self.flow.add(" " if name in _BLANK_AROUND or name in _OWN_LINE else "")
        elif name in _BLANK_AROUND or name in _PREFORMATTED:
            nested = name in _LISTS and self._lists  # of the list around it, here and where it ends
            self.flow.end(Gap.LINE if nested else Gap.BLANK, preformatted=preformatted)
        elif name in _OWN_LINE:
            self.flow.end(Gap.LINE, preformatted=preformatted)
        elif name in _BOXED:
            self.flow.add(" ")

    def _break(self) -> None:
        if self._heading is not None:
            self.flow.add(" ")
            return
        gap = Gap.BLANK if self.flow.is_empty() else Gap.LINE  # two of them end a paragraph
        self.flow.end(gap, preformatted=self._preformatted > 0)

    def _item(self, element: Element) -> None:
        if not self._lists:
            return
        indent = "  " * min(len(self._lists) - 1, _INDENTED)
        number = self._lists[-1]
        if number is None:
            self.flow.mark(f"{indent}- ", "item")
            return
        number = _number(element, "value", number)
        around = element.getparent()
        self._lists[-1] = number + (-1 if around.get("reversed") is not None else 1)
        self.flow.mark(f"{indent}{_numeral(number, around)}. ", "item")

    def _script(self, element: Element, name: str) -> None:
        script = self.flow.cut(self._scripts.pop()[1])
        if script is None or not script.strip():
            return
        note = _NOTE.fullmatch(script.strip())
        kind = _script_of(element, name)
        if kind != "sub" and note and (name == "a" or _holds_link(element)):
            self.flow.add(f"[{note[1]}]")
        else:
            self.flow.add(Script(script, raised=kind != "sub"))

    def _open_table_part(self, element: Element, name: str) -> None:
        if name == "table":
            layout = element.get("role") in ("none", "presentation")
            self._tables.append(Table(len(self._tables) + 1, layout))
        elif name == "tr" and self._tables:
            self._tables[-1].rows.append([])
        elif name in ("td", "th") and self._tables and self._tables[-1].holds_values():
            self._cells.append((element, self.flow))
            self.flow = Flow()

    def _close_table_part(self, element: Element, name: str) -> None:
        if self._cells and self._cells[-1][0] is element:
            self.flow.end()
            cell = Cell(self.flow.lines, _number(element, "rowspan", 1), _number(element, "colspan", 1))
            self.flow = self._cells.pop()[1]
            self._tables[-1].add(cell)
        elif name == "table" and self._tables:
            self._tables.pop().write(self.flow)


def _shown_as(element: Element, name: str) -> str:
    """The name of an element, or of one that stands as its style makes it stand: on its own lines, or in a box."""
    shown = None if name in _OWN_LINES else _DISPLAY_STYLE.search(element.get("style", ""))
    return name if shown is None else ("button" if shown[1] else "div")


def _script_of(element: Element, name: str) -> str:
    """``sup`` or ``sub`` for what stands raised or lowered, by its name or its style; else the empty string."""
    if name in _SCRIPTS or name in _BLANK_AROUND or name in _OWN_LINE:
        return name if name in _SCRIPTS else ""
    style, named = element.get("style", ""), element.get("class", "")
    if found := _RAISED_STYLE.search(style) or _SCRIPT_CLASS.search(named):
        return found[1][:3].lower()
    if not (style or named) or _NUMBER.fullmatch(_text_within(element, _SIGN_WITHIN) or "") is None:
        return ""
    if moved := _MOVED_STYLE.search(style):
        return "sup" if moved[1] == "" or moved[2] == "-" else "sub"
    short = _SHORT_CLASS.search(named)
    return short[1].lower() if short else ""


def _keeps_lines(element: Element) -> bool:
    """True if the line ends in an element count, by its style or a class named like ``pre``."""
    style, named = element.get("style", ""), element.get("class", "")
    if not (style or named) or not (_KEPT_STYLE.search(style) or _KEPT_CLASS.search(named)):
        return False
    return "\n" in (element.text or "").strip() or any("\n" in (child.tail or "").strip() for child in element)


def _is_struck(element: Element, name: str) -> bool:
    """True if what an element holds is struck; a row strikes each of its cells."""
    style = "" if name in _CONTAINERS else element.get("style", "")
    if name in ("td", "th") and (around := element.getparent()) is not None:
        style += ";" + around.get("style", "")
    return name in ("s", "strike") or _STRUCK_STYLE.search(style) is not None


def _input_text(element: Element) -> str:
    """Visible text of a form field."""
    kind = element.get("type", "").lower()
    if kind in ("checkbox", "radio"):
        return "☒ " if element.get("checked") is not None else "☐ "
    return f"{element.get('value', '')} " if kind in _TEXT_INPUTS else ""


def _is_hidden(element: Element, name: str, sheets: StyleSheets) -> bool:
    """True if the page hides a part.

    A tab's panel is hidden only until somebody chooses the tab, a formula only where a picture of it is shown.
    """
    attributes = element.attrib
    hidden = "hidden" in attributes and attributes["hidden"].lower() != "until-found"
    hidden = hidden or (name == "dialog" and "open" not in attributes)
    if not (hidden or _HIDING_STYLE.search(element.get("style", "")) or sheets.hide(element, name)):
        return False
    return element.get("role") != "tabpanel" and not _holds_formula(element)


def _is_page_number(element: Element) -> bool:
    """True if an element says which page of the printed book begins, in the middle of a sentence or a word."""
    named = element.get("role") == "doc-pagebreak" or "pagebreak" in element.get(
        _EPUB_TYPE, element.get("epub:type", "")
    )
    return named and bool(_text_within(element, _SIGN_WITHIN))


def _holds_formula(element: Element) -> bool:
    return next(element.iter("math"), None) is not None


def _follows_formula(element: Element) -> bool:
    before = element.getprevious()
    return before is not None and _holds_formula(before)


def _is_notice(element: Element) -> bool:
    """True if a text for browsers without scripts asks for scripts and says nothing else; a number says more."""
    text = _text_within(element, _NOTICE_WITHIN)
    return text is not None and "javascript" in text.lower() and not any(map(str.isdigit, text))


def _text_within(element: Element, limit: int) -> str | None:
    """All text of a small element, None for a larger one: elements nest, and each is read no further than that."""
    found = ""
    for number, text in enumerate(element.itertext()):
        found += text.strip() if limit == _SIGN_WITHIN else text
        if len(found) > limit or number > limit:
            return None
    return found.strip()


def _is_line_numbers(element: Element) -> bool:
    numbers = "".join(element.itertext()).split()
    if len(numbers) < 2 or not all(number.isdecimal() for number in numbers):
        return False
    first = int(numbers[0])
    return [int(number) for number in numbers] == list(range(first, first + len(numbers)))


def _is_permalink(element: Element) -> bool:
    """True if a link is the sign beside a heading that leads to the heading itself, or skips the menus."""
    if not element.get("href", "").startswith("#"):
        return False
    return "skip" in element.get("class", "") or _text_within(element, _SIGN_WITHIN) in _PERMALINK


def _is_note_mark(element: Element) -> bool:
    """True if a link is the number of a note, in the text or at the note, which a style sheet may set apart."""
    named = " ".join(element.get(name, "") for name in ("role", "class", "epub:type", _EPUB_TYPE))
    return any(name in named for name in ("noteref", "footnote-ref", "fn-backref", "doc-backlink"))


def _holds_link(element: Element) -> bool:
    link = element.find(".//a")
    if link is None:
        parent = element.getparent()
        link = parent if parent is not None and parent.tag == "a" else None
    return link is not None and link.get("href") is not None


def _number(element: Element, name: str, default: int) -> int:
    value = element.get(name, "").strip()
    return int(value) if re.fullmatch(r"-?[0-9]{1,6}", value) else default


def _first_number(element: Element) -> int:
    down = element.get("reversed") is not None
    return _number(element, "start", sum(1 for _ in element.iterchildren("li")) if down else 1)


def _numeral(number: int, around: Element) -> str:
    """A number as its list shows it: a, B, iv, or digits."""
    styled = _NUMERALS_STYLE.search(around.get("style", ""))
    kind = _NUMERALS[styled[1].lower()] if styled else around.get("type", "")
    return numeral(number, kind if 0 < number < _MOST_ROMAN else "1")


class _Menus:
    """A page's navigation."""

    def __init__(self, root: Element) -> None:
        self._root = root
        self._counted: dict[Element, _Links] | None = None

    def has(self, element: Element, name: str) -> bool:
        """True if an element is a menu."""
        if name == "nav" or element.get("role") in _ROLES:
            return True
        return name in _BOXES and (self._is_bar(element) or self._is_named(element))

    def _is_bar(self, element: Element) -> bool:
        """True if a box on a line of its own is a bar of steps, by what its links say."""
        return self._links(element).are_related() and _OWN_LINES.isdisjoint(child.tag for child in element)

    def _is_named(self, element: Element) -> bool:
        """True if a box is named like a menu and holds little but links."""
        named = f"{element.get('class', '')} {element.get('id', '')}"
        if len(named) < 3:
            return False
        links = self._links(element) if _NAMED_LIKE_MENUS.search(named) else None
        if links is not None and links.outside_main and links.are_most():
            return True
        if _NAMED_LIKE_CONTENTS.search(named):
            links = self._links(element)
            return links.are_most() and links.here == links.count
        return False

    def _links(self, element: Element) -> _Links:
        if self._counted is None:
            self._counted = _count_links(self._root)
        return self._counted.get(element, _Links(outside_main=False))


class _Links:
    """Share of an element that is links."""

    __slots__ = ("characters", "count", "here", "linked", "outside_main", "related", "steps")

    def __init__(self, *, outside_main: bool) -> None:
        self.characters = self.linked = self.count = self.here = self.related = self.steps = 0
        self.outside_main = outside_main

    def are_related(self) -> bool:
        """True if all are steps by their ``rel``, with little text beside them."""
        beside = self.characters - self.linked
        return 1 < self.related == self.count and beside <= _BESIDE_STEP * self.count and self.characters <= _BAR

    def are_most(self) -> bool:
        bar = self.steps > 1 and self.characters <= _BAR
        return bar or (self.count > 1 and self.linked >= _LINKED * self.characters)

    def add(self, inner: _Links) -> None:
        self.characters += inner.characters
        self.linked += inner.linked
        self.count += inner.count
        self.here += inner.here
        self.related += inner.related
        self.steps += inner.steps


def _count_links(root: Element) -> dict[Element, _Links]:
    """Links of every box that has a name, in one pass over the page: menus nest in boxes that look like menus."""
    found: dict[Element, _Links] = {}
    open_elements: list[_Links] = []
    in_main = 0
    for event, element in lxml.etree.iterwalk(root, events=("start", "end")):
        main = element.tag in _MAIN or element.get("role") == "main"
        if event == "start":
            in_main += main
            links = _Links(outside_main=not in_main)
            links.characters = _length(element.text)
            open_elements.append(links)
            continue
        in_main -= main
        links = open_elements.pop()
        if element.tag == "a":
            links.linked = links.characters
            links.count += 1
            links.here += element.get("href", "").startswith("#")
            said = (element.text or "").strip(" <>«»←→").lower() in _STEPS
            links.related += not _STEP_RELATIONS.isdisjoint(element.get("rel", "").lower().split())
            links.steps += said or links.related > 0 or element.get("accesskey", "").lower() in _STEP_KEYS
        if element.get("class") or element.get("id") or links.related > 1:
            found[element] = links
        if open_elements:
            open_elements[-1].add(links)
            open_elements[-1].characters += _length(element.tail)
    return found


def _length(text: str | None) -> int:
    return len("".join(text.split())) if text else 0
