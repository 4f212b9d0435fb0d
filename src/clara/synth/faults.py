"""What can go wrong between a request and its reply; ``run`` turns each into a count or an error for the user."""

from __future__ import annotations

from clara.errors import SynthesisError


class NothingAnsweredError(SynthesisError):
    """The server refused every passage and gave no reply at all: the fault is not the passages', they stay open.

    Attributes:
        passages: how many were refused.
        words: the last refusal.
    """

    def __init__(self, passages: int, words: str) -> None:
        super().__init__(
            f"every passage so far ({passages}) was refused: {words}; change the settings as the server asks, then go "
            "on with --resume"
        )
        self.passages = passages
        self.words = words


class BudgetSpentError(SynthesisError):
    """What may be spent does not allow another request."""
