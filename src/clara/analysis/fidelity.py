"""Fidelity of memories: the model paraphrases a passage from its memory, and the two are compared.

By ROUGE-1 and ROUGE-L (rouge-score), the share of the passage's names and numbers that return, and BERTScore where
there is an encoder (clara.md section 7).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeAlias

import numpy as np

from clara.errors import ModelError, RecordError, optional
from clara.evaluate.cache import Failure, each
from clara.evaluate.system import AnswerModel
from clara.metrics import Interval, bootstrap_interval, mean_of_known
from clara.prompts import PARAPHRASE_INSTRUCTION
from clara.records import FloatArray, GenerationRequest, Memory

_TokenVectors: TypeAlias = Callable[[Sequence[str]], Sequence[FloatArray]]
"""Texts to contextual vectors of their tokens: float32 [tokens, width] each."""

_MAX_NEW_TOKENS = 256
_WORD = re.compile(r"[^\W_]+(?:['’.\-][^\W_]+)*")
_AT_ONCE = 8
_SENTENCE_END = re.compile(r"[.!?:;]['\"”’)\]]*\s*$|\n\s*$|^\s*$")


@dataclass(frozen=True, slots=True)
class _FidelityRow:
    """A passage and its paraphrase; after an error all is None but that.

    ROUGE and BERTScore are F-measures, the latter None without an encoder; ``entities`` is the share of the passage's
    entities in the paraphrase, None where it has none.
    """

    id: str
    text: str | None
    rouge1: float | None
    rouge_l: float | None
    entities: float | None
    bert_score: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Means over the ``n`` passages without an error, of ``entities`` over those that have some."""

    n: int
    rate: int | None
    rouge1: float
    rouge1_ci95: Interval
    rouge_l: float
    rouge_l_ci95: Interval
    entities: float | None
    bert_score: float | None
    errors: int
    rows: tuple[_FidelityRow, ...]


def measure_fidelity(
    model: AnswerModel,
    passages: Sequence[tuple[str, str]],
    *,
    rate: int | None = None,
    vectors: _TokenVectors | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Fidelity:
    """Compress passages, let the model paraphrase them from memory, compare.

    The instruction is that of training, put in the place of the question. Passages are (identifier, text in the model's
    window); ``vectors`` of their tokens are for BERTScore.

    Raises:
        RecordError: there is no passage.
        ModelError: every passage gave an error.
        ConfigError: the model does not serve the rate.
        MissingExtraError: rouge-score is not installed.
    """
    if not passages:
        raise RecordError("fidelity needs at least one passage, got none")
    scorer = _rouge_scorer()
    rows: list[_FidelityRow] = []
    for start in range(0, len(passages), _AT_ONCE):
        batch = passages[start : start + _AT_ONCE]
        for (name, text), restated in zip(batch, each(batch, lambda some: _restate(model, some, rate)), strict=True):
            if isinstance(restated, Failure):
                rows.append(_FidelityRow(name, None, None, None, None, None, restated.reason))
                continue
            rouge = scorer(text, restated)
            bert = _bert_score(*vectors([restated, text])) if vectors is not None else None
            rows.append(_FidelityRow(name, restated, *rouge, _kept_entities(text, restated), bert, None))
        if on_progress is not None:
            on_progress(len(rows), len(passages))
    return _summary(rows, rate)


def _rouge_scorer() -> Callable[[str, str], tuple[float, float]]:
    """F-measures of ROUGE-1 and ROUGE-L, words stemmed, of passage and paraphrase."""
    library = optional("rouge_score.rouge_scorer", package="rouge-score", extra="eval")
    scorer = library.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)

    def score(text: str, restated: str) -> tuple[float, float]:
        scores = scorer.score(text, restated)
        return float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure)

    return score


