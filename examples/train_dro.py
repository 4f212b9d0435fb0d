"""Tune the baseline DRO: a selector and a reader on full text, tuned together (arXiv 2505.03075).

    python examples/train_dro.py --config RECIPE --data FILE… --out DIR

Writes DIR/dro, which ``clara compare --system dro --option dro=DIR/dro`` reads. Recipes: recipes/dro-*.toml. A run that
is killed starts anew.

Which passages answer a question is a hidden variable z, an ordered choice of k candidates. A step draws ``samples``
of them from the selector, weighs each by how likely the reader makes the gold answer from it (importance weights, with
the ratio of the selector as it is now to the one that drew), and moves the selector towards the choices with weight and
the reader towards the answer given them. No relevance label is read. Selector and reader are two LoRA adapters of one
backbone; the selector's head (``clara.evaluate.dro``) starts at zero: every choice is equally likely then.
Shape letters: D candidates, M samples, K chosen passages.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from clara import prompts
from clara.config import LoraSettings, Settings, check, read_toml
from clara.data import DataRecord, MultiHop, read_records
from clara.data.neighbours import WordIndex
from clara.errors import ClaraError, TrainingError
from clara.evaluate.dro import HEAD, MANIFEST, SELECTOR, SelectorManifest, new_selector
from clara.model import checkpoint, default_cache
from clara.model.adapters import Adapters, load_adapter, save_adapter
from clara.model.backbone import ADAPTER, BaseModel, load_base
from clara.model.hub.base import Progress as HubProgress
from clara.model.placement import placement
from clara.model.prompting import Prompter
from clara.model.reader import ReaderManifest, save_reader
from clara.prompts import passage_text
from clara.train.batch import Collator
from clara.train.examples import Example, Target
from clara.train.objective import reply_logits


class DroConfig(Settings):
    """One run.

    Attributes:
        base: base model by name, folder or hub id.
        reader: folder of a reader to start the reader from, or None for a fresh one.
        lora: shape of both adapters; a given reader's must be the same.
        steps: optimisation steps.
        batch_size: questions a step, one after the other.
        updates: optimisation steps on the same draws; from the second on the importance ratio is not 1.
        samples: choices drawn a question.
        k: passages in a choice.
        candidates: passages chosen among: a record's best by BM25.
        passage_tokens: longest passage.
        learning_rate: peak, of the adapters; a cosine falls to zero.
        head_learning_rate: peak, of the selector's head.
        warmup: share of the steps with a rising rate.
        reader_weight: of the reader's loss beside the selector's.
        seed: of adapters, order and draws.
        dtype: of the frozen base and of matrix products; ``auto`` is bf16 where the device multiplies it faster,
            else fp32.
    """

    base: str = "smollm2-135m"
    reader: str | None = None
    lora: LoraSettings = LoraSettings()
    steps: int = Field(default=400, ge=1)
    batch_size: int = Field(default=4, ge=1)
    updates: int = Field(default=2, ge=1)
    samples: int = Field(default=4, ge=2)
    k: int = Field(default=3, ge=1)
    candidates: int = Field(default=10, ge=2)
    passage_tokens: int = Field(default=256, ge=8)
    learning_rate: float = Field(default=2e-4, gt=0)
    head_learning_rate: float = Field(default=2e-2, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    reader_weight: float = Field(default=1.0, ge=0)
    seed: int = Field(default=0, ge=0)
    dtype: Literal["auto", "bf16", "fp32"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> DroConfig:
        if self.candidates <= self.k:
            raise ValueError(f"with {self.candidates} candidates there is nothing to choose {self.k} from")
        return self


@dataclass(frozen=True, slots=True)
class DroProgress:
    """What a run says after each step; means over its questions.

    Attributes:
        step: steps done.
        cross_entropy: nats an answer token, weighted over the drawn choices.
        effective: choices with weight, 1 to ``samples``: one over the sum of squared weights.
        gold: share of a record's gold passages among the selector's best k; watched, never trained on. NaN without.
    """

    step: int
    cross_entropy: float
    effective: float
    gold: float


def draw_choices(scores: Tensor, k: int, samples: int, generator: torch.Generator) -> Tensor:
    """Ordered choices without replacement, from the Plackett-Luce distribution of the scores: int64 [M, K].

    Args:
        scores: float32 [D].
        k: K, at most D.
        samples: M.
        generator: of the draws.
    """
    uniform = torch.rand(samples, len(scores), generator=generator).clamp(1e-20, 1 - 1e-7).to(scores.device)
    return (scores.detach() - (-uniform.log()).log()).topk(k, dim=1).indices  # the k largest after Gumbel noise


def log_probability(scores: Tensor, choices: Tensor) -> Tensor:
    """Plackett-Luce log probability of ordered choices: float32 [M].

    Args:
        scores: float32 [D].
        choices: int64 [M, K], each candidate at most once in a row.
    """
    taken = torch.zeros(len(choices), len(scores), dtype=torch.bool, device=scores.device)
    total = torch.zeros(len(choices), device=scores.device)
    for slot in range(choices.shape[1]):
        chosen = choices[:, slot : slot + 1]
        left = scores.expand(len(choices), -1).masked_fill(taken, -math.inf)
        total = total + (left.gather(1, chosen)[:, 0] - left.logsumexp(dim=1))
        taken = taken.scatter(1, chosen, value=True)
    return total


def importance_weights(answer: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """Self-normalised weights of drawn choices: p(answer | choice) p_now(choice) / p_then(choice), float32 [M].

    Args:
        answer: log likelihood of the answer given each choice, [M].
        now: log probability of each choice under the selector now, [M].
        then: under the selector that drew it, [M].
    """
    return (answer + now - then).detach().softmax(dim=0)


def selector_loss(weights: Tensor, now: Tensor) -> Tensor:
    """What moves the selector towards choices with weight: a scalar.

    Less their mean, which is zero in expectation: a choice is moved by being better than the others that were drawn,
    not by having been drawn.

    Args:
        weights: of ``importance_weights``, [M].
        now: log probability of each choice under the selector, with gradients, [M].
    """
    return -((weights - weights.mean()) * now).sum()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question as the run sees it; ``gold`` is only watched."""

    question: str
    answer: str
    texts: tuple[str, ...]
    gold: frozenset[int]


