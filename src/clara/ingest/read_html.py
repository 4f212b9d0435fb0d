"""Web pages, parsed by lxml, and messages (.eml), whose text may be one. What a page shows is ``html_text``'s work."""

from __future__ import annotations

import email
import email.policy
import html
import re
from collections import Counter
from collections.abc import Callable, Iterable
from email.message import EmailMessage, MIMEPart

import lxml.etree
import lxml.html

from clara.errors import DocumentError
from clara.ingest.decode import decode_declared, decode_html, decode_text
from clara.ingest.document import Element, Extract, fault
from clara.ingest.html_text import SCRIPT_NOTICES, PageText, page_text

_XML_DECLARATION = re.compile(r"\s*<\?xml[^>]{0,200}\?>", re.IGNORECASE)
# Characters that lxml reads and then refuses to write, as they are and as references: one would fail the whole page.
_REFUSED_BY_LXML = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]"
    r"|&#0*(?:[0-8]|1[124-9]|2[0-9]|3[01]|6553[45])(?![0-9]);?"
    r"|&#x0*(?:[0-8bcef]|1[0-9a-f]|fff[ef])(?![0-9a-f]);?",
    re.IGNORECASE,
)
_NAMED_CHARACTER = re.compile(r"&(?!(?:amp|lt|gt|quot|apos);)[A-Za-z][A-Za-z0-9]{1,31};")

_ATTRIBUTES = 1000  # of a tag that are read; pages that people or programs write have tens
# Possessive, so that a tag without an end is read once: a quotation mark counts after an equals sign alone.
_TAG = re.compile(r"""<([A-Za-z][^\s/>]*+)(?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+'|(?!["'])))*+>""")
_OPENING = re.compile("<[A-Za-z]")
_PART = re.compile(r"""=\s*+(?:"[^"]*+"?|'[^']*+'?|[^\s>]*+)|[^\s/>=]++""")
_RAW = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "textarea", "title")}

_SHOWN_HEADERS = ("From", "To", "Cc", "Date", "Subject")
_ATTACHMENTS = "attachments"
_FORWARDED_DEEPEST = 5  # messages within messages


def _extract_html(data: bytes, uri: str) -> Extract:
    """Read a web page; its ``<title>`` is its title."""
    return _extract(_html_tree(decode_html(data, uri), uri), uri, "text/html")


def _extract_xhtml(data: bytes, uri: str) -> Extract:
    """Read a page in XHTML, in which any element may close itself; one that is no XML is read as HTML."""
    return _extract(_xhtml_tree(data, uri), uri, "application/xhtml+xml")


def xhtml_page(data: bytes, uri: str, sheet: Callable[[str], bytes]) -> PageText:
    """Content of an XHTML page that is a part of a book, with the style sheets it links; its text may be empty."""
    tree = _xhtml_tree(data, uri)
    for link in tree.iter("link"):
        link.tag = "style"
        link.text = _REFUSED_BY_LXML.sub(" ", sheet(link.get("href", "")).decode(errors="replace"))
    return _page(tree, uri)


def _extract(tree: Element, uri: str, media_type: str) -> Extract:
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
    )


def _page(tree: Element, uri: str) -> PageText:
    return page_text(tree, lambda source: _html_tree(source, uri))


def _xhtml_tree(data: bytes, uri: str) -> Element:
    page = decode_html(data, uri)
    tree = _xml_tree(page)
    return _html_tree(page, uri) if tree is None else tree


