"""The systems that ``clara eval --system`` compares, by name; docs/systems.md says what each does and needs.

Importing this room loads no model and no optional package: each system does that when it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
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
from clara.evaluate.system import Build, System, SystemSettings

_READING = {**full_text.SYSTEMS, **reader.SYSTEMS, **clara.SYSTEMS}


def _quoted(settings: SystemSettings, build: Build) -> System:
    """A system whose answers are held to the words of the documents it reads (``model.quoting``)."""
    return build(replace(settings, quoted=True))


SYSTEMS: Mapping[str, Build] = MappingProxyType(
    {
        "closed-book": closed_book.build,
        "closed-book-reader": closed_book.build_reader,
        **_READING,
        **{f"{name}-quoted": partial(_quoted, build=build) for name, build in _READING.items()},
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
