"""Passages with their memories: stored, searched, kept consistent. Knows vectors and words, not models or files."""

from clara.index.rows import DocumentEntry, IndexRow, StoreModel
from clara.index.store import LanceStore
from clara.index.table import STOP_WORDS

__all__ = ["STOP_WORDS", "DocumentEntry", "IndexRow", "LanceStore", "StoreModel"]