def train_dro(
    records: Sequence[DataRecord],
    config: DroConfig,
    out: Path,
    *,
    cache: Path,
    device: str = "cpu",
    on_progress: Callable[[DroProgress], None] | None = None,
    hub_progress: HubProgress | None = None,
) -> Path:
    """Tune selector and reader, and write ``out/dro``: ``reader`` and ``selector`` in it.

    Args:
        records: those with candidate passages are trained on, others left out.
        config: the run.
        out: gets ``log.jsonl`` too.
        cache: folder for base weights.
        device: for the model.
        on_progress: told after each step.
        hub_progress: told about downloads.

    Raises:
        TrainingError: no record has as many candidates as a choice takes.
        ModelError: base or reader cannot be had.
    """
    questions = [found for record in records if (found := _asked(record, config)) is not None]
    if not questions:
        raise TrainingError(
            f"expected questions with at least {config.k + 1} passages, none of {len(records)} has them"
        )
    base = load_base(
        config.base, cache, dtype=placement(config.dtype, device).dtype, device=device, progress=hub_progress
    )
    run = _Run(base, config)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.jsonl").open("w", encoding="utf-8") as log:
        for progress in run.steps(questions):
            log.write(json.dumps(asdict(progress)) + "\n")
            log.flush()
            if on_progress is not None:
                on_progress(progress)
    run.save(out / "dro", len(questions))
    return out / "dro"


