"""A small real system: ranks by shared words, answers with what the best sentence says beyond the question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bag_model import BagModel, words
from clara.errors import ConfigError
from clara.evaluate.cache import Failure
from clara.evaluate.system import Prediction, Query, SystemSettings


class WordSystem:
    """Its replies follow from the words alone; ``asked`` keeps the ids of what it was asked, in order."""

    def __init__(self, name: str, settings: SystemSettings, *, minds_rate: bool = False, reads: bool = True) -> None:
        self.name = name
        self.settings = settings
        self.fingerprint = f"words-{settings.rate if minds_rate else None}"
        self.reads = reads
        self.broken = frozenset[str]()
        self.asked: list[str] = []

    def predict(self, questions: Sequence[Query]) -> list[Prediction | Failure]:
        self.asked += [ask.id for ask in questions]
        return [self._one(ask) for ask in questions]

    def _one(self, ask: Query) -> Prediction | Failure:
        if ask.id in self.broken:
            return Failure(RuntimeError(f"out of memory at {ask.id}"))
        wanted = set(words(ask.question))
        order = sorted(range(len(ask.docs)), key=lambda i: (-len(wanted & set(words(ask.docs[i].text))), i))
        given = self.settings.given == "gold"
        used = tuple(range(len(ask.docs)) if given else order[: self.settings.k]) if self.reads else ()
        found = [word for index in used for word in words(ask.docs[index].text) if word not in wanted]
        every = self.settings.rate or 1
        return Prediction(
            text=" ".join(found[::every]) if self.reads else "unknown",
            ranking=None if given or not self.reads else tuple(order),
            used=used,
            context_tokens=len(found[::every]),
            first_token_seconds=0.25 if self.reads else 0.125,
            compressed_to=1 / every if every > 1 else None,
        )


def build_words(settings: SystemSettings) -> WordSystem:
    return WordSystem("words", settings)


def build_nothing(settings: SystemSettings) -> WordSystem:
    return WordSystem("nothing", settings, reads=False)


def build_every(settings: SystemSettings) -> WordSystem:
    if settings.rate == 3:
        raise ConfigError("this system serves no rate 3")
    return WordSystem("every", settings, minds_rate=True)


SYSTEMS = {"words": build_words, "nothing": build_nothing, "every": build_every}


def make_settings(**changes: object) -> SystemSettings:
    values: dict[str, object] = {
        "k": 2,
        "rate": None,
        "given": "candidates",
        "max_new_tokens": 32,
        "batch_size": 3,
        "model": BagModel(),
        "weights_cache": Path("cache"),
        **changes,
    }
    return SystemSettings(**values)  # type: ignore[arg-type]
