"""Passages with their memories: stored, searched, kept consistent. Knows vectors and words, not models or files."""

from clara.index.protocol import DocumentEntry, IndexRow, PassageIndex, StoreModel
from clara.index.store import LanceStore

__all__ = ["DocumentEntry", "IndexRow", "LanceStore", "PassageIndex", "StoreModel"]
