"""The lines that a run writes: ``passage_qa`` records, as ``clara train scp`` reads them, and dropped passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from clara.synth.drafts import Pair, SourcePassage
from clara.synth.loop import Outcome
from clara.synth.settings import SynthSettings
from clara.synth.templates import Templates


@dataclass(frozen=True, slots=True)
class RecordMaker:
    """Makes the lines of one run.

    Attributes:
        settings: of the run.
        templates: of the run.
    """

    settings: SynthSettings
    templates: Templates

    def accepted(self, passage: SourcePassage, outcome: Outcome) -> dict[str, Any]:
        """A ``passage_qa`` record with ``paraphrase``, ``complex_qa``, ``rounds`` and ``provenance``."""
        return {
            **_passage(passage),
            "qa": _pairs(outcome.draft.simple),
            "paraphrase": outcome.draft.paraphrase,
            "complex_qa": _pairs(outcome.draft.complex),
            "rounds": outcome.rounds,
            "provenance": self._provenance(outcome.rejections),
        }

    def dropped(self, passage: SourcePassage, outcome: Outcome) -> dict[str, Any]:
        """A passage that was given up, with why."""
        return {
            **_passage(passage),
            "dropped": outcome.dropped,
            "rounds": outcome.rounds,
            "provenance": self._provenance(outcome.rejections),
        }

    def _provenance(self, rejections: Mapping[str, int]) -> dict[str, Any]:
        return {
            "generator": f"clara-rag {version('clara-rag')}",
            "model": self.settings.server.model,
            "sampling": self.settings.sampling.model_dump(mode="json"),
            "judge": self.settings.judge,
            "templates": self.templates.hashes,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "rejections": dict(sorted(rejections.items())),
        }


def _passage(passage: SourcePassage) -> dict[str, Any]:
    # "id" comes first: ``output`` knows its own lines by it.
    return {"id": passage.id, "source": passage.source, "title": passage.title, "text": passage.text}


def _pairs(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    return [{"question": pair.question, "answers": [pair.answer]} for pair in pairs]
