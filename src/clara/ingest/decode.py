"""Bytes to text, strictly: a wrong guess would be stored, compressed and cited as if the source said it.

UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one, and for HTML the encoding that the page declares.
Nothing is guessed from statistics, and nothing is replaced by question marks.
"""

from __future__ import annotations

import codecs
import re

from clara.ingest.report import fault

# UTF-32 first: its little-endian mark begins with the UTF-16 one.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What a page may declare, by Python's names: the encodings of the WHATWG standard that Python knows. Others (Python
# also lists rot13 and punycode) are refused.
_HTML_ENCODINGS = frozenset(
    [f"cp{number}" for number in (866, 874, 932, 949, 1250, 1251, 1252, 1253, 1254, 1255, 1256, 1257, 1258)]
    + [f"iso8859-{number}" for number in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)]
    + ["koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "gbk", "gb18030", "big5", "big5hkscs", "euc_jp", "euc_kr"]
    + ["shift_jis", "iso2022_jp", "utf-8"]
)
# The standard reads these labels as Windows-1252, and so does every browser.
_READ_AS_WINDOWS_1252 = frozenset(["ascii", "iso8859-1"])
# Labels that the standard reads by a larger encoding than Python does, or that Python does not know.
_LABELS = {
    "gb2312": "gb18030",
    "x-gbk": "gb18030",
    "x-sjis": "cp932",
    "windows-31j": "cp932",
    "windows-949": "cp949",
    "tis-620": "cp874",
    "iso-8859-11": "cp874",
}
_DECLARATION = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9._:-]{1,40})""", re.IGNORECASE)
_DECLARATION_WITHIN = 1024  # bytes: the HTML standard's own limit

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
    except UnicodeDecodeError as error:
        raise _not_decodable(error, uri) from None
    _refuse_data(text, uri)
    return text.removeprefix("\ufeff")


def decode_html(data: bytes, uri: str) -> str:
    """Decode a web page: as text, else by the encoding that its first bytes declare.

    Raises:
        DocumentError: it is not text, or in an encoding that it does not declare.
    """
    declared = _declared_encoding(data)
    # ISO-2022-JP consists of ASCII bytes, so that it passes for UTF-8; no other declared encoding does.
    if declared is None or (declared != "iso2022_jp" and _is_utf8(data)) or _marked_encoding(data):
        return decode_text(data, uri)
    _refuse_nul(data, uri)
    try:
        text = data.decode(declared)
    except UnicodeDecodeError as error:
        raise _not_decodable(error, uri) from None
    _refuse_data(text, uri)
    return text


def _marked_encoding(data: bytes) -> str | None:
    return next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), None)


def _declared_encoding(data: bytes) -> str | None:
    match = _DECLARATION.search(data[:_DECLARATION_WITHIN])
    if match is None:
        return None
    label = match.group(1).decode("ascii").lower()
    try:
        name = codecs.lookup(_LABELS.get(label, label)).name
    except LookupError:
        return None
    if name in _READ_AS_WINDOWS_1252:
        return "cp1252"
    return name if name in _HTML_ENCODINGS else None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _refuse_nul(data: bytes, uri: str) -> None:
    position = data.find(b"\0")
    if position >= 0:
        raise fault(
            uri,
            "binary",
            f"expected text, found a NUL byte at offset {position}; "
            "if it is UTF-16 without a byte order mark, save it as UTF-8",
        )


def _refuse_data(text: str, uri: str) -> None:
    sample = text[:_SAMPLE]
    controls = len(_CONTROLS.findall(sample))
    if "\0" in text or controls > _CONTROL_SHARE * len(sample):
        raise fault(uri, "binary", "expected text, found the control characters of binary data")


def _not_decodable(error: UnicodeDecodeError, uri: str) -> Exception:
    byte = error.object[error.start]
    return fault(
        uri,
        "encoding",
        f"expected {error.encoding.upper()}, found byte 0x{byte:02X} at offset {error.start}; "
        "save it as UTF-8 (for Latin-1: iconv -f latin1 -t utf-8)",
    )
