"""Give a checkpoint a query reasoner that was not trained: the compressor's weights and a whitened projection.

The embedded checkpoint has this one, compared by late interaction: it found more than what stage end-to-end made of it
(LOG.md, 2026-11-26). No label and no step of training is involved; the records, of both kinds, only say what documents
and questions look like. With --mean questions are compared by their mean, which fit_queries.py can go on from.
Usage: whiten_queries.py [--mean] CHECKPOINT RECORDS.jsonl.gz CACHE_FOLDER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from clara.data import DataRecord, read_records
from clara.errors import ClaraError
from clara.model import checkpoint
from clara.model.create import from_checkpoint
from clara.model.placement import natural_dtype
from clara.train.candidates import passages_of
from clara.train.data import TrainingData, sample_questions
from clara.train.documents import Documents
from clara.train.start import WHITENING_DOCUMENTS, WHITENING_QUESTIONS, whiten


def main() -> None:
    """Read a checkpoint, replace its reasoner, write the result."""
    late = "--mean" not in sys.argv
    folders = [Path(text) for text in sys.argv[1:] if text != "--mean"]
    if len(folders) != 4:
        sys.exit(__doc__)
    start, records, cache, out = folders
    loaded = from_checkpoint(start, cache, dtype=natural_dtype("cpu"), adapter_dtype=torch.float32)
    rates = loaded.manifest.compression.rates
    data = by_source(records)
    texts = list(
        dict.fromkeys(text for rows in data.sources.values() for record in rows for text in passages_of(record))
    )
    asked = sample_questions(data, WHITENING_QUESTIONS)
    if not asked:
        sys.exit(f"{records} holds no question; give records that have some")
    print(f"whitened by {min(len(texts), WHITENING_DOCUMENTS)} of {len(texts)} passages and by {len(asked)} questions")
    network = loaded.network
    network.adapters.reset_query_reasoner(seed=None)
    network.table.share_query_read_out()
    network.table.project_queries(projected=True, late=late)
    whiten(loaded, Documents(loaded, cache), dict.fromkeys(rates, texts), asked)
    card = f"{start.name} with a query reasoner that was not trained.\n"
    checkpoint.save(network, loaded.manifest.unmeasured(), out, card=card)


def by_source(path: Path) -> TrainingData:
    """All records of a file; says which lines gave none."""
    reading = read_records(path)
    print(reading.summary())
    sources: dict[str, list[DataRecord]] = {}
    for record in reading.records:
        sources.setdefault(record.source, []).append(record)
    return TrainingData(sources, held_out=(), rejected=reading.rejected)


if __name__ == "__main__":
    try:
        main()
    except ClaraError as error:
        sys.exit(str(error))
