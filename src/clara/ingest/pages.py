"""Lines that run above and below the pages of a text: told by what the pages share, and left out.

And the headings that a file names with their pages: where they stand on these.

Knows pages as plain text, whether a text file's form feeds divide them or a PDF does. How pages become one text is
``document.TextParts``'s work.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from clara.ingest.scripts import roman

# A line that stands at the same edge of three pages, and of more than a third: left and right pages have their own.
_LEAST_PAGES, _MOST_PAGES = 3, 0.34
_DEPTH = 2  # lines looked at on each edge
_NUMBER = re.compile(r"(?<![^\W_])\d{1,6}(?![^\W_])")
_MOST_NUMBERS = 4  # in a line
_NUMBER_HERE = "\f"  # what is in no line
_ROMAN_HERE = "\f\f"
_ROMANS = {roman(number): number for number in range(1, 100)}
_GAP = r"(?: {3,}|\t)\s*"
# The number of a page stands alone or far from the words beside it; "Chapter 1" is a heading. It may say that it is a
# page's, and of how many: "Page 3 of 57", "3 / 57".
_PAGE, _OF = r"(?:(?:page|seite|p\.|s\.)\s*)?", r"(?:\s*(?:/|of|von)\s*\d+)?"
_APART = re.compile(
    rf"\W*{_PAGE}(?P<first>\d+){_OF}\W*?(?:{_GAP}\S.*)?|\S.*?{_GAP}\W*{_PAGE}(?P<last>\d+){_OF}\W*", re.IGNORECASE
)
# Of the pages before the first chapter, which are numbered for themselves and few.
_ROMAN_APART = re.compile(rf"\W*(?P<first>[ivxlc]+)\W*?(?:{_GAP}\S.*)?|\S.*?{_GAP}\W*(?P<last>[ivxlc]+)\W*")
# Of a heading: lines at most, and the number before it that only one of page and file gives: Chapter 12, Appendix A.
_LINES_OF_HEADING = 4
_NUMBER_BEFORE = re.compile(r"[a-z]{0,8}\d\w{0,6}|(?:appendix|annex|anhang)?[a-z]?|part[ivx]+")


def without_running_lines(pages: Sequence[str]) -> tuple[list[str], int]:
    """The pages without the lines that stand at the edge of most of them, and how many lines are gone.

    A text whose pages show no numbers is left as it is: so are sections that form feeds divide, and slides. The first
    page keeps what other pages repeat without their number: it may be the document's title.
    """
    lines = [page.strip("\n").split("\n") for page in pages]
    least = max(_LEAST_PAGES, _MOST_PAGES * len(pages))
    numbered, gone = False, 0
    for at_foot in (False, True):
        signs = [list(_edge_signs(page, number, at_foot=at_foot)) for number, page in enumerate(lines)]
        counts = Counter(each for page in signs for line in page for each in line)
        shared = {
            sign
            for sign, count in counts.items()
            if count >= (_LEAST_PAGES if sign[1].startswith(_ROMAN_HERE) else least)
        }
        numbered = numbered or any(_NUMBER_HERE in sign for _, sign in shared)
        for number, page in enumerate(signs):
            running = [bool(line & shared) for line in page]
            if number == 0 and not at_foot:
                running = [any(_NUMBER_HERE in sign for _, sign in line & shared) for line in page]
            count = len(running) - running[::-1].index(True) if True in running else 0
            gone += count
            lines[number] = _without_edge(lines[number], count, at_foot=at_foot)
    shown = ["\n".join(page).strip("\n") for page in lines]
    return (shown, gone) if numbered and any(shown) else (list(pages), 0)


def _edge_signs(page: list[str], number: int, *, at_foot: bool) -> Iterator[set[tuple[int, str]]]:
    """Of the outermost lines of a page, from its edge: what each may share with the lines as deep on other pages."""
    filled = [line for line in (reversed(page) if at_foot else page) if line.strip()]
    # Where nothing stands between head and foot, the last line is the foot's.
    for depth, line in enumerate(filled[: _DEPTH if at_foot else min(_DEPTH, max(len(filled) - 1, 1))]):
        signs = set(_signs(line, number, at_foot=at_foot))
        if depth and not at_foot:  # the names of a table's columns are repeated, too
            signs = {sign for sign in signs if _NUMBER_HERE in sign}
        yield {(depth, sign) for sign in signs if not (depth and sign.startswith(_ROMAN_HERE))}


def _signs(line: str, number: int, *, at_foot: bool) -> Iterator[str]:
    """Its words, its words but the page's number, and that number alone where it stands apart."""
    words = " ".join(line.split())
    if not any(map(str.isalnum, words)):
        return
    yield words
    small = _ROMAN_APART.fullmatch(line.strip())
    if small and (value := _ROMANS.get(small["first"] or small["last"])):
        yield f"{_ROMAN_HERE}{value - number}"
    apart = _APART.fullmatch(line.strip())
    if apart:
        yield f"{_NUMBER_HERE}{int(apart['first'] or apart['last']) - number}"
    if apart or at_foot:
        for found in list(_NUMBER.finditer(words))[:_MOST_NUMBERS]:
            yield f"{words[: found.start()]}{_NUMBER_HERE}{int(found[0]) - number}{words[found.end() :]}"


def _without_edge(page: list[str], count: int, *, at_foot: bool) -> list[str]:
    """A page without its outermost ``count`` lines that hold something."""
    filled = [place for place, line in enumerate(page) if line.strip()]
    if not count:
        return page
    return page[: filled[-count]] if at_foot else page[filled[count - 1] + 1 :]


def headings_on(pages: Sequence[str], named: Iterable[tuple[int, str]]) -> Iterator[tuple[int, int, str]]:
    """Where the headings stand that a file names, each with its page from 0: page, place in its text, words.

    A heading is a line, or a few, whose letters and digits are its own but for a number before them. One that its page
    writes otherwise stands where the heading before it does, or where the page begins.
    """
    lines = [list(_lines(page)) for page in pages]
    places: dict[int, int] = {}
    for page, words in named:
        wanted = _bare(words)
        found = (start for number, (start, _) in enumerate(lines[page]) if _begins(lines[page], number, wanted))
        places[page] = next((start for start in found if start > places.get(page, -1)), places.get(page, 0))
        yield page, places[page], words


def _lines(page: str) -> Iterator[tuple[int, str]]:
    """Where each line begins, and its letters and digits."""
    for found in re.finditer("[^\n]+", page):
        yield found.start(), _bare(found[0])


def _bare(words: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", words))).lower()


def _begins(lines: Sequence[tuple[int, str]], number: int, wanted: str) -> bool:
    """True if a heading begins with a line; of its number, one side may say more."""
    together = ""
    for _, line in lines[number : number + _LINES_OF_HEADING]:
        together += line
        longer, shorter = sorted((together, wanted), key=len, reverse=True)
        if line and longer.endswith(shorter) and _NUMBER_BEFORE.fullmatch(longer[: len(longer) - len(shorter)]):
            return True
    return False


def page_ranges(numbers: list[int]) -> str:
    """Ascending numbers as people write them: 2-5,7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
