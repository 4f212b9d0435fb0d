"""What can go wrong between a request and its reply; ``run`` turns each into a count or an error for the user."""

from __future__ import annotations

from clara.errors import SynthesisError


class RequestRefusedError(SynthesisError):
    """The server refused this one request (too long, not allowed); asking again would not help."""


class ServerUnavailableError(SynthesisError):
    """The server gave no usable reply in all attempts; the passage stays open for a later run."""


class BudgetSpentError(SynthesisError):
    """What may be spent does not allow another request."""
