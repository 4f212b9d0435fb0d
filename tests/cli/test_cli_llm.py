"""The language model that ``--llm`` and ``--llm-model`` name."""

from __future__ import annotations

import pytest

from clara.cli.session import api_key, language_model
from clara.errors import ConfigError, LLMError
from llm_server import LLMServer, always, serving


def test_both_options_make_a_model_and_none_makes_none() -> None:
    assert language_model(None, None) is None
    with serving(LLMServer(answer="Yes.")) as server:
        llm = language_model(server.url, "m")
        assert llm is not None
        with llm:
            assert llm.reply([{"role": "user", "content": "Well?"}], max_tokens=9).text == "Yes."


def test_one_option_alone_and_no_address_are_refused() -> None:
    with pytest.raises(ConfigError, match="--llm-model is missing"):
        language_model("http://127.0.0.1:9", None)
    with pytest.raises(ConfigError, match="--llm is missing"):
        language_model(None, "m")
    with pytest.raises(ConfigError, match="expected an address such as"):
        language_model("localhost", "m")


def test_the_key_is_the_environments_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLARA_LLM_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert api_key() == ""
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    assert api_key() == "second"
    monkeypatch.setenv("CLARA_LLM_API_KEY", "sk-first")
    assert api_key() == "sk-first"
    with serving(LLMServer(script=always("401"))) as server:
        llm = language_model(server.url, "m")
        assert llm is not None
        with llm, pytest.raises(LLMError) as caught:
            llm.reply([{"role": "user", "content": "Well?"}], max_tokens=9)
    assert "sk-first" not in str(caught.value)
