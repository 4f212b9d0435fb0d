"""How much of the allowed tokens and money is spent, and whether one more request fits.

Requests are admitted on an estimate and settled with what the server counted. A request that does not fit waits
while others are under way (they may cost less than thought); when none is, the budget is spent. Where there is a
limit, the first request goes alone: before it nobody knows how this server counts.
"""

from __future__ import annotations

import asyncio

from clara.errors import SynthesisError
from clara.llm.client import Usage
from clara.synth.settings import BudgetSettings

_BYTES_A_TOKEN = 3  # an over-estimate of tokens for most text: English has 4 to 5 bytes a token
_FIRST_GUESS = 4  # before any reply, one is taken to fill this part (1/4) of its limit


class BudgetSpentError(SynthesisError):
    """What may be spent does not allow another request."""


def _price(usage: Usage, settings: BudgetSettings) -> float:
    """What tokens cost, in the unit of the prices."""
    return (usage.prompt * settings.price_in + usage.completion * settings.price_out) / 1e6


class Budget:
    """Admits requests until the limits are reached.

    Args:
        settings: the limits.
        spent: what earlier runs have spent.
    """

    def __init__(self, settings: BudgetSettings, spent: Usage) -> None:
        self._settings = settings
        self._spent = spent
        self._reserved = Usage()
        self._longest_reply = 0
        self._tokens_a_byte = 1 / _BYTES_A_TOKEN  # of prompts
        self._limited = settings.max_tokens is not None or settings.max_cost is not None
        self._settled = False  # a reply has been counted
        self._changed = asyncio.Condition()

    @property
    def spent(self) -> Usage:
        """All that has been spent, earlier runs included."""
        return self._spent

    @property
    def cost(self) -> float:
        """The price of ``spent``, in the unit of the prices."""
        return _price(self._spent, self._settings)

    async def admit(self, prompt_bytes: int, max_output_tokens: int) -> Usage:
        """Wait until a request fits.

        Returns:
            What was set aside for it; pass it to ``settle``.

        Raises:
            BudgetSpentError: it does not fit, and nothing is under way that could make room.
        """
        async with self._changed:
            while True:
                reply = self._longest_reply or max_output_tokens // _FIRST_GUESS
                estimate = Usage(int(prompt_bytes * self._tokens_a_byte) + 1, reply)
                alone = self._limited and not self._settled and self._reserved.total > 0
                if not alone and self._fits(self._spent + self._reserved + estimate):
                    self._reserved += estimate
                    return estimate
                if not self._reserved.total:
                    raise BudgetSpentError(self._exhausted(estimate))
                await self._changed.wait()

    async def settle(self, estimate: Usage, usage: Usage, prompt_bytes: int) -> None:
        """Replace what was set aside by what a request took; ``Usage()`` if it gave no reply."""
        async with self._changed:
            self._reserved -= estimate
            self._spent += usage
            self._longest_reply = max(self._longest_reply, usage.completion)
            if usage.total:
                self._settled = True
                self._tokens_a_byte = max(self._tokens_a_byte, usage.prompt / prompt_bytes)
            self._changed.notify_all()

    def _fits(self, usage: Usage) -> bool:
        tokens, cost = self._settings.max_tokens, self._settings.max_cost
        return (tokens is None or usage.total <= tokens) and (cost is None or _price(usage, self._settings) <= cost)

    def _exhausted(self, estimate: Usage) -> str:
        limits = []
        if self._settings.max_tokens is not None:
            limits.append(f"{self._spent.total:,} of {self._settings.max_tokens:,} tokens")
        if self._settings.max_cost is not None:
            limits.append(f"{self.cost:.4g} of {self._settings.max_cost:.4g} in money")
        return f"the budget is spent: {' and '.join(limits)}; one more request takes about {estimate.total:,} tokens"
