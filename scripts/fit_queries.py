"""Give a whitened checkpoint a projection that is fitted to labelled questions: the supervised variant of its reasoner.

Trains on the records of TRAIN_FOLDER that share neither passage nor question with RECORDS, and prints Recall@5 on
RECORDS, for the start and for the result, among 20 candidates each. RECORDS are best those of whiten_queries.py: their
memories are in the cache folder then.
Usage: fit_queries.py CHECKPOINT RECORDS.jsonl.gz TRAIN_FOLDER CACHE_FOLDER OUT
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from clara.data import DataRecord, MultiHop, read_records
from clara.errors import ClaraError
from clara.model import checkpoint
from clara.model.create import Loaded, from_checkpoint
from clara.model.placement import natural_dtype
from clara.model.selection import cosine_scores
from clara.train.candidates import Candidates, key_of, passages_of
from clara.train.documents import Documents
from clara.train.examples import Question
from clara.train.projection import Pairs, fit_projection, light_memories
from clara.train.start import question_memories

CANDIDATES = 20
EPOCHS = 5
BATCH = 512
QUESTIONS_A_PASSAGE = 6


def main() -> None:
    """Read a checkpoint, fit its projection at each rate, write the result."""
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    start, held_out, train, cache, out = map(Path, sys.argv[1:])
    loaded = from_checkpoint(start, cache, dtype=natural_dtype("cpu"), adapter_dtype=torch.float32)
    table = loaded.network.table
    if table.query_projection is None or table.late:
        sys.exit(f"{start} has no projection of questions' means; run whiten_queries.py --mean on it first")
    tests = read_records(held_out).records
    pairs = labelled(records_of(train), tests)
    if not pairs:
        sys.exit(f"{train} holds no question with its passage that {held_out} does not hold too")
    documents = Documents(loaded, cache)
    candidates = Candidates(tests, CANDIDATES, labelled=True)
    drawn = [candidates.example(record, np.random.default_rng(0)) for record in tests]
    asked = [question for question in drawn if question is not None and question.positives]
    if not asked:
        sys.exit(f"{held_out} holds no question with a passage that supports its answer")
    documents.prepare({rate: [text for q in asked for text in q.candidates] for rate in loaded.network.config.rates})
    for row, rate in enumerate(loaded.network.config.rates):
        before = recall(loaded, documents, asked, rate)
        made = pairs_of(loaded, pairs, documents, [q.candidates[0] for q in asked], rate)
        fitted = fit_projection(table.query_projection[row].detach(), made, epochs=EPOCHS, batch_size=BATCH)
        with torch.no_grad():
            table.query_projection[row] = fitted
        after = recall(loaded, documents, asked, rate)
        print(f"{rate}x: {len(pairs)} pairs, Recall@5 of {len(asked)} questions {before:.3f} before, {after:.3f} after")
    facts = {"examples": len(pairs), "start": {"checkpoint": str(start)}}
    card = f"{start.name} with a projection of questions fitted to {len(pairs)} labelled pairs.\n"
    manifest = loaded.manifest.unmeasured(stage="retriever", trained=facts)
    checkpoint.save(loaded.network, manifest, out, card=card)


def records_of(folder: Path) -> list[DataRecord]:
    """All records of a folder and the folders in it."""
    return [record for path in sorted(folder.rglob("*.jsonl.gz")) for record in read_records(path).records]


def labelled(records: Iterable[DataRecord], tests: Sequence[DataRecord]) -> list[tuple[str, str]]:
    """Questions with a passage that supports the answer, apart from all that the tests hold."""
    held = {key_of(text) for record in tests for text in [*passages_of(record), *(q for q, _ in asked_of(record))]}
    found = [pair for record in records for pair in asked_of(record)]
    return [(question, text) for question, text in found if key_of(question) not in held and key_of(text) not in held]


def asked_of(record: DataRecord) -> list[tuple[str, str]]:
    """Questions of a record, each with a supporting passage."""
    passages = passages_of(record)
    if isinstance(record, MultiHop):
        return [(record.question.strip(), passages[i]) for i in record.gold]
    return [(pair.question.strip(), passages[0]) for pair in record.all_pairs[:QUESTIONS_A_PASSAGE]]


def pairs_of(
    loaded: Loaded, pairs: Sequence[tuple[str, str]], documents: Documents, sample: Sequence[str], rate: int
) -> Pairs:
    """Light memories of the pairs; ``sample`` says what whole memories have beside them."""
    nothing = torch.zeros(loaded.manifest.hidden_size)
    whole = torch.stack([documents([text], rate)[0].float().mean(dim=0) for text in sample])
    shift = (whole - light_memories(loaded, sample, nothing, rate=rate).means).mean(dim=0)
    texts = {text: place for place, text in enumerate(dict.fromkeys(text for _, text in pairs))}
    questions = light_memories(loaded, [question for question, _ in pairs], nothing, rate=rate).means
    return Pairs(
        questions=questions - questions.mean(dim=0),
        documents=light_memories(loaded, list(texts), shift, rate=rate),
        answered_by=torch.tensor([texts[text] for _, text in pairs]),
    )


@torch.no_grad()
def recall(loaded: Loaded, documents: Documents, asked: Sequence[Question], rate: int) -> float:
    """Mean Recall@5 of whole memories."""
    queries = torch.cat(list(question_memories(loaded, [question.question for question in asked], rate=rate)))
    found = []
    for query, question in zip(queries, asked, strict=True):
        scores = cosine_scores(query[None], documents(question.candidates, rate)[None])
        best = scores[0].topk(5).indices.tolist()
        found.append(sum(place in best for place in question.positives) / len(question.positives))
    return float(np.mean(found))


if __name__ == "__main__":
    try:
        main()
    except ClaraError as error:
        sys.exit(str(error))
