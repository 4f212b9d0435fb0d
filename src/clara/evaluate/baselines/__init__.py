"""The systems that ``clara eval --system`` compares, by name; docs/systems.md says what each does and needs.

Importing this room loads no model and no optional package: each system does that when it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from clara.evaluate.baselines import (
    bm25,
    clara,
    closed_book,
    cross_encoder,
    dense,
    dro,
    full_text,
    latent,
    llmlingua,
    llmlingua2,
    pisco,
    reader,
    supervised,
)
from clara.evaluate.system import Build

SYSTEMS: Mapping[str, Build] = MappingProxyType(
    {
        "closed-book": closed_book.build,
        "closed-book-reader": closed_book.build_reader,
        **full_text.SYSTEMS,
        **reader.SYSTEMS,
        **clara.SYSTEMS,
        "pisco": pisco.build,
        "llmlingua": llmlingua.build,
        "llmlingua2": llmlingua2.build,
        "dro": dro.build,
        "bm25": bm25.build,
        "minilm": dense.build,
        "bge-reranker": cross_encoder.build,
        "latent": latent.build,
        "supervised": supervised.build,
    }
)
"""Makers of systems by their names."""

__all__ = ["SYSTEMS"]
