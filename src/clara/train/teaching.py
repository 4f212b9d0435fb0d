"""Targets and weights by frozen networks that are asked once about a run's examples, and cached.

- Distillation: answers and distributions of a full-text reader (arXiv 2501.16075), one more adapter on the run's own
  backbone, which reads the same passages as text, each cut to the window. ``targets`` says which are used. Restatements
  keep their own targets and have no KL term; held-out losses are always of gold answers.
- Answers of the reader that a run starts from, which it learns to judge (``OwnAnswers``), as language models learn to
  say whether an answer of theirs is true (arXiv 2207.05221, section 3).
- Need of a restatement's tokens for the passage (``TokenNeed``), as weights of its loss.
- Likelihoods of answers given each candidate alone (``AnswerLikelihoods``), which a query reasoner learns from without
  relevance labels, as in PDist of Atlas (arXiv 2208.03299, section 2.2).

Shape letters: B questions, D candidates a question, T label tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from clara import prompts
from clara.errors import ClaraError
from clara.metrics import meets
from clara.model.adapters import load_adapter
from clara.model.checkpoint import fingerprint
from clara.model.create import Loaded
from clara.model.decoder import AdapterName, Decoder, RoleWeights
from clara.model.generator import DecodeLoop, Generator, Sampling
from clara.model.network import Network
from clara.model.prompting import Prompter
from clara.model.reader import find_reader
from clara.records import GenerationRequest
from clara.train.batch import Batch, Collate, Collator, Memories
from clara.train.documents import append_at, appending
from clara.train.examples import CandidateExample, Example, Target
from clara.train.objective import evaluating, reply_logits

_ANSWER_TOKENS = 32
"""Longest answer of a teacher; the answers of the training sets are shorter."""

_ANSWERS_AT_ONCE = 16

_PAIRS_A_SEQUENCE = 4
"""Passages with an answer, side by side behind one opening of the prompt: more cost more attention than they save."""

_PAIRS_AT_ONCE = 32

_Item = TypeVar("_Item")


class _KeptValues:
    """JSON values by key, in an append-only file that several processes and runs share.

    A line counts once it is whole; a torn last line is cut off before the next append, and lines of other processes are
    read before something is added.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        self._end = 0
        self._refresh()

    @staticmethod
    def key(*facts: object) -> str:
        """The key of a request: 32 hex digits of its facts, which are of JSON's types."""
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - any JSON value
        return self._values[key]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without a value, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._values]

    def fill(self, wanted: Mapping[str, _Item], make: Callable[[list[_Item]], Iterable[object]], at_once: int) -> None:
        """Make the missing values, ``at_once`` at a time, each from the item under its key in ``wanted``."""
        todo = self.missing(wanted)
        for start in range(0, len(todo), at_once):
            keys = todo[start : start + at_once]
            self.add(dict(zip(keys, make([wanted[key] for key in keys]), strict=True)))

    def add(self, values: Mapping[str, object]) -> None:
        """Append values, except of keys that another process added; ``TrainingError`` if they cannot be written."""
        with appending(self._path.with_name(f"{self._path.name}.lock"), "what was computed for this run"):
            self._refresh()
            lines = [json.dumps({"key": key, "value": values[key]}) + "\n" for key in self.missing(values)]
            append_at(self._path, self._end, "".join(lines).encode())
            self._refresh()

    def _refresh(self) -> None:
        """Read the lines that are whole."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                self._values[entry["key"]] = entry["value"]
                self._end += len(line)


def add_teacher(loaded: Loaded[Any, Any], name: str) -> None:
    """Put a reader (``find_reader``) beside the network's own adapters, frozen; it is never saved with them.

    Raises:
        CheckpointError: the reader is damaged, or was trained on another base model.
    """
    manifest, adapter = find_reader(name)
    loaded.base.check_trained_on(adapter.parent, manifest.base_model, manifest.base_identity)
    adapters = loaded.network.adapters
    adapters.add_frozen("teacher", manifest.lora)
    load_adapter(adapters.peft_model, adapter, "teacher")


def teacher_faults(name: str) -> list[str]:
    """Reasons why a reader cannot be a teacher."""
    try:
        manifest, _ = find_reader(name)
    except ClaraError as error:
        return [f"teacher: {error}"]
    if manifest.context != "text":
        return [f"teacher: {name} was trained without context; a teacher reads full text"]
    return []


def teacher_fingerprint(loaded: Loaded[Any, Any], name: str) -> str:
    """The fingerprint of the added reader."""
    return find_reader(name)[0].fingerprint(loaded.network.adapters, "teacher")


class TeacherAnswers:
    """The teacher's greedy answers, each made once."""

    def __init__(
        self, loaded: Loaded[Decoder, Any], kept: Path, *, fingerprint: str, window_tokens: int, bf16: bool
    ) -> None:
        """Read the answers of the teacher with this fingerprint in ``kept``, a folder shared by runs."""
        self._network = loaded.network
        self._weights = RoleWeights(loaded.network.adapters)
        self._window, self._bf16 = window_tokens, bf16
        self._prompter = Prompter(loaded.base.tokenizer)
        # Of quotations, which ``OwnAnswers`` asks for, several stand side by side.
        self._generator = Generator(loaded.base.tokenizer, self._prompter, judges=lambda _: True)
        self._answers = _KeptValues(kept / f"answers-{fingerprint}.jsonl")

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with the teacher's answers; an empty one leaves the gold answer."""
        self._answers.fill(dict(self._requests(examples)), self._generate, _ANSWERS_AT_ONCE)
        return [replace(e, targets=tuple(self._answered(e, t) if t.asks else t for t in e.targets)) for e in examples]

    def _answered(self, example: Example, target: Target) -> Target:
        text, whole = self._answers[self._key(example, target)]
        return replace(target, reply=text, ends=whole) if text else target

    def _requests(self, examples: Sequence[Example]) -> Iterator[tuple[str, GenerationRequest]]:
        for example in examples:
            for target in example.questions().targets:
                texts = tuple(self._prompter.cut(text, self._window) for text in example.texts)
                question = target.instruction.removeprefix(prompts.QUESTION)
                yield self._key(example, target), GenerationRequest(question, texts=texts)

    def _key(self, example: Example, target: Target) -> str:
        return _KeptValues.key(self._window, target.instruction, *example.texts)

    def _generate(self, requests: Sequence[GenerationRequest]) -> Iterable[object]:
        with self._decoder() as decoder:
            made = self._generator.generate(decoder, requests, Sampling(max_new_tokens=_ANSWER_TOKENS))
        return [(generation.text, generation.finish_reason == "stop") for generation in made]

    @contextmanager
    def _decoder(self) -> Iterator[DecodeLoop]:
        """The teacher."""
        device = self._network.adapters.bare().device.type
        # Autocast is for adapters beside the weights; where they are merged it has nothing to do.
        with evaluating(self._network), torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            yield DecodeLoop(partial(self._weights.acting_as, "teacher"))