def _entities_of(text: str) -> frozenset[str]:
    """Names and numbers of an English text, in lower case, by rules.

    A number is any word with a digit. A name is a run of capitalised words that does not begin a sentence, or occurs
    elsewhere in the text with its capital.
    """
    matches = list(_WORD.finditer(text))
    inner = {match.group() for match in matches if not _begins_sentence(text, match.start())}
    entities: set[str] = set()
    run: list[str] = []
    last_end = 0
    for match in matches:
        word = match.group()
        named = word[0].isupper() and (word in inner or not _begins_sentence(text, match.start()))
        if run and (not named or text[last_end : match.start()].strip()):
            entities.add(" ".join(run))
            run = []
        if named:
            run.append(word.lower())
        elif any(character.isdigit() for character in word):
            entities.add(word.lower())
        last_end = match.end()
    return frozenset(entities | ({" ".join(run)} if run else set()))


def _kept_entities(text: str, restated: str) -> float | None:
    """Share of the entities of ``text`` whose words occur together in ``restated``; None if there are none."""
    entities = _entities_of(text)
    if not entities:
        return None
    words = f" {' '.join(match.group().lower() for match in _WORD.finditer(restated))} "
    return sum(f" {entity} " in words for entity in entities) / len(entities)


def _bert_score(candidate: FloatArray, reference: FloatArray) -> float:
    """F-measure of BERTScore [tokens, width], each token greedily matched by cosine (arXiv 1904.09675).

    Without weights by inverse document frequency and without rescaling.
    """
    if not len(candidate) or not len(reference):
        return 0.0
    left = candidate / np.linalg.norm(candidate, axis=1, keepdims=True)
    right = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    cosines = left @ right.T
    precision, recall = float(cosines.max(axis=1).mean()), float(cosines.max(axis=0).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def token_vectors(folder: Path, *, device: str = "cpu") -> _TokenVectors:
    """Texts to last hidden states of their tokens by an encoder in HF format (ModelError: the folder has none)."""
    import torch  # noqa: PLC0415 - slow
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - slow

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{folder} holds no encoder for BERTScore ({reason}): give a folder in HF format") from None

    def vectors(texts: Sequence[str]) -> list[FloatArray]:
        states: list[FloatArray] = []
        for text in texts:
            batch = tokenizer(text, return_tensors="pt", truncation=True, return_special_tokens_mask=True)
            special = batch.pop("special_tokens_mask")[0].bool()
            with torch.inference_mode():
                hidden = model(**batch.to(device)).last_hidden_state[0]
            states.append(hidden[~special].float().cpu().numpy())
        return states

    return vectors


def _begins_sentence(text: str, start: int) -> bool:
    return _SENTENCE_END.search(text[max(0, start - 8) : start]) is not None


def _restate(model: AnswerModel, passages: Sequence[tuple[str, str]], rate: int | None) -> list[str]:
    memories: list[Memory] = model.compress([text for _, text in passages], rate=rate)
    requests = [GenerationRequest(PARAPHRASE_INSTRUCTION.strip(), memories=(memory,)) for memory in memories]
    return [generation.text for generation in model.generate_many(requests, max_new_tokens=_MAX_NEW_TOKENS)]


def _summary(rows: Sequence[_FidelityRow], rate: int | None) -> Fidelity:
    ones = [row.rouge1 for row in rows if row.rouge1 is not None]
    longest = [row.rouge_l for row in rows if row.rouge_l is not None]
    if not ones:
        raise ModelError(f"none of {len(rows)} passages could be told again: {rows[0].error}")
    return Fidelity(
        n=len(ones),
        rate=rate,
        rouge1=fmean(ones),
        rouge1_ci95=bootstrap_interval(ones),
        rouge_l=fmean(longest),
        rouge_l_ci95=bootstrap_interval(longest),
        entities=mean_of_known(row.entities for row in rows),
        bert_score=mean_of_known(row.bert_score for row in rows),
        errors=sum(row.error is not None for row in rows),
        rows=tuple(rows),
    )
