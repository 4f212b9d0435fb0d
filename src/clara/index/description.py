"""``store.json``: what says that a folder is a clara store, of which format and codec, and whose memories it holds.

The file is the first thing a store gets and is written whole or not at all, so a folder is either not yet a store or
knows its model. Format 1 held memories as fp16 without checksums; ``upgrade`` brings its stores to format 2. What else
lies in the folder is ``store``'s business.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from clara.errors import ConfigError, StoreError, StoreModelError
from clara.index.codecs import CODECS, DEFAULT_CODEC
from clara.index.protocol import StoreModel

_FORMAT = "clara-store"
_FORMAT_VERSION = 2
DESCRIPTION_FILE = "store.json"
LOCK_FILE = "write.lock"
_DRAFT_FILE = "store.json.draft"


class _Model(BaseModel):
    """The ``model`` object of ``store.json``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    fingerprint: str
    name: str
    rate: int
    memory_tokens: int
    width: int
    query_space: Literal["flat", "mean"] = "flat"


@dataclass(frozen=True, slots=True)
class Description:
    """What ``store.json`` says.

    Attributes:
        model: whose memories the store holds.
        codec: how they are stored.
        version: of the format.
    """

    model: StoreModel
    codec: str = DEFAULT_CODEC
    version: int = _FORMAT_VERSION


def read_description(folder: Path, *, older: bool = False) -> Description | None:
    """What is said of the store in a folder.

    Args:
        folder: the store's.
        older: take a store of format 1 too, which can only be upgraded.

    Returns:
        ``None`` if the folder can become a store: it does not exist, is empty, or holds no more than what a creation
        leaves that was cut short.

    Raises:
        StoreError: a file, a folder of something else, a damaged description, or another format.
    """
    path = folder / DESCRIPTION_FILE
    try:
        if not folder.exists():
            return None
        if not folder.is_dir():
            raise StoreError(f"{folder} is a file; a store is a folder: name another --store")
        if not path.exists():
            _refuse_foreign(folder)
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"the store {folder} cannot be read: {error}") from error
    described = _parse(text, path)
    if described.version != _FORMAT_VERSION and not older:
        raise StoreError(
            f"the store {folder} is of format {described.version}, this clara uses format {_FORMAT_VERSION}; "
            f"bring it there, without compressing anything again: clara upgrade {folder}"
        )
    return described


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder without a description that holds something else."""
    foreign = sorted({entry.name for entry in folder.iterdir()} - {LOCK_FILE, _DRAFT_FILE})
    if foreign:
        raise StoreError(
            f"{folder} is not a clara store: it has no {DESCRIPTION_FILE} but holds {foreign[0]}"
            f"{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}; name a new or empty folder as --store"
        )


def write_description(folder: Path, described: Description) -> None:
    """Make a folder a store of a model; atomic.

    Raises:
        StoreError: the folder cannot be written.
    """
    content = {
        "format": _FORMAT,
        "version": _FORMAT_VERSION,
        "codec": described.codec,
        "model": asdict(described.model),
    }
    content["crc"] = _checksum(content)
    draft = folder / _DRAFT_FILE
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / DESCRIPTION_FILE)
    except OSError as error:
        raise StoreError(f"the store {folder} cannot be written: {error}") from error


def check_model(folder: Path, stored: StoreModel, wanted: StoreModel) -> None:
    """Refuse to use a store with another model than the one that filled it.

    Raises:
        StoreModelError: names both and the remedies.
    """
    if not stored.fits(wanted):
        raise StoreModelError(
            f"the store {folder} holds memories of {stored.describe()}, but the model in use is {wanted.describe()}; "
            f"use --model {stored.name} at rate {stored.rate}, or index the documents again into another --store"
        )


def check_codec(codec: str | None) -> None:
    """Refuse a codec that there is not; ``None`` stands for the default.

    Raises:
        ConfigError: names those that there are.
    """
    if codec is not None and codec not in CODECS:
        raise ConfigError(f"no codec named {codec!r}; there are {', '.join(CODECS)}")


def _checksum(content: dict[str, Any]) -> int:
    """CRC-32 of all but itself."""
    rest = {name: value for name, value in content.items() if name != "crc"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _parse(text: str, path: Path) -> Description:
    """What the text of a description says."""
    content: Any
    try:
        content = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); index the documents again into another --store") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise StoreError(f"{path} does not describe a clara store; name another folder as --store")
    version = content.get("version")
    if version not in (1, _FORMAT_VERSION):
        raise StoreError(
            f"{path} is of store format {version!r}, this clara reads format {_FORMAT_VERSION}; "
            "upgrade clara-rag, or index the documents again into another --store"
        )
    try:
        model = StoreModel(**_Model.model_validate(content.get("model")).model_dump())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise StoreError(f"{path} is damaged ({faults}); index the documents again into another --store") from None
    if version == 1:
        return Description(model, version=1)
    if content.get("codec") not in CODECS or content.get("crc") != _checksum(content):
        raise StoreError(
            f"{path} is damaged (its checksum does not fit); put it back from a copy of the store, or index the "
            "documents again into another --store"
        )
    return Description(model, content["codec"])
