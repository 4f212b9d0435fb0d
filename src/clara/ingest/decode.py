"""Bytes to text, strictly: a wrong guess would be stored, compressed and cited as if the source said it.

UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one, and for HTML the encoding that the page declares
(``charset``). Nothing is guessed from statistics, and nothing is replaced by question marks.
"""

from __future__ import annotations

import codecs
import re

from clara.ingest.charset import declared_label, decode_as, decoder_name, is_seven_bit
from clara.ingest.report import fault

# UTF-32 first: its little-endian mark begins with the UTF-16 one.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
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
    label = declared_label(data)
    name = decoder_name(label) if label else None
    if _marked_encoding(data) or (_is_utf8(data) and not (name and is_seven_bit(name))):
        return decode_text(data, uri)
    if label is None:
        raise _not_decodable(data, uri, "declares no encoding")
    if name is None:
        raise _not_decodable(data, uri, f"declares the encoding {label!r}, which is not known here")
    _refuse_nul(data, uri)
    try:
        text = decode_as(data, name)
    except UnicodeDecodeError as error:
        raise _not_in_declared(error, label, uri) from None
    _refuse_data(text, uri)
    return text


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


def _not_decodable(data: bytes, uri: str, declared: str = "") -> Exception:
    """The error for bytes that ought to be UTF-8, or what their byte order mark says."""
    encoding = _marked_encoding(data) or "utf-8"
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        found = f"found byte 0x{byte:02X} at offset {error.start}"
    else:
        found = "found other bytes"
    start = f"{declared}: " if declared else ""
    return fault(
        uri,
        "encoding",
        f"{start}expected {encoding.removesuffix('-sig').upper()}, {found}; "
        "save it as UTF-8 (iconv -f ENCODING -t utf-8, with the encoding that it was written in)",
    )


def _not_in_declared(error: UnicodeDecodeError, label: str, uri: str) -> Exception:
    byte = error.object[error.start]
    return fault(
        uri,
        "encoding",
        f"declares the encoding {label!r}, in which byte 0x{byte:02X} at offset {error.start} is no character; "
        "declare the encoding that it was written in, or save it as UTF-8",
    )
