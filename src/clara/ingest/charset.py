"""Which encoding a web page declares, as the WHATWG standard finds it, and how the standard reads that encoding.

A declaration is a ``<meta>`` or an XML declaration; what stands in comments, scripts and other tags declares nothing.
Python's own decoders of Japanese, Chinese and Korean lack the characters that vendors added and every browser reads.
Text without markup is ``decode``'s work.
"""

from __future__ import annotations

import codecs
import re

import webencodings

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
_SEVEN_BIT = frozenset(["hz", "iso2022_jp", "iso2022_kr", "iso-2022-jp"])
# Euro signs that Windows added and Python's decoders lack.
_EUROS = {"gb18030": b"\x80", "big5hkscs": b"\xa3\xe1"}
_CHARACTER = re.compile(rb"[\x81-\xfe][\x30-\x39\x40-\x7e\x80-\xfe]|\x80")  # of two bytes, or the euro sign
# ISO 2022-JP: what each escape sequence says of the bytes that follow.
_ESCAPES = {b"\x1b(B": "ascii", b"\x1b(J": "ascii", b"\x1b(I": "kana", b"\x1b$@": "kanji", b"\x1b$B": "kanji"}
_ESCAPE = re.compile(rb"(\x1b(?:\([BJI]|\$[@B]))")


def declared_label(data: bytes) -> str | None:
    """The encoding that a page declares, as it is written there, or None."""
    from_xml = None
    for found in _MARKUP.finditer(data, 0, _WITHIN):
        if found["declaration"] is not None and from_xml is None:
            from_xml = _XML_ENCODING.match(found["declaration"])
        elif (found["tag"] or b"").lower() == b"meta" and (label := _meta_label(found["attributes"])):
            return _written(label)
    return _written(from_xml[1]) if from_xml else None


def decoder_name(label: str) -> str | None:
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
    return found.name if _is_text(found) and not found.name.startswith(("utf-16", "utf-32")) else None


def is_seven_bit(name: str) -> bool:
    """Whether text in that encoding consists of ASCII bytes, so that it would pass for UTF-8."""
    return name in _SEVEN_BIT


def decode_as(data: bytes, name: str) -> str:
    """Decode by a decoder that ``decoder_name`` gave.

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


def _written(label: bytes) -> str:
    return label.decode("ascii", "replace").strip()


def _is_text(found: codecs.CodecInfo) -> bool:
    return getattr(found, "_is_text_encoding", True) and found.name not in _REFUSED


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
