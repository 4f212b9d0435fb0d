"""Who says whether a draft is true to its passage and covers it: words compared, or the language model asked.

The lexical judge asks whether the content words of an item are those of the passage. It recognises what was written
about another passage, or made up from nothing; it cannot see that two right words stand in a wrong relation. How often
it is right is measured (docs/synth.md). A judge is asked only about what has passed the deterministic ``checks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from clara.synth.client import ChatClient, Request
from clara.synth.contract import VERDICT_SCHEMA, parse_verdict
from clara.synth.drafts import Draft, DraftFault, Pair, SourcePassage, Verdict
from clara.synth.settings import LexicalSettings
from clara.synth.templates import Templates
from clara.synth.words import content_stems, sentences, share_found, stems, words

ANSWER_REASON = "answer_not_supported"
QUESTION_REASON = "question_off_passage"
_PARAPHRASE_REASON = "paraphrase_off_passage"
_YES_NO = frozenset({"yes", "no"})
_TOUCHED = 0.5  # a sentence counts as covered when a pair holds this share of its content words, or its answer


class Judge(Protocol):
    """Whoever gives verdicts on drafts."""

    async def judge(self, passage: SourcePassage, draft: Draft, attempt: int) -> Verdict | DraftFault:
        """The verdict, or what is wrong with the judge's reply."""


@dataclass(frozen=True, slots=True)
class LexicalJudge:
    """Judges by shared content words (stems).

    Attributes:
        settings: limits.
    """

    settings: LexicalSettings

    def check_pair(self, pair: Pair, passage: SourcePassage, *, inferred: bool = False) -> DraftFault | None:
        """The fault if the passage does not support the pair, else None.

        Args:
            pair: the pair.
            passage: what it was written about.
            inferred: the answer may follow from the passage without standing in it; another judge looks at that.
        """
        known = _stems_of(passage)
        asked = share_found(content_stems(pair.question), known)
        if inferred and asked >= self.settings.inferred_support:
            return None
        if set(words(pair.answer)) <= _YES_NO:
            if asked >= self.settings.yes_no_support:
                return None
            return DraftFault(QUESTION_REASON, "the question is not about this passage")
        # An answer of function words only ("his own") is compared whole.
        supported = share_found(content_stems(pair.answer) or stems(pair.answer), known)
        if supported < self.settings.answer_support:
            return DraftFault(ANSWER_REASON, f"the passage does not state the answer “{pair.answer}”")
        if supported + asked < self.settings.joint_support:
            return DraftFault(QUESTION_REASON, "question and answer are not about this passage")
        return None

    def check_paraphrase(self, text: str, passage: SourcePassage) -> DraftFault | None:
        """The fault if the text says something else than the passage, else None."""
        kept = share_found(sorted(set(content_stems(passage.text))), set(stems(text)))
        if kept >= self.settings.paraphrase_support:
            return None
        return DraftFault(_PARAPHRASE_REASON, "this says something else than the passage")

    def judge(self, passage: SourcePassage, draft: Draft) -> Verdict:
        """The verdict on a whole draft; ``missing`` names the sentences that no pair touches."""
        wrong = []
        for letter, pairs in (("S", draft.simple), ("C", draft.complex)):
            for place, pair in enumerate(pairs, start=1):
                if fault := self.check_pair(pair, passage):
                    wrong.append(f"{letter}{place}: {fault.detail}")
        if draft.paraphrase and (fault := self.check_paraphrase(draft.paraphrase, passage)):
            wrong.append(f"P: {fault.detail}")
        parts = [part for part in sentences(passage.text) if content_stems(part)]
        missing = tuple(part for part in parts if not _touched(part, draft))
        covered = len(parts) - len(missing) >= self.settings.coverage * len(parts)
        return Verdict(not wrong, covered, () if covered else missing, tuple(wrong))


@dataclass(frozen=True, slots=True)
class OfflineJudge:
    """The lexical judge where a judge is awaited."""

    lexical: LexicalJudge

    async def judge(self, passage: SourcePassage, draft: Draft, attempt: int) -> Verdict | DraftFault:  # noqa: ARG002
        """The lexical verdict; the same at each attempt."""
        return self.lexical.judge(passage, draft)


@dataclass(frozen=True, slots=True)
class LLMJudge:
    """Judges by asking.

    Attributes:
        client: the language model.
        templates: holds the judge's prompt.
        temperature: sampling temperature; 0 for the likeliest verdict.
    """

    client: ChatClient
    templates: Templates
    temperature: float

    async def judge(self, passage: SourcePassage, draft: Draft, attempt: int) -> Verdict | DraftFault:
        """The verdict on a whole draft, or what is wrong with the judge's reply.

        Raises:
            LLMError: the server gives no reply (see ``ChatClient.ask``).
        """
        messages = self.templates.judge(passage, draft)
        reply = await self.client.ask(Request(messages, "verdict", VERDICT_SCHEMA, self.temperature, attempt))
        return parse_verdict(reply.text, truncated=reply.finish_reason == "length")


@lru_cache(maxsize=256)
def _stems_of(passage: SourcePassage) -> frozenset[str]:
    return frozenset(stems(passage.text)) | frozenset(stems(passage.title))


def _touched(sentence: str, draft: Draft) -> bool:
    """Whether a pair asks for something of this sentence."""
    content = content_stems(sentence)
    known = set(content)
    for pair in (*draft.simple, *draft.complex):
        answer = content_stems(pair.answer)
        if answer and share_found(answer, known) == 1.0 and known & set(content_stems(pair.question)):
            return True
        if share_found(content, set(answer) | set(content_stems(pair.question))) >= _TOUCHED:
            return True
    return False
