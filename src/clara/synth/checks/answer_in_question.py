"""A question that gives its own answer away, so that nothing of the passage is needed."""

from __future__ import annotations

from clara.synth.drafts import Pair, SourcePassage
from clara.synth.settings import CheckSettings
from clara.synth.words import contains_run, content_stems, words

REASON = "answer_in_question"
_YES_NO = frozenset({"yes", "no"})


def check_pair(pair: Pair, passage: SourcePassage, settings: CheckSettings) -> str | None:  # noqa: ARG001
    """The answer's words do not stand in the question, except where the question offers a choice."""
    question, answer = words(pair.question), words(pair.answer)
    offers_choice = "or" in question or bool(_YES_NO & set(answer[:1]))
    if offers_choice or not content_stems(pair.answer):
        return None
    if contains_run(question, answer):
        return f"the question contains its answer “{pair.answer}”"
    return None
