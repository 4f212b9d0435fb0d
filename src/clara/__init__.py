"""CLaRa: documents become memory tokens once; questions find them, and are answered from text or memories.

import clara

model = clara.ClaraModel.load("smollm2-135m")
rag = clara.Clara.open("store", model=model)
rag.add(["docs"])
print(rag.ask("Who was the first official world chess champion?").text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from clara.errors import ClaraError
from clara.records import Answer, Citation, Document, Generation, GenerationRequest, Hit, Memory, Passage, Quote

if TYPE_CHECKING:
    from clara.answering import AnswerOptions
    from clara.indexing import AddReport
    from clara.model import ClaraModel, Sampling
    from clara.pipeline import Clara, split_text

__all__ = [
    "AddReport",
    "Answer",
    "AnswerOptions",
    "Citation",
    "Clara",
    "ClaraError",
    "ClaraModel",
    "Document",
    "Generation",
    "GenerationRequest",
    "Hit",
    "Memory",
    "Passage",
    "Quote",
    "Sampling",
    "split_text",
]

_LATER = {
    "AddReport": "clara.indexing",
    "AnswerOptions": "clara.answering",
    "Clara": "clara.pipeline",
    "ClaraModel": "clara.model",
    "Sampling": "clara.model",
    "split_text": "clara.pipeline",
}


def __getattr__(name: str) -> object:
    # The model room imports torch, which takes seconds; `clara --help` and records alone should not wait for it.
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'clara' has no attribute {name!r}")
