"""Bytes to text, strictly: a wrong guess would be stored, compressed and cited as if the source said it.

UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one, and for HTML the encoding that the page declares,
as the WHATWG standard finds and reads it. A declaration is a ``<meta>`` or an XML declaration; what stands in comments,
scripts and other tags declares nothing. Nothing is guessed from statistics, and nothing is replaced by question marks.
"""

from __future__ import annotations

import codecs
import contextlib
import re

import webencodings

from clara.ingest.document import fault

_WITHIN = 1 << 16  # bytes; the standard looks at 1024 first, and at the rest while it parses
# Comments, scripts, declarations, tags: in this order, so that none is looked for inside another.
_MARKUP = re.compile(
    rb"<!--(?:>|->|.*?(?:--!?>|\Z))"
    rb"|<(?:script|style|title|textarea|template)\b.*?(?:</(?:script|style|title|textarea|template)\b[^>]*>|\Z)"
    rb"""|<(?P<tag>/?[a-z][^\s/>]*)(?P<attributes>(?:[^>"']|"[^"]*"|'[^']*')*)"""
    rb"|<[!?/](?P<declaration>[^>]*)>",
    re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTE = re.compile(rb"""([^\s/>="']+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"']+)))?""")
_CHARSET = re.compile(rb"""charset\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s;"']+))""", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""^xml\b[^>]*?\bencoding\s*=\s*["']([^"']*)["']""", re.IGNORECASE)

# The standard's names to Python's decoders, where Python's of the same name reads less.
_DECODERS = {
    "big5": "big5hkscs",
    "euc-kr": "cp949",
    "gbk": "gb18030",
    "iso-8859-8-i": "iso-8859-8",
    "macintosh": "mac-roman",
    "shift_jis": "cp932",
    "windows-874": "cp874",
    "x-mac-cyrillic": "mac-cyrillic",
    # A page that says so in ASCII bytes is not in UTF-16; the standard's remedies.
    "utf-16le": "utf-8",
    "utf-16be": "utf-8",
    "x-user-defined": "windows-1252",
}
# Not text, or a way to smuggle in other text than people see.
_REFUSED = frozenset(["idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape", "utf-7"])
# Text in them consists of ASCII bytes, so that it would pass for UTF-8.
_SEVEN_BIT = frozenset(["hz", "iso2022_jp", "iso2022_kr", "iso-2022-jp"])
# Euro signs that Windows added and Python's decoders lack.
_EUROS = {"gb18030": b"\x80", "big5hkscs": b"\xa3\xe1"}
_CHARACTER = re.compile(rb"[\x81-\xfe][\x30-\x39\x40-\x7e\x80-\xfe]|\x80")  # of two bytes, or the euro sign
# ISO 2022-JP: what each escape sequence says of the bytes that follow.
_ESCAPES = {b"\x1b(B": "ascii", b"\x1b(J": "ascii", b"\x1b(I": "kana", b"\x1b$@": "kanji", b"\x1b$B": "kanji"}
_ESCAPE = re.compile(rb"(\x1b(?:\([BJI]|\$[@B]))")

# UTF-32 first: its little-endian mark begins with the UTF-16 one.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OVERSTRUCK = re.compile(r"[^\n]\x08")  # bold and underlined text as manual pages are printed
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_SAMPLE = 1 << 16  # characters looked at to tell text from data
_CONTROL_SHARE = 0.01  # text has next to none; random bytes have 10 % and more


def decode_text(data: bytes, uri: str) -> str:
    """Decode a text file.

    Raises:
        DocumentError: it is not text, or in another encoding than UTF-8, or UTF-16 or UTF-32 with a byte order mark.
    """
    encoding = _marked_encoding(data) or "utf-8"
    if encoding == "utf-8":
        _refuse_nul(data, uri)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise _not_decodable(data, uri) from None
    _refuse_data(text, uri)
    return text.removeprefix("\ufeff")


def decode_html(data: bytes, uri: str) -> str:
    """Decode a web page: by its byte order mark, else as UTF-8, else by the encoding that it declares.

    Bytes that are UTF-8 are read as that whatever is declared: text in another encoding passes for it only by chance.

    Raises:
        DocumentError: it is not text, or in an encoding that it does not declare.
    """
    label = _declared_label(data)
    name = _decoder_name(label) if label else None
    if _marked_encoding(data) or (_is_utf8(data) and name not in _SEVEN_BIT):
        return decode_text(data, uri)
    if label is None:
        raise _not_decodable(data, uri, "declares no encoding")
    if name is None:
        raise _not_decodable(data, uri, f"declares the encoding {label!r}, which is not known here")
    _refuse_nul(data, uri)
    try:
        text = _decode_as(data, name)
    except UnicodeDecodeError as error:
        detail = (
            f"declares the encoding {label!r}, in which byte 0x{data[error.start]:02X} at offset {error.start} is no "
            "character; declare the encoding that it was written in, or save it as UTF-8"
        )
        raise fault(uri, "encoding", detail) from None
    _refuse_data(text, uri)
    return text


def decode_declared(data: bytes, label: str, uri: str) -> str:
    """Decode text by the encoding that a message declares for it, else as UTF-8."""
    with contextlib.suppress(UnicodeDecodeError):
        if (name := _decoder_name(label)) is not None:
            return _decode_as(data, name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte 0x{data[error.start]:02X} at offset {error.start} of its text"
        detail = f"declares the encoding {label!r}, in which {place} is no character; save the message again"
        raise fault(uri, "encoding", detail) from None


def _marked_encoding(data: bytes) -> str | None:
    return next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), None)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _refuse_nul(data: bytes, uri: str) -> None:
    position = data.find(b"\0")
    if position >= 0:
        detail = f"expected text, found a NUL byte at offset {position}"
        raise fault(uri, "binary", f"{detail}; if it is UTF-16 without a byte order mark, save it as UTF-8")


def _refuse_data(text: str, uri: str) -> None:
    sample = text[:_SAMPLE]
    controls = len(_CONTROLS.findall(_OVERSTRUCK.sub("", sample)))
    if "\0" in text or controls > _CONTROL_SHARE * len(sample):
        raise fault(uri, "binary", "expected text, found the control characters of binary data")


def _not_decodable(data: bytes, uri: str, declared: str = "") -> Exception:
    """The error for bytes that ought to be UTF-8, or what their byte order mark says."""
    encoding = _marked_encoding(data) or "utf-8"
    found = "other bytes"
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02X} at offset {error.start}"
    expected = f"{declared and declared + ': '}expected {encoding.removesuffix('-sig').upper()}, found {found}"
    remedy = "save it as UTF-8 (iconv -f ENCODING -t utf-8, with the encoding that it was written in)"
    return fault(uri, "encoding", f"{expected}; {remedy}")


def _declared_label(data: bytes) -> str | None:
    """The encoding that a page declares, as it is written there, or None."""
    from_xml = None
    for found in _MARKUP.finditer(data, 0, _WITHIN):
        if found["declaration"] is not None and from_xml is None:
            from_xml = _XML_ENCODING.match(found["declaration"])
        elif (found["tag"] or b"").lower() == b"meta" and (label := _meta_label(found["attributes"])):
            return label.decode("ascii", "replace").strip()
    return from_xml[1].decode("ascii", "replace").strip() if from_xml else None


def _decoder_name(label: str) -> str | None:
    """The decoder for a declared label: the standard's, else Python's own of that name, else None."""
    known = webencodings.lookup(label)
    if known is not None and known.name != "replacement":  # browsers refuse these, because scripts hid in them
        name = str(known.name)
        return _DECODERS.get(name, name)
    try:
        # An encoding that no browser reads (IBM's code pages) is better read as declared than as another one.
        found = codecs.lookup(label)
    except (LookupError, ValueError):
        return None
    is_text = getattr(found, "_is_text_encoding", True) and found.name not in _REFUSED
    return found.name if is_text and not found.name.startswith(("utf-16", "utf-32")) else None


def _decode_as(data: bytes, name: str) -> str:
    """Decode by a decoder that ``_decoder_name`` gave.

    Raises:
        UnicodeDecodeError: the bytes are not in that encoding.
    """
    if name == "iso-2022-jp":
        data, name = _euc_of_iso_2022(data), "euc-jp"
    if name == "euc-jp":
        return _decode_euc_jp(data)
    if name in _EUROS:
        return "€".join(piece.decode(name) for piece in _parted_at(data, _EUROS[name]))
    if name.startswith("windows-"):
        return codecs.charmap_decode(data, "strict", _windows_table(name))[0]
    return data.decode(name)


def _windows_table(name: str) -> str:
    """A code page of Windows, in which the standard reads bytes without a character as control characters."""
    characters = bytes(range(256)).decode(name, "replace")
    undefined = "\ufffe"
    return "".join(
        character if character != "\ufffd" else chr(byte) if 0x80 <= byte < 0xA0 else undefined
        for byte, character in enumerate(characters)
    )


def _meta_label(attributes: bytes) -> bytes | None:
    found: dict[bytes, bytes] = {}
    for name, *values in _ATTRIBUTE.findall(attributes):
        found.setdefault(name.lower(), b"".join(values))
    if b"charset" in found:
        return found[b"charset"]
    if found.get(b"http-equiv", b"").strip().lower() != b"content-type":
        return None
    charset = _CHARSET.search(found.get(b"content", b""))
    return b"".join(group or b"" for group in charset.groups()) if charset else None


def _parted_at(data: bytes, euro: bytes) -> list[bytes]:
    """The bytes between euro signs; bytes that look like one inside two other characters are none."""
    if euro not in data:
        return [data]
    starts = [0]
    stops: list[int] = []
    for found in _CHARACTER.finditer(data):
        if found[0] == euro:
            stops.append(found.start())
            starts.append(found.end())
    return [data[start:stop] for start, stop in zip(starts, [*stops, len(data)], strict=True)]


def _decode_euc_jp(data: bytes) -> str:
    """EUC-JP with the characters that NEC and IBM added: by way of Shift JIS, whose decoder has them."""
    try:
        return data.decode("euc-jp")
    except UnicodeDecodeError:
        pass
    parts: list[str] = []
    position = 0
    while position < len(data):
        first = data[position]
        length = 3 if first == 0x8F else 2 if first >= 0x8E else 1
        piece = data[position : position + length]
        try:
            parts.append(_shift_jis(piece).decode("cp932") if first >= 0xA1 else piece.decode("euc-jp"))
        except (UnicodeDecodeError, IndexError):
            raise UnicodeDecodeError("euc-jp", data, position, position + length, "no such character") from None
        position += length
    return "".join(parts)


def _shift_jis(pair: bytes) -> bytes:
    """A pair of EUC-JP bytes as Shift JIS writes the same place of the same table."""
    row, cell = pair[0] - 0xA1, pair[1] - 0xA1
    if not (0 <= row < 94 and 0 <= cell < 94):
        raise IndexError
    lead = row // 2 + (0x81 if row < 62 else 0xC1)
    trail = cell + (0x9F if row % 2 else 0x40 + (cell >= 63))
    return bytes([lead, trail])


def _euc_of_iso_2022(data: bytes) -> bytes:
    """ISO 2022-JP as EUC-JP: the same table of characters, told by the high bit instead of by escape sequences."""
    out: list[bytes] = []
    charset = "ascii"
    for piece in _ESCAPE.split(data):
        if piece in _ESCAPES:
            charset = _ESCAPES[piece]
        elif charset == "ascii":
            out.append(piece)
        else:
            out.extend(_high(line, charset) for line in re.split(rb"([\r\n]+)", piece))
    return b"".join(out)


def _high(piece: bytes, charset: str) -> bytes:
    if piece[:1] in (b"", b"\r", b"\n"):
        return piece
    high = bytes(byte | 0x80 for byte in piece)
    return high if charset == "kanji" else b"".join(b"\x8e" + high[i : i + 1] for i in range(len(high)))
