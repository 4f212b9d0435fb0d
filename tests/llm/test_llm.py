"""The client of language models against a real HTTP server on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import islice
from typing import Any

import pytest
from pydantic import ValidationError

from clara.config import LLMSettings
from clara.errors import LLMError, LLMRefusedError, LLMUnavailableError
from clara.llm import LLM
from llm_server import LLMServer, always, first, serving

ANSWER = "The tower is 324 metres high [1]."
MESSAGES = [{"role": "system", "content": "Answer from the passages."}, {"role": "user", "content": "How high is it?"}]
FAILS = pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("401", LLMError, "CLARA_LLM_API_KEY"),
        ("404", LLMError, "the model's name"),
        ("quota", LLMError, "no quota left"),
        ("400", LLMRefusedError, "refuses a request with 400: .*scripted 400"),
        ("500", LLMUnavailableError, "no usable reply in 2 attempts; the last: status 500"),
        ("disconnect", LLMUnavailableError, "nothing answers at"),
    ],
)


def asking(server: LLMServer, /, **changes: object) -> LLM:
    values: dict[str, Any] = {"url": server.url, "model": "m", "first_wait_seconds": 0.01, "max_wait_seconds": 0.3}
    return LLM(LLMSettings.model_validate(values | changes), api_key="secret")


def test_a_question_is_answered_whole_or_piece_by_piece() -> None:
    with serving(LLMServer(answer=f" {ANSWER}\n")) as server, asking(server) as llm:
        assert llm.reply(MESSAGES, max_tokens=60).text == ANSWER
        pieces = list(llm.stream(MESSAGES, max_tokens=60))
    assert len(pieces) > 5
    assert "".join(pieces).strip() == ANSWER
    whole, streamed = (call.body for call in server.calls)
    assert whole == {"model": "m", "messages": MESSAGES, "temperature": 0.0, "max_tokens": 60}
    assert streamed == whole | {"stream": True}


@pytest.mark.parametrize("fault", ["429", "503", "500", "disconnect"])
def test_passing_faults_are_survived(fault: str) -> None:
    with serving(LLMServer(script=first(2, fault), answer=ANSWER)) as server, asking(server) as llm:
        assert llm.reply(MESSAGES, max_tokens=60).text == ANSWER
        server.script, server.calls[:] = first(2, fault), []
        assert "".join(llm.stream(MESSAGES, max_tokens=60)) == ANSWER
        assert len(server.calls) == 3


@pytest.mark.parametrize("fault", ["html", "empty_choices", "cut_body"])
def test_a_reply_that_is_none_is_asked_for_again(fault: str) -> None:
    with serving(LLMServer(script=first(2, fault), answer=ANSWER)) as server, asking(server) as llm:
        assert llm.reply(MESSAGES, max_tokens=60).text == ANSWER
    assert len(server.calls) == 3


@pytest.mark.parametrize("fault", ["slow", "trickle"])
def test_a_reply_has_its_time(fault: str) -> None:
    """Also one that comes in drops, each of them in time."""
    with (
        serving(LLMServer(script=first(1, fault), answer=ANSWER)) as server,
        asking(server, timeout_seconds=0.4) as llm,
    ):
        assert llm.reply(MESSAGES, max_tokens=60).text == ANSWER
        assert len(server.calls) == 2
        server.script = always(fault)
        late = pytest.raises(LLMUnavailableError, match=r"no usable reply in 2 attempts; the last: .*(0\.2|timed out)")
        with asking(server, timeout_seconds=0.2, retries=1) as hasty, late:
            hasty.reply(MESSAGES, max_tokens=60)


@FAILS
def test_what_cannot_be_helped_is_said_with_the_remedy(fault: str, error: type[LLMError], said: str) -> None:
    with serving(LLMServer(script=always(fault))) as server, asking(server, retries=1) as llm:
        with pytest.raises(error, match=said):
            llm.reply(MESSAGES, max_tokens=60)
        with pytest.raises(error, match=said):
            list(llm.stream(MESSAGES, max_tokens=60))
    assert "secret" not in said


def test_nothing_listening_is_said_soon() -> None:
    started = time.monotonic()
    nobody = pytest.raises(LLMUnavailableError, match=r"nothing answers at http://127\.0\.0\.1:9/v1")
    with asking(LLMServer(url="http://127.0.0.1:9/v1"), retries=8) as llm, nobody:
        llm.reply(MESSAGES, max_tokens=60)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("fault", ["cut_body", "error_event"])
def test_a_stream_that_breaks_off_is_no_answer(fault: str) -> None:
    """What has come is with the caller already; asking again would say it twice."""
    with serving(LLMServer(script=always(fault), answer=ANSWER)) as server, asking(server) as llm:
        with pytest.raises(LLMUnavailableError, match="broke off"):
            list(llm.stream(MESSAGES, max_tokens=60))
        assert len(server.calls) == 1


def test_a_stream_may_be_left() -> None:
    with serving(LLMServer(answer=ANSWER)) as server, asking(server) as llm:
        assert list(islice(llm.stream(MESSAGES, max_tokens=60), 2)) == ["The", " tower"]
        assert llm.reply(MESSAGES, max_tokens=60).text == ANSWER


def test_silence_is_no_answer() -> None:
    """A model that reasons may have used up its tokens for that."""
    with serving(LLMServer(answer=" \n")) as server, asking(server) as llm:
        with pytest.raises(LLMError, match=r"wrote no text.*60 tokens"):
            llm.reply(MESSAGES, max_tokens=60)
        with pytest.raises(LLMError, match=r"wrote no text.*60 tokens"):
            list(llm.stream(MESSAGES, max_tokens=60))


def test_addresses_are_completed_and_checked() -> None:
    def url(given: str) -> str:
        return LLMSettings(url=given, model="m").url

    assert (
        url("http://localhost:8000") == url(" http://localhost:8000/v1/chat/completions ") == "http://localhost:8000/v1"
    )
    with pytest.raises(ValidationError, match="expected an address such as"):
        url("localhost:8000")


def test_without_the_extra_settings_work_and_the_client_names_it() -> None:
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "from clara.errors import MissingExtraError\n"
        "from clara.config import LLMSettings\n"
        "LLMSettings(url='http://localhost', model='m')\n"
        "try:\n    import clara.llm\nexcept MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "openai is not installed; it comes with: pip install 'clara-rag[llm]'"
