"""The language model that options and environment name: for ``--llm URL --llm-model NAME``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from clara.config import LLMSettings, check
from clara.errors import ConfigError

if TYPE_CHECKING:
    from clara.llm import LLM

_KEY_VARIABLES = ("CLARA_LLM_API_KEY", "OPENAI_API_KEY")


def api_key() -> str:
    """The server's key, from the environment; empty if there is none."""
    return next((os.environ[name] for name in _KEY_VARIABLES if os.environ.get(name)), "")


def language_model(url: str | None, model: str | None) -> LLM | None:
    """The model that ``--llm`` and ``--llm-model`` name, or None where neither is given.

    Raises:
        ConfigError: one of the two is missing, or the address is none.
        MissingExtraError: the extra ``llm`` is not installed.
    """
    if url is None and model is None:
        return None
    if url is None or model is None:
        raise ConfigError(
            f"--llm URL and --llm-model NAME go together; {'--llm' if url is None else '--llm-model'} is missing"
        )
    settings = check(LLMSettings, {"url": url, "model": model}, source="command line")
    from clara.llm import LLM  # noqa: PLC0415 - takes a second, and is an extra

    return LLM(settings, api_key=api_key())
