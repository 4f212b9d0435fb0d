"""Web pages: the main text by trafilatura, without menus and scripts. Its encoding is ``decode``'s work."""

from __future__ import annotations

import re

import trafilatura
from trafilatura.utils import load_html

from clara.ingest.decode import decode_html
from clara.ingest.document import Extract
from clara.ingest.report import fault

_XML_DECLARATION = re.compile(r"\s*<\?xml[^>]{0,200}\?>", re.IGNORECASE)
_MENUS = ["//nav", "//*[@role='navigation']"]
_WHOLE_PAGE = re.compile(r"<(?:html|body)\b", re.IGNORECASE)


def extract_html(data: bytes, uri: str) -> Extract:
    """Read a web page; its ``<title>`` is its title.

    A page in which no main text can be told from the rest gives all its visible text.

    Raises:
        DocumentError: not text, of unknown encoding, or without any text to see.
    """
    page = _XML_DECLARATION.sub("", decode_html(data, uri), count=1)
    if not _WHOLE_PAGE.search(page):
        page = f"<html><body>{page}</body></html>"  # trafilatura refuses fragments
    # For recall: by default lists and definitions are left out, which hold the facts of many pages.
    text = trafilatura.extract(page, include_comments=False, favor_recall=True, prune_xpath=_MENUS) or ""
    if not text.strip():
        text = trafilatura.html2txt(page)
    if not text.strip():
        raise fault(
            uri,
            "no text",
            "shows no text; a page that scripts fill has to be saved from a browser, after it has loaded",
        )
    return Extract(title=_title(page), text=text, metadata={"media_type": "text/html"})


def _title(page: str) -> str:
    tree = load_html(page)
    # Not any <title>: a drawing (SVG) inside the page may have one of its own.
    title = None if tree is None else tree.find(".//head/title")
    return "" if title is None else str(title.text_content())
