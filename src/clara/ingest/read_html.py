"""Web pages: the main text by trafilatura, without menus and scripts. Its encoding is ``decode``'s work.

trafilatura looks for a page's main region and reads paragraphs, lists, tables and headings in it. What a page shows and
this search misses is put where it looks, before it looks: the page's parts are kept, their marks change.
"""

from __future__ import annotations

import re
from typing import Any

import lxml.etree
import lxml.html
import trafilatura
from trafilatura.utils import repair_faulty_html
from trafilatura.xpaths import BODY_XPATH

from clara.ingest.decode import decode_html
from clara.ingest.document import Extract
from clara.ingest.report import fault

_XML_DECLARATION = re.compile(r"\s*<\?xml[^>]{0,200}\?>", re.IGNORECASE)
_MENUS = ["//nav", "//*[@role='navigation']"]
# Characters that lxml reads and then refuses to write, as they are and as references: one would fail the whole page.
_REFUSED_BY_LXML = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]"
    r"|&#0*(?:[0-8]|1[124-9]|2[0-9]|3[01]|6553[45])(?![0-9]);?"
    r"|&#x0*(?:[0-8bcef]|1[0-9a-f]|fff[ef])(?![0-9a-f]);?",
    re.IGNORECASE,
)
_REPAIRED_BY = 50  # characters from which trafilatura tells whether a page's doctype needs repair
# Elements that only hold others, so that trafilatura reads no text that stands in them directly.
_BOXES = frozenset(
    ["address", "article", "aside", "body", "center", "details", "div", "footer", "form", "header", "main", "section"]
)
# fmt: off
# The elements that begin on a new line.
_BLOCKS = _BOXES | frozenset([
    "blockquote", "caption", "dd", "dialog", "dl", "dt", "fieldset", "figcaption", "figure", "h1", "h2", "h3", "h4",
    "h5", "h6", "hgroup", "hr", "legend", "li", "menu", "nav", "ol", "p", "pre", "search", "summary", "table", "tbody",
    "td", "tfoot", "th", "thead", "tr", "ul",
])
# fmt: on


def extract_html(data: bytes, uri: str) -> Extract:
    """Read a web page; its ``<title>`` is its title.

    A page in which no main text can be told from the rest gives all its visible text.

    Raises:
        DocumentError: not text, of unknown encoding, nested too deep, or without any text to see.
    """
    tree = _parsed(_XML_DECLARATION.sub("", decode_html(data, uri), count=1), uri)
    title = _title(tree)
    _show_all(tree)
    # For recall: by default lists and definitions are left out, which hold the facts of many pages.
    text = trafilatura.extract(tree, include_comments=False, favor_recall=True, prune_xpath=_MENUS) or ""
    if not text.strip():
        text = trafilatura.html2txt(tree)
    if not text.strip():
        raise fault(
            uri,
            "no text",
            "shows no text; a page that scripts fill has to be saved from a browser, after it has loaded",
        )
    return Extract(title=title, text=text, metadata={"media_type": "text/html"})


def _parsed(page: str, uri: str) -> Any:  # noqa: ANN401 - lxml elements have no type here
    """The page's tree. trafilatura's own parser stops at 255 levels and at texts of 10 MB, and says nothing."""
    parser = lxml.html.HTMLParser(
        encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True, collect_ids=False
    )
    page = repair_faulty_html(_REFUSED_BY_LXML.sub(" ", page), page[:_REPAIRED_BY].lower())
    # The added <html> gives a page of comments alone a tree too; the parser passes over a second one.
    tree = lxml.html.document_fromstring(f"<html>{page}".encode(), parser=parser)
    if any(entry.type == lxml.etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        raise fault(uri, "broken", "nests its elements too deep to be read to its end; save it as plain text")
    return tree


def _title(tree: Any) -> str:  # noqa: ANN401
    # Not any <title>: a drawing (SVG) inside the page may have one of its own.
    title = tree.find(".//head/title")
    return "" if title is None else str(title.text_content())


def _show_all(tree: Any) -> None:  # noqa: ANN401
    """Change a page's marks so that trafilatura keeps its headings, captions, dates and loose text."""
    lxml.etree.strip_tags(tree, "time")  # it would be dropped with its text, out of the middle of a sentence
    for element in tree.iter("figure", "figcaption"):
        element.tag = "div"
        element.attrib.clear()  # trafilatura drops what is named a caption
    body = tree.find("body")
    if body is None:
        return
    _wrap_loose_text(body)
    if not any(region(tree) for region in BODY_XPATH):
        # Without a main region trafilatura gathers paragraphs, lists and tables, and no headings.
        article = body.makeelement("article")
        article.extend(list(body))
        body.append(article)


def _wrap_loose_text(body: Any) -> None:  # noqa: ANN401
    """Make paragraphs of the texts that stand beside paragraphs instead of in one, as a browser shows them."""
    around_blocks = set()  # words' elements, such as <span>, are boxes where they hold a block
    for _, element in lxml.etree.iterwalk(body, events=("end",)):
        is_box = element.tag in _BOXES or (element in around_blocks and element.tag not in _BLOCKS)
        if element.tag in _BLOCKS or element in around_blocks:
            around_blocks.add(element.getparent())
        if is_box:
            _wrap_texts_of(element, around_blocks)


def _wrap_texts_of(box: Any, around_blocks: set[Any]) -> None:  # noqa: ANN401
    paragraph = None
    children = list(box)
    if box.text and box.text.strip():
        paragraph = box.makeelement("p")
        paragraph.text = box.text
        box.text = None
        box.insert(0, paragraph)
    for child in children:
        tail, child.tail = child.tail, None
        if child.tag in _BLOCKS or child in around_blocks:
            paragraph = None
        else:
            if paragraph is None:
                paragraph = box.makeelement("p")
                child.addprevious(paragraph)
            paragraph.append(child)
        if tail and paragraph is not None:
            child.tail = tail
        elif tail and tail.strip():
            paragraph = box.makeelement("p")
            paragraph.text = tail
            child.addnext(paragraph)
