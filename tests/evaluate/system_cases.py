"""A few invented documents and questions, and settings for systems on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clara.data import DocText
from clara.evaluate.system import AnswerModel, Prediction, Query, System, SystemSettings

DOCS = (
    DocText("Harbour of Velden", "The harbour of Velden was dug in 1611 by Marta Kroll. Ships bring salt to Velden."),
    DocText("Orrin bread", "Orrin bread is baked from rye flour and sea salt in clay ovens."),
    DocText("", "A clay oven keeps its heat for nine hours. Bakers call the oven the old lady."),
    DocText("Marta Kroll", "Marta Kroll was an engineer. She was born in Ulm in 1570 and built two canals."),
    DocText("Snow foxes", "Snow foxes live in the north. Their fur turns white in winter."),
)
LONG = DocText(
    "Velden", " ".join(f"In the year {1600 + i} the town of Velden counted {37 * i} boats." for i in range(12))
)
ASKS = (
    Query("a", "Who dug the harbour of Velden?", DOCS),
    Query("b", "What flour is Orrin bread baked from?", DOCS[::-1]),
    Query("c", "How many boats did Velden count in 1607?", (*DOCS[:2], LONG, *DOCS[2:])),
)


def settings(model: AnswerModel, cache: Path, **values: Any) -> SystemSettings:  # noqa: ANN401 - any setting
    """Settings of a small run."""
    plain: dict[str, Any] = {
        "k": 2,
        "rate": None,
        "given": "candidates",
        "max_new_tokens": 6,
        "batch_size": 2,
        "model": model,
        "weights_cache": cache,
    }
    return SystemSettings(**(plain | values))


def replies(system: System, asks: tuple[Query, ...] = ASKS) -> list[Prediction]:
    """The replies of a system, none of which may be a failure."""
    found = system.predict(asks)
    sound = [reply for reply in found if isinstance(reply, Prediction)]
    assert len(sound) == len(found), found
    return sound
