"""Passages with their memories: stored, searched, kept consistent. Knows vectors and words, not models or files."""

from clara.index.ranking import STOP_WORDS
from clara.index.rows import DocumentEntry, IndexRow, StoreModel
from clara.index.store import LanceStore

__all__ = ["STOP_WORDS", "DocumentEntry", "IndexRow", "LanceStore", "StoreModel"]
