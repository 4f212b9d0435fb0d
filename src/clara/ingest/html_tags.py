"""A page whose tags are built to take a parser hours: found in one pass over its characters, before it is parsed.

libxml2 compares each attribute of a tag with all before it, so a hundred thousand of them are five thousand million
comparisons.
"""

from __future__ import annotations

import re

from clara.ingest.report import fault

_ATTRIBUTES = 1000
"""Attributes of a tag that are read; pages that people or programs write have tens."""

# Possessive, so that a tag without an end is read once: a quotation mark counts after an equals sign alone.
_TAG = re.compile(r"""<([A-Za-z][^\s/>]*+)(?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+'|(?!["'])))*+>""")
_OPENING = re.compile("<[A-Za-z]")
_PART = re.compile(r"""=\s*+(?:"[^"]*+"?|'[^']*+'?|[^\s>]*+)|[^\s/>=]++""")
_RAW = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "textarea", "title")}


def check_tags(page: str, uri: str) -> None:
    """Refuse a page with a tag of more than ``_ATTRIBUTES`` attributes.

    Raises:
        DocumentError: it has one.
    """
    place = 0
    while (place := page.find("<", place)) >= 0:
        if page.startswith("<!--", place):
            end = page.find("-->", place)
            if end < 0:
                return
            place = end
            continue
        if _OPENING.match(page, place) is None:
            place += 1
            continue
        tag = _TAG.match(page, place)
        end = len(page) if tag is None else tag.end()
        # An attribute takes two characters at least.
        if end - place > 2 * _ATTRIBUTES and _attributes(page[place:end]) > _ATTRIBUTES:
            raise fault(
                uri, "broken", f"has a tag with more than {_ATTRIBUTES:,} attributes, as no page needs; save it as text"
            )
        place = end
        if tag is not None and (closing := _RAW.get(tag[1].lower())) is not None:
            found = closing.search(page, place)
            if found is None:
                return
            place = found.start()


def _attributes(tag: str) -> int:
    """How many attributes a tag names."""
    return sum(not part[0].startswith("=") for part in _PART.finditer(tag)) - 1
