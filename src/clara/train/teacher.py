"""Distillation: a full-text reader's answers and distributions as targets of a compressed model (arXiv 2501.16075).

The teacher is one more adapter on the run's own backbone. For every question of a batch it reads the same passages as
text, each cut to the window. What a run asks for (``targets``), with CE and KL as means over all label tokens:

- ``gold``: CE(gold answer). No teacher.
- ``teacher``: CE(teacher's greedy answer) + kl_weight * KL(teacher || student) at the tokens of that answer.
- ``both``: CE(gold answer) + kl_weight * KL(teacher || student) at the tokens of the gold answer.

Restatements keep their own targets and have no KL term: a reader is not asked to restate. Held-out losses are always
those of gold answers. Shape letters: T label tokens, V vocabulary, T' label tokens with a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from clara import prompts
from clara.errors import ClaraError
from clara.model.adapters import load_adapter
from clara.model.backbone import ADAPTER as TENSORS
from clara.model.create import Loaded
from clara.model.generator import DecodeLoop, Generator, Sampling
from clara.model.prompting import Prompter
from clara.model.reader import check_base, read_reader_manifest, reader_fingerprint
from clara.records import GenerationRequest
from clara.train.batch import Batch, Collator, Teaching
from clara.train.examples import Example, Target, is_question
from clara.train.kept import KeptValues, digest
from clara.train.objective import evaluating

ANSWER_TOKENS = 32
"""Longest answer of a teacher; the answers of the training sets are shorter."""

ANSWERS_AT_ONCE = 16
ADAPTER: Literal["teacher"] = "teacher"


def add_teacher(loaded: Loaded, folder: Path) -> None:
    """Put a reader beside the network's own adapters, frozen; it is never saved with them.

    Raises:
        CheckpointError: the reader is damaged, or was trained on another base model.
    """
    manifest = read_reader_manifest(folder)
    check_base(folder, manifest, loaded.base)
    adapters = loaded.network.adapters
    adapters.add_frozen("teacher", manifest.lora)
    load_adapter(adapters.peft_model, folder / TENSORS, ADAPTER)


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
    return reader_fingerprint(read_reader_manifest(folder), loaded.network.adapters, ADAPTER)


class TeacherAnswers:
    """The teacher's greedy answers, each made once and kept."""

    def __init__(self, loaded: Loaded, kept: Path, *, fingerprint: str, window_tokens: int, bf16: bool) -> None:
        """Read the answers that are there.

        Args:
            loaded: the network, with a teacher.
            kept: folder that they are kept in, each with whether it came to an end; shared by runs.
            fingerprint: the teacher's.
            window_tokens: passages are cut to it.
            bf16: whether matrix products are in bf16.
        """
        self._network = loaded.network
        self._window, self._bf16 = window_tokens, bf16
        self._prompter = Prompter(loaded.base.tokenizer)
        self._generator = Generator(loaded.base.tokenizer, self._prompter)
        self._answers = KeptValues(kept / f"answers-{fingerprint}.jsonl")

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with the teacher's answers to their questions.

        A question that the teacher answers with nothing keeps its gold answer.
        """
        wanted = dict(self._requests(examples))
        todo = self._answers.missing(wanted)
        for start in range(0, len(todo), ANSWERS_AT_ONCE):
            keys = todo[start : start + ANSWERS_AT_ONCE]
            made = self._generate([wanted[key] for key in keys])
            self._answers.add(dict(zip(keys, made, strict=True)))
        return [replace(e, targets=tuple(self._answered(e, t) for t in e.targets)) for e in examples]

    def _answered(self, example: Example, target: Target) -> Target:
        if not is_question(target):
            return target
        text, whole = self._answers[self._key(example, target)]
        return replace(target, reply=text, ends=whole) if text else target

    def _requests(self, examples: Sequence[Example]) -> Iterator[tuple[str, GenerationRequest]]:
        for example in examples:
            for target in filter(is_question, example.targets):
                texts = tuple(self._prompter.cut(text, self._window) for text in example.texts)
                question = target.instruction.removeprefix(prompts.QUESTION)
                yield self._key(example, target), GenerationRequest(question, texts=texts)

    def _key(self, example: Example, target: Target) -> str:
        return digest(self._window, target.instruction, *example.texts)

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[tuple[str, bool]]:
        adapters = self._network.adapters
        device = adapters.bare().device.type
        with (
            evaluating(self._network),
            adapters.use(ADAPTER),
            torch.autocast(device, torch.bfloat16, enabled=self._bf16),
        ):
            decoder = DecodeLoop(lambda: nullcontext(adapters.bare()))
            made = self._generator.generate(decoder, requests, Sampling(max_new_tokens=ANSWER_TOKENS))
        return [(generation.text, generation.finish_reason == "stop") for generation in made]


class DistillingCollator:
    """A collator whose batches hold what frozen networks say of examples: answers, weights, a teacher's prompts."""

    def __init__(
        self,
        collator: Collator,
        *,
        changes: Sequence[Callable[[Sequence[Example]], list[Example]]] = (),
        distributions: bool = False,
    ) -> None:
        """Choose what is taken of them.

        Args:
            collator: of the stage.
            changes: what becomes of the examples first, one after another (``TeacherAnswers``, ``TokenNeed``).
            distributions: whether the teacher reads along, for the KL term.
        """
        self._collator, self._changes, self._distributions = collator, changes, distributions

    def __call__(self, examples: Sequence[Example], *, rate: int, asked: Sequence[int] | None = None) -> Batch:
        """Make a batch; arguments as ``Collator``."""
        taken = list(examples) if asked is None else [examples[i] for i in asked]
        for change in self._changes:
            taken = change(taken)
        batch = self._collator(taken, rate=rate)
        return replace(batch, teaching=self._teaching(taken)) if self._distributions else batch

    def _teaching(self, examples: Sequence[Example]) -> Teaching | None:
        rows: list[int] = []
        place = 0
        for example in examples:
            for target in example.targets:
                count = self._collator.label_count(target)
                if is_question(target):
                    rows.extend(range(place, place + count))
                place += count
        asked = [replace(e, targets=tuple(filter(is_question, e.targets))) for e in examples]
        read = [example for example in asked if example.targets]
        return Teaching(self._collator.of_texts(read), torch.tensor(rows)) if read else None
