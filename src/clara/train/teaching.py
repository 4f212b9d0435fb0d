"""What a run learns from beside its records: what frozen networks say of its examples, asked once and kept.

- A full-text reader's answers and distributions as targets of a compressed model (arXiv 2501.16075). The teacher is one
  more adapter on the run's own backbone; for every question it reads the same passages as text, each cut to the window.
  Which of them a run takes is ``WritingConfig.targets``. Restatements keep their own targets and have no KL term: a
  reader is not asked to restate. Held-out losses are always those of gold answers.
- Which tokens of a restatement need the passage (``TokenNeed``): its loss is spent on them.
- How likely the generator finds an answer given each candidate alone (``AnswerLikelihoods``): what a query reasoner can
  be taught by without a relevance label, as in PDist of Atlas (arXiv 2208.03299, section 2.2).

Shape letters: B questions, D candidates a question, T label tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from torch import Tensor

from clara import prompts
from clara.errors import ClaraError, TrainingError
from clara.model import checkpoint
from clara.model.adapters import load_adapter
from clara.model.backbone import ADAPTER
from clara.model.create import Loaded
from clara.model.decoder import AdapterName
from clara.model.generator import DecodeLoop, Generator, Sampling
from clara.model.network import Network
from clara.model.prompting import Prompter
from clara.model.reader import check_base, read_reader_manifest, reader_fingerprint
from clara.records import GenerationRequest
from clara.train.batch import Batch, Collate, Collator, Memories
from clara.train.examples import CandidateExample, Example, Target
from clara.train.objective import evaluating, reply_logits

_ANSWER_TOKENS = 32
"""Longest answer of a teacher; the answers of the training sets are shorter."""

_ANSWERS_AT_ONCE = 16

_PAIRS_A_SEQUENCE = 4
"""Pairs of passage and answer that stand side by side behind one opening of the prompt: more of them save no more of
it than the attention over each other's places costs."""

_PAIRS_AT_ONCE = 32

_Item = TypeVar("_Item")


class _KeptValues:
    """JSON values by key, in a file that is only appended to.

    Several processes and several runs may share a file: a line counts once it is whole, a torn last line is cut off
    before the next append, and what another one kept meanwhile is read before something is added.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; JSON Lines, ``{"key", "value"}`` a line, made with the first value."""
        self._path = path
        self._values: dict[str, Any] = {}
        self._end = 0
        self._refresh()

    @staticmethod
    def key(*facts: object) -> str:
        """The key of what is asked: 32 hex digits of its facts, which are of JSON's types."""
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - any JSON value
        return self._values[key]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of ``keys`` that have no value here, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._values]

    def fill(self, wanted: Mapping[str, _Item], make: Callable[[list[_Item]], Iterable[object]], at_once: int) -> None:
        """Make the values that are missing, ``at_once`` at a time, each of what stands under its key in ``wanted``."""
        todo = self.missing(wanted)
        for start in range(0, len(todo), at_once):
            keys = todo[start : start + at_once]
            self.add(dict(zip(keys, make([wanted[key] for key in keys]), strict=True)))

    def add(self, values: Mapping[str, object]) -> None:
        """Keep values; those that another process kept meanwhile stay as they are.

        Raises:
            TrainingError: they cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_name(f"{self._path.name}.lock")):
                self._refresh()
                lines = [json.dumps({"key": key, "value": values[key]}) + "\n" for key in self.missing(values)]
                self._path.touch()
                with self._path.open("r+b") as file:
                    file.truncate(self._end)  # what a kill left torn
                    file.seek(self._end)
                    file.write("".join(lines).encode())
                self._refresh()
        except OSError as error:
            raise TrainingError(
                f"what was computed for this run cannot be kept in {self._path}: {error.strerror or error}; free some "
                "space there, or choose another folder"
            ) from error

    def _refresh(self) -> None:
        """Take in the lines that are whole."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                one = json.loads(line)
                self._values[one["key"]] = one["value"]
                self._end += len(line)


