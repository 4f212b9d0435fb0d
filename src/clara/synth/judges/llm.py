"""A judge that asks the language model, under the contract of ``contract.parse_verdict``."""

from __future__ import annotations

from dataclasses import dataclass

from clara.synth.client import ChatClient, Request
from clara.synth.contract import VERDICT_SCHEMA, parse_verdict
from clara.synth.drafts import Draft, Fault, SourcePassage, Verdict
from clara.synth.templates import Templates


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

    async def judge(self, passage: SourcePassage, draft: Draft, attempt: int) -> Verdict | Fault:
        """The verdict on a whole draft, or what is wrong with the judge's reply.

        Raises:
            SynthesisError: the server gives no reply (see ``ChatClient.ask``).
        """
        messages = self.templates.judge(passage, draft)
        reply = await self.client.ask(Request(messages, "verdict", VERDICT_SCHEMA, self.temperature, attempt))
        return parse_verdict(reply.text, truncated=reply.finish_reason == "length")
