"""Web pages, parsed by lxml. What they show is ``html_text``'s work, their encoding ``decode``'s."""

from __future__ import annotations

import html
import re
from typing import Any

import lxml.etree
import lxml.html

from clara.ingest.decode import decode_html
from clara.ingest.document import Extract
from clara.ingest.html_tags import check_tags
from clara.ingest.html_text import SCRIPT_NOTICES, PageText, page_text
from clara.ingest.report import fault

_XML_DECLARATION = re.compile(r"\s*<\?xml[^>]{0,200}\?>", re.IGNORECASE)
# Characters that lxml reads and then refuses to write, as they are and as references: one would fail the whole page.
_REFUSED_BY_LXML = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]"
    r"|&#0*(?:[0-8]|1[124-9]|2[0-9]|3[01]|6553[45])(?![0-9]);?"
    r"|&#x0*(?:[0-8bcef]|1[0-9a-f]|fff[ef])(?![0-9a-f]);?",
    re.IGNORECASE,
)
_NAMED_CHARACTER = re.compile(r"&(?!(?:amp|lt|gt|quot|apos);)[A-Za-z][A-Za-z0-9]{1,31};")


def extract_html(data: bytes, uri: str) -> Extract:
    """Read a web page; its ``<title>`` is its title.

    Raises:
        DocumentError: not text, of unknown encoding, nested too deep, or without any text to see.
    """
    return _extract(_html_tree(decode_html(data, uri), uri), uri, "text/html")


def page_of(data: bytes, uri: str) -> PageText:
    """What a page shows that is a part of something else, such as a message; its text may be empty.

    Raises:
        DocumentError: as ``extract_html``.
    """
    return _page(_html_tree(decode_html(data, uri), uri), uri)


def xhtml_page_of(data: bytes, uri: str) -> PageText:
    """As ``page_of``, for a page in XHTML.

    Raises:
        DocumentError: as ``extract_html``.
    """
    return _page(_xhtml_tree(data, uri), uri)


def extract_xhtml(data: bytes, uri: str) -> Extract:
    """Read a page in XHTML, in which any element may close itself; one that is no XML is read as HTML.

    Raises:
        DocumentError: as ``extract_html``.
    """
    return _extract(_xhtml_tree(data, uri), uri, "application/xhtml+xml")


def _extract(tree: Any, uri: str, media_type: str) -> Extract:  # noqa: ANN401 - lxml elements have no type here
    page = _page(tree, uri)
    if not page.text:
        kinds = ", ".join(kind for kind in page.left_out if kind != SCRIPT_NOTICES)
        shown = f"shows nothing but {kinds}" if kinds else "shows no text"
        remedy = "a page that scripts fill has to be saved from a browser, after it has loaded"
        raise fault(uri, "no text", f"{shown}; {remedy}")
    return Extract(
        title=_title(tree),
        text=page.text,
        metadata={"media_type": media_type},
        headings=page.headings,
        left_out=page.left_out,
        layout="markup",
    )


def _page(tree: Any, uri: str) -> PageText:  # noqa: ANN401
    return page_text(tree, lambda source: _html_tree(source, uri))


def _xhtml_tree(data: bytes, uri: str) -> Any:  # noqa: ANN401
    page = decode_html(data, uri)
    tree = _xml_tree(page)
    return _html_tree(page, uri) if tree is None else tree


def _html_tree(page: str, uri: str) -> Any:  # noqa: ANN401
    page = _REFUSED_BY_LXML.sub(" ", _XML_DECLARATION.sub("", page, count=1))
    check_tags(page, uri)
    parser = lxml.html.HTMLParser(
        encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True, collect_ids=False
    )
    # The added <html> gives a page of comments alone a tree too; the parser passes over a second one.
    tree = lxml.html.document_fromstring(f"<html>{page}".encode(), parser=parser)
    if any(entry.type == lxml.etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        raise fault(uri, "broken", "nests its elements too deep to be read to its end; save it as plain text")
    return tree


def _xml_tree(page: str) -> Any:  # noqa: ANN401
    """The tree of well-formed XML, else None. Nothing outside the page is loaded, no entity of its own is expanded."""
    page = _NAMED_CHARACTER.sub(lambda found: html.unescape(found[0]), _XML_DECLARATION.sub("", page, count=1))
    parser = lxml.etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        remove_comments=True,
        remove_pis=True,
        collect_ids=False,
    )
    try:
        tree = lxml.etree.fromstring(page.encode(), parser)
    except lxml.etree.XMLSyntaxError:
        return None
    for element in tree.iter(lxml.etree.Element):
        element.tag = element.tag.rpartition("}")[2].lower()
    return tree


def _title(tree: Any) -> str:  # noqa: ANN401
    # Not any <title>: a drawing (SVG) inside the page may have one of its own.
    for head in tree:
        if head.tag == "head":
            titles = (child for child in head if child.tag == "title")
            return "".join(next(titles, lxml.etree.Element("title")).itertext())
    return ""
