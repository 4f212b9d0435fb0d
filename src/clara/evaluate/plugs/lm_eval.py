"""A model of lm-evaluation-harness that reads the background of a prompt as memories.

    import lm_eval
    from clara.evaluate.plugs.lm_eval import ClaraLM

    lm_eval.simple_evaluate(model=ClaraLM("smollm2-135m", context="memory", rate=16), tasks=["my_reading_task"])

A prompt is cut at its last question: what stands before is the background, which becomes memories (or stays text), and
the rest is asked in this project's own prompt. So tasks with a background and a question are what it is for; a prompt
without a question is asked whole, without background. Only ``generate_until``, and greedily.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clara.data import DocText
from clara.errors import ConfigError, MissingExtraError
from clara.evaluate.cache import Cache, unwrap
from clara.evaluate.contexts import DocumentMemories
from clara.evaluate.system import AnswerModel
from clara.records import ContextKind, GenerationRequest

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise MissingExtraError("lm-eval", "lm-eval") from None

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_BATCH = 8
_MAX_NEW_TOKENS = 32
"""For tasks without a limit (``max_gen_toks``)."""

_QUESTION = re.compile(r"(?:^|\n)[ \t]*(?:Question|Q)[ \t]*:[ \t]*")
_ANSWER = re.compile(r"\s*(?:Answer|A)[ \t]*:?\s*$")
_BACKGROUND = re.compile(r"^\s*(?:Background|Context|Passage|Document)[ \t]*:[ \t]*")


@dataclass(frozen=True, slots=True)
class _SplitPrompt:
    """A prompt's two parts; the background may be empty."""

    background: str
    question: str


def _at_last_question(prompt: str) -> _SplitPrompt:
    """Cut a prompt at its last ``Question:``; a closing ``Answer:`` and a heading of the background are dropped."""
    matches = list(_QUESTION.finditer(prompt))
    if not matches:
        return _SplitPrompt("", _ANSWER.sub("", prompt).strip())
    question = _ANSWER.sub("", prompt[matches[-1].end() :])
    return _SplitPrompt(_BACKGROUND.sub("", prompt[: matches[-1].start()]).strip(), question.strip())


@register_model("clara")
class ClaraLM(LM):  # type: ignore[misc]  # the library is untyped
    """Answers from the memories or the text of each prompt's background, or without it.

    Args:
        model: a loaded model, an embedded one by name, or a checkpoint folder; the harness calls it ``pretrained``.
        context: ``memory``, ``text`` or ``none``.
        rate: compression rate of memories; None is the model's default.
        reader: weights that read: by default ``generator`` for memories, else ``base``, as in ``clara eval``.
        batch_size: prompts answered together.
        device: torch device, for a model that is loaded here.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: AnswerModel | str | Path = "smollm2-135m",
        *,
        pretrained: str | None = None,
        context: ContextKind = "memory",
        rate: int | None = None,
        reader: str | None = None,
        batch_size: int | str | None = None,
        device: str | None = None,
        **_: Any,  # noqa: ANN401 - the harness passes settings of its other models
    ) -> None:
        super().__init__()
        loaded = pretrained or model
        if isinstance(loaded, str | Path):
            from clara.model import ClaraModel  # noqa: PLC0415 - slow; a loaded model can be given instead

            loaded = ClaraModel.load(loaded, device=device or "cpu")
        self._model: AnswerModel = loaded
        self._context = context
        self._memories = DocumentMemories(self._model, None if rate is None else int(rate), Cache())
        self._reader = reader or ("generator" if context == "memory" else "base")
        self._batch = int(batch_size) if batch_size is not None and str(batch_size).isdigit() else _BATCH

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002, FBT001, FBT002
        """An answer for each prompt, cut at the first of its stop strings (ConfigError: a task asks for sampling)."""
        answers: list[str] = []
        for limit, group in itertools.groupby(
            requests, lambda one: _settings(one).get("max_gen_toks", _MAX_NEW_TOKENS)
        ):
            same = list(group)
            for start in range(0, len(same), self._batch):
                answers.extend(self._answers(same[start : start + self._batch], int(limit)))
        return answers

    def loglikelihood(self, requests: list[Instance], **_: Any) -> NoReturn:  # noqa: ANN401
        """Not served: always a ``ConfigError``."""
        task = requests[0].task_name if requests else "this task"
        raise ConfigError(f"task {task} asks for log-likelihoods; this model answers generate_until tasks only")

    loglikelihood_rolling = loglikelihood

    def _answers(self, requests: Sequence[Instance], max_new_tokens: int) -> list[str]:
        asked = [self._request(_at_last_question(request.args[0])) for request in requests]
        made = self._model.generate_many(asked, max_new_tokens=max_new_tokens)
        texts = []
        for request, generation in zip(requests, made, strict=True):
            text = _until(generation.text, _settings(request).get("until") or ())
            self.cache_hook.add_partial("generate_until", request.args, text)
            texts.append(text)
        return texts

    def _request(self, asked: _SplitPrompt) -> GenerationRequest:
        reader: Any = self._reader
        if not asked.background or self._context == "none":
            return GenerationRequest(asked.question, reader="base" if self._context != "none" else reader)
        if self._context == "text":
            return GenerationRequest(asked.question, texts=(asked.background,), reader=reader)
        memories = unwrap(self._memories.of([DocText("", asked.background)]))[0]
        return GenerationRequest(asked.question, memories=memories, reader=reader)


def _settings(request: Instance) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = request.args[1] if len(request.args) > 1 else {}
    if settings.get("do_sample") or settings.get("temperature"):
        raise ConfigError(f"task {request.task_name} wants sampling; this model answers greedily (do_sample: false)")
    return settings


def _until(text: str, until: str | Sequence[str]) -> str:
    stops = (until,) if isinstance(until, str) else until
    ends = [index for stop in stops if stop and (index := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
