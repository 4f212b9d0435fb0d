"""Messages (.eml): who wrote what to whom and when, and the text; attachments are counted, not read."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage, MIMEPart

from clara.ingest.charset import decode_as, decoder_name
from clara.ingest.document import Extract
from clara.ingest.read_html import page_of
from clara.ingest.report import fault

_SHOWN_HEADERS = ("From", "To", "Cc", "Date", "Subject")


def extract_email(data: bytes, uri: str) -> Extract:
    """Read a message; its subject is its title.

    Raises:
        DocumentError: it has no text, or in an encoding that it does not declare.
    """
    message = email.message_from_bytes(data, policy=email.policy.default)
    if not isinstance(message, EmailMessage) or not any(message[name] for name in _SHOWN_HEADERS):
        raise fault(uri, "broken", "is no message: it has none of the headers From, To, Date, Subject")
    headers = [f"{name}: {' '.join(str(message[name]).split())}" for name in _SHOWN_HEADERS if message[name]]
    body = message.get_body(("plain", "html"))
    text = _text(body, uri) if body is not None else ""
    attachments = [part.get_filename() or part.get_content_type() for part in message.iter_attachments()]
    if not text.strip() and not attachments:
        raise fault(uri, "no text", "has headers and no text")
    names = [f"Attachment: {name}" for name in attachments]
    return Extract(
        title=str(message["Subject"] or ""),
        text="\n\n".join(["\n".join([*headers, *names]), text]),
        metadata={"media_type": "message/rfc822"},
        left_out={"attachments": len(attachments)} if attachments else {},
        layout="markup",
    )


def _text(part: MIMEPart, uri: str) -> str:
    data = part.get_payload(decode=True)
    if not isinstance(data, bytes):
        return ""
    if part.get_content_type() == "text/html":
        return page_of(_with_charset(data, part), uri).text
    return _decoded(data, part, uri)


def _decoded(data: bytes, part: MIMEPart, uri: str) -> str:
    declared = part.get_content_charset()
    label = declared or "utf-8"
    name = decoder_name(label)
    if name is not None:
        try:
            return decode_as(data, name)
        except UnicodeDecodeError:
            pass
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise fault(
            uri,
            "encoding",
            f"declares the encoding {label!r}, in which byte 0x{data[error.start]:02X} at offset {error.start} of its "
            "text is no character; save the message again",
        ) from None


def _with_charset(data: bytes, part: MIMEPart) -> bytes:
    """The page with the encoding that the message declares for it, which counts more than the page's own."""
    label = part.get_content_charset()
    return b'<meta charset="' + label.encode("ascii", "replace") + b'">' + data if label else data