class OwnAnswers(TeacherAnswers):
    """Adds to each question the teacher's answers, quoted from the passages, each to be judged."""

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with those answers beside their own, which alone are learnt."""
        self._answers.fill(dict(self._requests(examples)), self._generate, _ANSWERS_AT_ONCE)
        return [replace(e, targets=(*e.targets, *self._judged(e))) for e in examples]

    def _judged(self, example: Example) -> Iterator[Target]:
        for target in example.questions().targets:
            for text in self._answers[self._key(example, target)]:
                right = any(meets(text, form) for form in target.accepted)
                yield replace(target, reply=text, right=right)

    def _generate(self, requests: Sequence[GenerationRequest]) -> Iterable[object]:
        quoting = [replace(request, quote_from=request.texts) for request in requests]
        with self._decoder() as decoder:
            made = self._generator.candidates(decoder, quoting, Sampling(max_new_tokens=_ANSWER_TOKENS))
        return [[generation.text for generation in some] for some in made]


def distilling(
    collator: Collate,
    *,
    changes: Sequence[Callable[[Sequence[Example]], list[Example]]] = (),
    taught: Collator | None = None,
) -> Collate:
    """A collator of examples that went through the ``changes``, in order (``TeacherAnswers``, ``TokenNeed``).

    With ``taught``, which makes it, its batches hold the teacher's input too, for the KL term.
    """

    def collate(examples: Sequence[Example], *, rate: int, asked: Sequence[int] | None = None) -> Batch:
        taken = list(examples) if asked is None else [examples[i] for i in asked]
        for change in changes:
            taken = change(taken)
        batch = collator(taken, rate=rate)
        return batch if taught is None else replace(batch, teaching=taught.teaching(taken))

    return collate


class TokenNeed:
    """Weighs the tokens of restatements by their need of the passage; questions stay as they are.

    Most tokens of a text follow from the words before them, whatever the memory holds; a name or a number does not. A
    token's need is its log-probability given the passage as text, less that given nothing, by the frozen backbone, or
    by the teacher where there is one; at most ``most`` nats.
    """

    most = 5.0

    def __init__(self, loaded: Loaded, kept: Path, *, collator: Collator, role: AdapterName | None, mark: str) -> None:
        """Read the needs in ``kept``; ``role`` is asked (None for the backbone alone), ``mark`` its fingerprint."""
        self._network, self._collator, self._role = loaded.network, collator, role
        self._kept = _KeptValues(kept / f"need-{mark}.jsonl")

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with weights in their restatements."""
        restating = [replace(e, targets=tuple(t for t in e.targets if not t.asks)) for e in examples]
        new = [e for e in restating if self._kept.missing(self._key(e, target) for target in e.targets)]
        if new:
            batches = (self._collator.of_texts(new), self._collator.closed_book(new))
            text, nothing = (_label_logprobs(self._network, batch, None, self._role).cpu() for batch in batches)
            pairs = [(example, target) for example in new for target in example.targets]
            parts = torch.split(text - nothing, [self._collator.label_count(target) for _, target in pairs])
            needs = [[round(nats, 2) for nats in part.tolist()] for part in parts]
            self._kept.add({self._key(*pair): need for pair, need in zip(pairs, needs, strict=True)})
        return [
            replace(e, targets=tuple(t if t.asks else self.weighted(t, self._kept[self._key(e, t)]) for t in e.targets))
            for e in examples
        ]

    @classmethod
    def weighted(cls, target: Target, need: Sequence[float]) -> Target:
        """A restatement whose labels, the end token included, weigh by their nats of need; their mean is kept."""
        capped = [min(max(nats, 0.0), cls.most) for nats in need]
        mean = sum(capped) / len(capped)
        return target if mean == 0 else replace(target, label_weights=tuple(target.weight * n / mean for n in capped))

    def _key(self, example: Example, target: Target) -> str:
        return _KeptValues.key(
            self._collator.window_tokens, target.instruction, target.reply, target.ends, *example.texts
        )