class _Run:
    """One run on its way."""

    def __init__(self, base: BaseModel, config: DroConfig) -> None:
        self._base, self._config = base, config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            adapters = Adapters.fresh(base.model, config.lora, roles=(SELECTOR, "generator"))
        if config.reader is not None:
            load_adapter(adapters.peft_model, Path(config.reader) / ADAPTER, "generator")
        self._selector = new_selector(base, adapters, passage_tokens=config.passage_tokens)
        self._decoder, self._adapters = self._selector.decoder, adapters
        self._decoder.requires_grad_(requires_grad=False)
        for role in (SELECTOR, "generator"):
            for parameter in adapters.parameters_of(role):
                parameter.requires_grad = True
        self._collator = Collator(Prompter(base.tokenizer), window_tokens=config.passage_tokens)
        self._draws = torch.Generator().manual_seed(config.seed)
        lora = [p for p in self._decoder.parameters() if p.requires_grad]
        groups = [
            {"params": lora, "lr": config.learning_rate},
            {"params": [self._selector.head], "lr": config.head_learning_rate},
        ]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, self._share)

    def _share(self, step: int) -> float:
        """Of the peak learning rate: a linear warm-up, then a cosine to zero."""
        warmup = self._config.warmup * self._config.steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, self._config.steps - warmup)))

    def steps(self, questions: Sequence[_Asked]) -> Iterator[DroProgress]:
        """Train; what each step came to."""
        self._decoder.train()
        order = _order(len(questions), self._config)
        step = 0
        while step < self._config.steps:
            batch = [questions[next(order)] for _ in range(self._config.batch_size)]
            drawn: list[tuple[Tensor, Tensor]] = [self._draw(asked) for asked in batch]
            for _ in range(min(self._config.updates, self._config.steps - step)):
                parts = [self._learn(asked, *of) for asked, of in zip(batch, drawn, strict=True)]
                trained = [p for group in self._optimiser.param_groups for p in group["params"]]
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                self._optimiser.step()
                self._schedule.step()
                self._optimiser.zero_grad(set_to_none=True)
                step += 1
                cross_entropy, effective, gold = (_mean(values) for values in zip(*parts, strict=True))
                yield DroProgress(step, cross_entropy, effective, gold)

    @torch.no_grad()
    def _draw(self, asked: _Asked) -> tuple[Tensor, Tensor]:
        """Choices [M, K] and their log probabilities [M]."""
        with self._autocast():
            scores = self._selector.scores(asked.question, asked.texts)
        choices = draw_choices(scores, self._config.k, self._config.samples, self._draws)
        return choices, log_probability(scores, choices)

    def _learn(self, asked: _Asked, choices: Tensor, then: Tensor) -> tuple[float, float, float]:
        """Add one question's gradients; cross-entropy, effective samples and share of gold found."""
        with self._autocast():
            scores = self._selector.scores(asked.question, asked.texts)
            answer = self._answer(asked, choices)
        now = log_probability(scores, choices)
        weights = importance_weights(answer.sum(dim=1), now, then)
        selector = selector_loss(weights, now)
        cross_entropy = -(weights * answer.mean(dim=1)).sum()
        total = selector + self._config.reader_weight * cross_entropy
        torch.autograd.backward(total / self._config.batch_size)
        best = set(scores.detach().topk(self._config.k).indices.tolist())
        found = len(best & asked.gold) / len(asked.gold) if asked.gold else math.nan
        return float(cross_entropy.detach()), float(1 / weights.square().sum()), found

    def _answer(self, asked: _Asked, choices: Tensor) -> Tensor:
        """Log probabilities of the answer's tokens given each choice: float32 [M, tokens]."""
        target = Target(prompts.QUESTION + asked.question.strip(), asked.answer)
        examples = [Example(tuple(asked.texts[i] for i in row), (target,)) for row in choices.tolist()]
        batch = self._collator.of_texts(examples).to(self._selector.head.device)
        logits = reply_logits(self._decoder, batch, None)
        losses = functional.cross_entropy(logits.float(), batch.labels, reduction="none")
        return -losses.reshape(len(examples), -1)  # the same answer each time, so the same number of tokens

    def _autocast(self) -> torch.autocast:
        model = self._base.model
        return torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16)

    def save(self, folder: Path, questions: int) -> None:
        """Write ``reader`` and ``selector``."""
        base, config = self._base, self._config
        trained = {"stage": "dro", "questions": questions, "config": config.model_dump(mode="json")}
        reader = ReaderManifest(
            base_model=base.name, base_identity=base.identity, context="text", lora=config.lora, trained=trained
        )
        card = (
            f"# DRO on {base.name}\n\nReader and selector tuned together (arXiv 2505.03075) on {questions} questions.\n"
        )
        save_reader(self._adapters, reader, folder / "reader", card=card)
        with checkpoint.replacing(folder / "selector") as scratch:
            save_adapter(self._adapters.peft_model, SELECTOR, scratch)
            save_file({"head": self._selector.head.detach().cpu().contiguous()}, scratch / HEAD)
            manifest = SelectorManifest(
                base_model=base.name,
                base_identity=base.identity,
                lora=config.lora,
                passage_tokens=config.passage_tokens,
                trained=config.model_dump(mode="json"),
            )
            (scratch / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _asked(record: DataRecord, config: DroConfig) -> _Asked | None:
    """A record's question with its best candidates by words; None where there are too few to choose among."""
    if not isinstance(record, MultiHop) or len(record.docs) <= config.k:
        return None
    texts = [passage_text(doc.title, doc.text) for doc in record.docs]
    order = np.argsort(-WordIndex(texts).scores(record.question), kind="stable")[: config.candidates].tolist()
    gold = frozenset(place for place, index in enumerate(order) if index in record.gold)
    return _Asked(record.question, record.answers[0], tuple(texts[i] for i in order), gold)


def _mean(values: Sequence[float]) -> float:
    """The mean of the values that are there; NaN where none is."""
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan


def _order(count: int, config: DroConfig) -> Iterator[int]:
    """Places of questions, a new permutation each pass."""
    rng = np.random.default_rng([config.seed, 6])
    while True:
        yield from (int(place) for place in rng.permutation(count))


def main() -> int:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="recipe (TOML)")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="questions with candidates (.jsonl, .jsonl.gz)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for base weights")
    given = parser.parse_args()
    try:
        if any("eval" in path.resolve().parts for path in given.data):
            raise SystemExit("train_dro: what is measured on is never trained on; name data outside a folder eval")
        records: list[DataRecord] = []
        for path in given.data:
            reading = read_records(path)
            print(reading.summary(), file=sys.stderr)
            records.extend(reading.records)
        config = check(DroConfig, read_toml(given.config), source=str(given.config))
        print(train_dro(records, config, given.out, cache=given.cache, device=given.device, on_progress=_say))
    except ClaraError as error:
        print(f"train_dro: {error}", file=sys.stderr)
        return 2
    return 0


def _say(progress: DroProgress) -> None:
    print(
        f"step {progress.step}: loss {progress.cross_entropy:.3f}, {progress.effective:.1f} choices with weight, "
        f"gold found {progress.gold:.2f}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
