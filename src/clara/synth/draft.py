"""Asks for one kind of draft and sorts what comes back: taken, or rejected with the reason.

One request, one reply; how often to ask is for ``loop``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clara.synth.checks import answer_numbers, check_pair, check_paraphrase
from clara.synth.client import ChatClient, Request
from clara.synth.contract import PAIRS_SCHEMA, PARAPHRASE_SCHEMA, parse_pairs, parse_paraphrase
from clara.synth.drafts import Fault, Kind, Pair, Rejection, SourcePassage
from clara.synth.judges.lexical import ANSWER_REASON, QUESTION_REASON, LexicalJudge
from clara.synth.settings import SynthSettings
from clara.synth.templates import Feedback, Templates

TOO_MANY_REASON = "too_many_pairs"
OFF_PASSAGE_REASON = "reply_off_passage"
_SIGNS = frozenset({ANSWER_REASON, QUESTION_REASON, answer_numbers.REASON})  # that a pair is about something else
_FEWEST_SIGNS = 3
_MOST_OFF = 2 / 3  # of a reply's pairs; beyond that the others only happen to share words with the passage


@dataclass(frozen=True, slots=True)
class Drafted:
    """What one reply brought.

    Attributes:
        pairs: accepted pairs, for the two kinds of questions.
        paraphrase: the accepted paraphrase, or the empty string.
        rejections: everything else.
        answered: whether the reply kept to the contract, however good its content.
    """

    pairs: tuple[Pair, ...]
    paraphrase: str
    rejections: tuple[Rejection, ...]
    answered: bool


class Drafter:
    """Asks the language model for drafts and checks each item.

    Args:
        client: the language model.
        templates: the prompts.
        settings: limits and sampling; ``settings.judge`` says whether items must also satisfy the lexical judge.
    """

    def __init__(self, client: ChatClient, templates: Templates, settings: SynthSettings) -> None:
        self._client = client
        self._templates = templates
        self._settings = settings
        self._lexical = LexicalJudge(settings.lexical) if settings.judge != "llm" else None

    async def draft(
        self, kind: Kind, passage: SourcePassage, feedback: Feedback, *, taken: Sequence[Pair], attempt: int
    ) -> Drafted:
        """Ask for one kind of draft.

        Args:
            kind: what to ask for.
            passage: about what.
            feedback: what earlier attempts lacked.
            taken: pairs of both kinds that the passage has already.
            attempt: the round, from 1.

        Raises:
            SynthesisError: the server gives no reply (see ``ChatClient.ask``).
        """
        schema = PARAPHRASE_SCHEMA if kind == "paraphrase" else PAIRS_SCHEMA
        messages = self._templates.draft(kind, passage, feedback)
        reply = await self._client.ask(Request(messages, kind, schema, self._settings.sampling.temperature, attempt))
        truncated = reply.finish_reason == "length"
        if kind == "paraphrase":
            return self.sort_paraphrase(reply.text, passage, truncated=truncated)
        return self.sort_pairs(kind, reply.text, passage, taken=taken, truncated=truncated)

    def sort_pairs(
        self, kind: Kind, text: str, passage: SourcePassage, *, taken: Sequence[Pair], truncated: bool = False
    ) -> Drafted:
        """Read and check a reply of pairs."""
        reply = parse_pairs(text, truncated=truncated)
        rejections = [Rejection(kind, "", fault) for fault in reply.faults]
        # What joins facts may compute its answer; whether rightly, only a language model can tell.
        inferred = kind == "complex_qa" and self._settings.judge != "lexical"
        accepted: list[Pair] = []
        for pair in reply.pairs:
            fault = check_pair(pair, passage, [*taken, *accepted], self._settings.checks, inferred=inferred)
            if fault is None and self._lexical:
                fault = self._lexical.check_pair(pair, passage, inferred=inferred)
            if fault is None and len(accepted) >= self._settings.max_pairs:
                fault = Fault(TOO_MANY_REASON, f"{self._settings.max_pairs} pairs are enough")
            if fault is None:
                accepted.append(pair)
            else:
                rejections.append(Rejection(kind, _shown(pair), fault))
        if self._lexical and _is_off_passage(rejections, len(accepted)):
            fault = Fault(OFF_PASSAGE_REASON, "nearly all pairs of the reply are about something else")
            rejections += [Rejection(kind, _shown(pair), fault) for pair in accepted]
            accepted = []
        return Drafted(tuple(accepted), "", tuple(rejections), answered=bool(reply.pairs) or not reply.faults)

    def sort_paraphrase(self, text: str, passage: SourcePassage, *, truncated: bool = False) -> Drafted:
        """Read and check a reply that holds a paraphrase."""
        paraphrase = parse_paraphrase(text, truncated=truncated)
        if isinstance(paraphrase, Fault):
            return Drafted((), "", (Rejection("paraphrase", "", paraphrase),), answered=False)
        fault = check_paraphrase(paraphrase, passage, self._settings.checks)
        if fault is None and self._lexical:
            fault = self._lexical.check_paraphrase(paraphrase, passage)
        if fault is None:
            return Drafted((), paraphrase, (), answered=True)
        return Drafted((), "", (Rejection("paraphrase", paraphrase, fault),), answered=True)


def _is_off_passage(rejections: Sequence[Rejection], accepted: int) -> bool:
    """Whether so much of a reply is about something else that the rest is not to be trusted."""
    off = sum(rejection.fault.reason in _SIGNS for rejection in rejections)
    return off >= _FEWEST_SIGNS and off > _MOST_OFF * (off + accepted)


def _shown(pair: Pair) -> str:
    return f"Question: {pair.question} Answer: {pair.answer}"