class AnswerLikelihoods:
    """Log-probabilities of answers given one passage's memory."""

    def __init__(self, loaded: Loaded, memories: Memories, kept: Path, *, collator: Collator) -> None:
        """Read those of this frozen generator and compressor in ``kept``."""
        dtype = str(loaded.base.model.dtype).removeprefix("torch.")
        mark = fingerprint(loaded.network, loaded.manifest, "answers")
        self._network, self._memories, self._collator = loaded.network, memories, collator
        self._kept = _KeptValues(kept / f"likelihoods-{mark}-{dtype}.jsonl")

    def __call__(self, examples: Sequence[CandidateExample], rate: int) -> Tensor:
        """Log-probability of each reply, nats: float32 [B, D]; all questions have equally many candidates."""
        keys = [[_KeptValues.key(rate, e.question, e.reply, text) for text in e.candidates] for e in examples]
        pairs = [(text, e.target) for e in examples for text in e.candidates]
        wanted = dict(zip(chain.from_iterable(keys), pairs, strict=True))
        self._kept.fill(wanted, lambda some: self._score(some, rate), _PAIRS_AT_ONCE)
        return torch.tensor([[self._kept[key] for key in row] for row in keys], dtype=torch.float32)

    def _score(self, pairs: Sequence[tuple[str, Target]], rate: int) -> list[float]:
        texts, targets = zip(*pairs, strict=True)
        batch = self._collator.apart(targets, rate=rate, a_sequence=_PAIRS_A_SEQUENCE)
        memories = self._memories(texts, rate)
        logprobs = _label_logprobs(self._network, batch, memories, "generator")
        lengths = [self._collator.label_count(target) for target in targets]
        return [round(float(part.sum()), 4) for part in torch.split(logprobs, lengths)]


def _label_logprobs(network: Network, batch: Batch, memories: Tensor | None, role: AdapterName | None) -> Tensor:
    """Log-probabilities of a batch's labels given memories [slots / N, N, H]: float32 [T]."""
    model = network.adapters.bare()
    batch = batch.to(model.device)
    slots = None if memories is None else memories.to(model.device).flatten(0, 1)
    bf16 = model.dtype == torch.bfloat16
    with evaluating(network), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        logits = reply_logits(network, batch, slots, role=role)
    return logits.float().log_softmax(dim=1).gather(1, batch.labels[:, None])[:, 0]