def add_teacher(loaded: Loaded, folder: Path) -> None:
    """Put a reader beside the network's own adapters, frozen; it is never saved with them.

    Raises:
        CheckpointError: the reader is damaged, or was trained on another base model.
    """
    manifest = read_reader_manifest(folder)
    check_base(folder, manifest, loaded.base)
    adapters = loaded.network.adapters
    adapters.add_frozen("teacher", manifest.lora)
    load_adapter(adapters.peft_model, folder / ADAPTER, "teacher")


def teacher_faults(folder: str) -> list[str]:
    """What a reader cannot be a teacher for."""
    try:
        manifest = read_reader_manifest(Path(folder).expanduser())
    except ClaraError as error:
        return [f"teacher: {error}"]
    if manifest.context != "text":
        return [f"teacher: {folder} was trained without context; a teacher reads full text"]
    return []


def teacher_fingerprint(loaded: Loaded, folder: Path) -> str:
    """The fingerprint of the reader that was added."""
    return reader_fingerprint(read_reader_manifest(folder), loaded.network.adapters, "teacher")


class TeacherAnswers:
    """The teacher's greedy answers, each made once."""

    def __init__(self, loaded: Loaded, kept: Path, *, fingerprint: str, window_tokens: int, bf16: bool) -> None:
        """Read what is in ``kept``, a folder shared by runs, of the teacher with this fingerprint.

        Args:
            loaded: the network, with a teacher.
            kept: the folder; each answer is kept with whether it came to an end.
            fingerprint: the teacher's.
            window_tokens: passages are cut to it.
            bf16: whether matrix products are in bf16.
        """
        self._network = loaded.network
        self._window, self._bf16 = window_tokens, bf16
        self._prompter = Prompter(loaded.base.tokenizer)
        self._generator = Generator(loaded.base.tokenizer, self._prompter)
        self._answers = _KeptValues(kept / f"answers-{fingerprint}.jsonl")

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with the teacher's answers to their questions.

        A question that the teacher answers with nothing keeps its gold answer.
        """
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

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[tuple[str, bool]]:
        adapters = self._network.adapters
        device = adapters.bare().device.type
        with (
            evaluating(self._network),
            adapters.use("teacher"),
            torch.autocast(device, torch.bfloat16, enabled=self._bf16),
        ):
            decoder = DecodeLoop(lambda: nullcontext(adapters.bare()))
            made = self._generator.generate(decoder, requests, Sampling(max_new_tokens=_ANSWER_TOKENS))
        return [(generation.text, generation.finish_reason == "stop") for generation in made]


def distilling(
    collator: Collator,
    *,
    changes: Sequence[Callable[[Sequence[Example]], list[Example]]] = (),
    distributions: bool = False,
) -> Collate:
    """A collator whose batches hold what frozen networks say of examples: answers, weights, a teacher's prompts.

    Examples go through the ``changes`` first, one after another (``TeacherAnswers``, ``TokenNeed``); with
    ``distributions`` the teacher reads along, for the KL term.
    """

    def collate(examples: Sequence[Example], *, rate: int, asked: Sequence[int] | None = None) -> Batch:
        taken = list(examples) if asked is None else [examples[i] for i in asked]
        for change in changes:
            taken = change(taken)
        batch = collator(taken, rate=rate)
        return replace(batch, teaching=collator.teaching(taken)) if distributions else batch

    return collate


class TokenNeed:
    """Weighs the tokens of restatements by how far they need the passage; questions stay as they are.

    Most tokens of a text follow from the words before them, whatever the memory holds; a name or a number does not. A
    token's need is its log-probability with the passage as text, less that with nothing, by the frozen backbone, or by
    the teacher where there is one.

    Attributes:
        most: nats; a token that could not be guessed at all teaches no more than one that could hardly be.
    """

    most = 5.0

    def __init__(self, loaded: Loaded, kept: Path, *, collator: Collator, role: AdapterName | None, mark: str) -> None:
        """Read what is in ``kept``; ``role`` is asked (None for the backbone alone), ``mark`` its fingerprint."""
        self._network, self._collator, self._role = loaded.network, collator, role
        self._kept = _KeptValues(kept / f"need-{mark}.jsonl")

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with weights in their restatements."""
        restating = [replace(e, targets=tuple(t for t in e.targets if not t.asks)) for e in examples]
        new = [e for e in restating if self._kept.missing(self._key(e, target) for target in e.targets)]
        if new:
            text, nothing = (
                self._logprobs(make(new)) for make in (self._collator.of_texts, self._collator.closed_book)
            )
            pairs = [(example, target) for example in new for target in example.targets]
            parts = torch.split(text - nothing, [self._collator.label_count(target) for _, target in pairs])
            needs = [[round(nats, 2) for nats in part.tolist()] for part in parts]
            self._kept.add({self._key(*pair): need for pair, need in zip(pairs, needs, strict=True)})
        return [replace(e, targets=tuple(t if t.asks else self._weighed(e, t) for t in e.targets)) for e in examples]

    def _weighed(self, example: Example, target: Target) -> Target:
        return self.weighted(target, self._kept[self._key(example, target)])

    @classmethod
    def weighted(cls, target: Target, need: Sequence[float]) -> Target:
        """A restatement whose labels, the end token included, weigh by their nats of need; on average as before."""
        held = [min(max(nats, 0.0), cls.most) for nats in need]
        mean = sum(held) / len(held)
        return target if mean == 0 else replace(target, label_weights=tuple(target.weight * n / mean for n in held))

    def _key(self, example: Example, target: Target) -> str:
        return _KeptValues.key(
            self._collator.window_tokens, target.instruction, target.reply, target.ends, *example.texts
        )

    def _logprobs(self, batch: Batch) -> Tensor:
        return _label_logprobs(self._network, batch, None, self._role).cpu()


