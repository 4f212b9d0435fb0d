"""``store.json``: what says that a folder is a clara store, of which format, and whose memories it holds.

The file is the first thing a store gets and is written whole or not at all, so a folder is either not yet a store or
knows its model. What else lies in the folder is ``store``'s business.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from clara.errors import StoreError, StoreModelError
from clara.index.protocol import StoreModel

FORMAT = "clara-store"
FORMAT_VERSION = 1
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


def read_description(folder: Path) -> StoreModel | None:
    """The model of the store in a folder.

    Returns:
        ``None`` if the folder can become a store: it does not exist, is empty, or holds no more than what a creation
        leaves that was cut short.

    Raises:
        StoreError: a file, a folder of something else, a damaged description, or a newer format.
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
    return _parse(text, path)


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder without a description that holds something else."""
    foreign = sorted({entry.name for entry in folder.iterdir()} - {LOCK_FILE, _DRAFT_FILE})
    if foreign:
        raise StoreError(
            f"{folder} is not a clara store: it has no {DESCRIPTION_FILE} but holds {foreign[0]}"
            f"{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}; name a new or empty folder as --store"
        )


def write_description(folder: Path, model: StoreModel) -> None:
    """Make a folder a store of ``model``; atomic.

    Raises:
        StoreError: the folder cannot be written.
    """
    content = {"format": FORMAT, "version": FORMAT_VERSION, "model": asdict(model)}
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


def _parse(text: str, path: Path) -> StoreModel:
    """The model in the text of a description."""
    content: Any
    try:
        content = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); index the documents again into another --store") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(f"{path} does not describe a clara store; name another folder as --store")
    version = content.get("version")
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path} is of store format {version!r}, this clara reads format {FORMAT_VERSION}; "
            "upgrade clara-rag, or index the documents again into another --store"
        )
    try:
        return StoreModel(**_Model.model_validate(content.get("model")).model_dump())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise StoreError(f"{path} is damaged ({faults}); index the documents again into another --store") from None