def _html_tree(page: str, uri: str) -> Element:
    page = _REFUSED_BY_LXML.sub(" ", _XML_DECLARATION.sub("", page, count=1))
    _check_tags(page, uri)
    parser = lxml.html.HTMLParser(
        encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True, collect_ids=False
    )
    # The added <html> gives a page of comments alone a tree too; the parser passes over a second one.
    tree = lxml.html.document_fromstring(f"<html>{page}".encode(), parser=parser)
    if any(entry.type == lxml.etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        raise fault(uri, "broken", "nests its elements too deep to be read to its end; save it as plain text")
    return tree


def _xml_tree(page: str) -> Element:
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


def _title(tree: Element) -> str:
    # Not any <title>: a drawing (SVG) inside the page may have one of its own.
    for head in tree:
        if head.tag == "head":
            titles = (child for child in head if child.tag == "title")
            return "".join(next(titles, lxml.etree.Element("title")).itertext())
    return ""


def _check_tags(page: str, uri: str) -> None:
    """Refuse a page with a tag of more than ``_ATTRIBUTES`` attributes, before it is parsed.

    libxml2 compares each with all before it: a hundred thousand are five thousand million comparisons, hours of work.
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
        # An attribute takes two characters at least; the first part is the tag's name.
        parts = _PART.findall(page, place, end) if end - place > 2 * _ATTRIBUTES else []
        if sum(not part.startswith("=") for part in parts) - 1 > _ATTRIBUTES:
            detail = f"has a tag with more than {_ATTRIBUTES:,} attributes, as no page needs; save it as text"
            raise fault(uri, "broken", detail)
        place = end
        if tag is not None and (closing := _RAW.get(tag[1].lower())) is not None:
            found = closing.search(page, place)
            if found is None:
                return
            place = found.start()


def _extract_email(data: bytes, uri: str) -> Extract:
    """Read a message: who wrote what to whom and when, and the text; its subject is its title.

    Messages that it forwards are read as itself; other attachments are named and counted, not read.
    """
    message = email.message_from_bytes(data, policy=email.policy.default)
    if not isinstance(message, EmailMessage) or not any(message[name] for name in _SHOWN_HEADERS):
        raise fault(uri, "broken", "is no message: it has none of the headers From, To, Date, Subject")
    letter = _Letter(uri)
    letter.take(message)
    if not any(map(str.strip, letter.texts)) and not letter.attachments:
        raise fault(uri, "no text", "has headers and no text")
    return Extract(
        title=str(message["Subject"] or ""),
        text=letter.written(message),
        metadata={"media_type": "message/rfc822"},
        left_out=letter.left_out,
    )


class _Letter:
    """What one message says, part by part; ``depth`` is how many forward it, one inside the other."""

    def __init__(self, uri: str, depth: int = 0) -> None:
        self.texts: list[str] = []
        self.attachments: list[str] = []
        self.left_out = Counter[str]()
        self._uri = uri
        self._depth = depth

    def take(self, part: MIMEPart, *, named: bool = True) -> None:
        """Take a part; one that has a name may be an attachment, unless it is the message itself."""
        kind = part.get_content_type()
        shown = not part.is_attachment() and (named or part.get_filename() is None)
        if kind == "message/rfc822" and self._depth < _FORWARDED_DEEPEST and part.is_multipart():
            self._forwarded(next(part.iter_parts()))
        elif kind == "multipart/alternative":
            self._alternative(list(part.iter_parts()))
        elif kind == "multipart/related":
            parts = list(part.iter_parts())
            self._take_all(parts[:1])  # behind a page come its pictures
            self._name([_name_of(picture) for picture in parts[1:]])
        elif part.get_content_maintype() == "multipart":
            self._take_all(part.iter_parts())
        elif shown and kind in ("text/plain", "text/html"):
            self.texts.append(_text(part, self._uri, self.left_out))
        else:
            self._name([_name_of(part)])

    def written(self, message: MIMEPart) -> str:
        """The headers of the message, its attachments' names and its text."""
        headers = [f"{name}: {' '.join(str(message[name]).split())}" for name in _SHOWN_HEADERS if message[name]]
        names = [f"Attachment: {name}" for name in self.attachments]
        return "\n\n".join(["\n".join([*headers, *names]), *self.texts])

    def _take_all(self, parts: Iterable[MIMEPart]) -> None:
        for part in parts:
            self.take(part, named=False)

    def _alternative(self, parts: list[MIMEPart]) -> None:
        """The plain text if it says something, else the next; attachments may lie in any of them."""
        read: list[_Letter] = []
        for part in sorted(parts, key=lambda part: part.get_content_type() != "text/plain"):
            letter = _Letter(self._uri, self._depth)
            try:
                letter.take(part, named=False)
            except DocumentError:
                if not any(other.texts for other in read):
                    raise
                continue  # the same text once more
            read.append(letter)
        chosen = next((letter for letter in read if any(map(str.strip, letter.texts))), None)
        for letter in read:
            self._name(letter.attachments if letter.texts else [])  # none of a calendar's entry
        if chosen is not None:
            self.texts += chosen.texts
            chosen.left_out.pop(_ATTACHMENTS, None)
            self.left_out += chosen.left_out

    def _forwarded(self, message: MIMEPart) -> None:
        letter = _Letter(self._uri, self._depth + 1)
        try:
            letter.take(message)
        except DocumentError:  # its fault is no reason to refuse the one that forwards it
            self._name([str(message["Subject"] or "message/rfc822")])
            return
        self.texts.append(letter.written(message))
        self.left_out += letter.left_out

    def _name(self, names: list[str]) -> None:
        self.attachments += names
        self.left_out[_ATTACHMENTS] += len(names)


def _name_of(part: MIMEPart) -> str:
    return part.get_filename() or part.get_content_type()


def _text(part: MIMEPart, uri: str, left_out: Counter[str]) -> str:
    data = part.get_payload(decode=True)
    if not isinstance(data, bytes):
        return ""
    label = part.get_content_charset()
    if part.get_content_type() == "text/html":
        # The encoding that the message declares for a page counts more than the page's own.
        declared = b'<meta charset="' + label.encode("ascii", "replace") + b'">' if label else b""
        page = _page(_html_tree(decode_html(declared + data, uri), uri), uri)
        left_out.update(page.left_out)
        return page.text
    return decode_declared(data, label, uri) if label else decode_text(data, uri)


READERS = {".eml": _extract_email, ".htm": _extract_html, ".html": _extract_html, ".xhtml": _extract_xhtml}