class AnswerLikelihoods:
    """Log-probabilities of answers given one passage's memory."""

    def __init__(self, loaded: Loaded, memories: Memories, kept: Path, *, collator: Collator) -> None:
        """Read what is in ``kept`` of this generator and compressor, which stay as they are."""
        dtype = str(loaded.base.model.dtype).removeprefix("torch.")
        mark = checkpoint.generator_fingerprint(loaded.network, loaded.manifest)
        self._network, self._memories, self._collator = loaded.network, memories, collator
        self._kept = _KeptValues(kept / f"likelihoods-{mark}-{dtype}.jsonl")

    def __call__(self, examples: Sequence[CandidateExample], rate: int) -> Tensor:
        """Sums over the tokens of the reply, in nats: float32 [B, D]; all questions have equally many candidates."""
        keys = [[_KeptValues.key(rate, e.question, e.reply, text) for text in e.candidates] for e in examples]
        pairs = [(text, e.target) for e in examples for text in e.candidates]
        wanted = dict(zip(chain.from_iterable(keys), pairs, strict=True))
        self._kept.fill(wanted, lambda some: self._score(some, rate), _PAIRS_AT_ONCE)
        return torch.tensor([[self._kept[key] for key in row] for row in keys], dtype=torch.float32)

    def _score(self, pairs: Sequence[tuple[str, Target]], rate: int) -> list[float]:
        texts, targets = zip(*pairs, strict=True)
        batch = self._collator.apart(targets, rate=rate, a_sequence=_PAIRS_A_SEQUENCE)
        memories = self._memories(texts, rate)
        found = _label_logprobs(self._network, batch, memories, "generator")
        lengths = [self._collator.label_count(target) for target in targets]
        return [round(float(part.sum()), 4) for part in torch.split(found, lengths)]


def _label_logprobs(network: Network, batch: Batch, memories: Tensor | None, role: AdapterName | None) -> Tensor:
    """Log-probabilities of a batch's labels given memories [slots / N, N, H]: float32 [T]."""
    model = network.adapters.bare()
    batch = batch.to(model.device)
    slots = None if memories is None else memories.to(model.device).flatten(0, 1)
    bf16 = model.dtype == torch.bfloat16
    with evaluating(network), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        logits = reply_logits(network, batch, slots, role=role)
    return logits.float().log_softmax(dim=1).gather(1, batch.labels[:, None])[:, 0]
