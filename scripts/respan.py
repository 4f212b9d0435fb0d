"""Cut the spans of a checkpoint by information instead of length, and go on training it.

Counts tokens in the passages of TRAIN_FOLDER. Memories change by it, so the result wants training; the weights are
those of CHECKPOINT (LOG.md, 2026-11-26).
Usage: respan.py CHECKPOINT TRAIN_FOLDER CACHE_FOLDER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from clara.data import read_records
from clara.errors import ClaraError
from clara.model import checkpoint
from clara.model.backbone import plain_ids
from clara.model.create import from_checkpoint
from clara.model.placement import natural_dtype
from clara.train.candidates import passages_of


def main() -> None:
    """Read a checkpoint and records, count, write the result."""
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    start, train, cache, out = map(Path, sys.argv[1:])
    loaded = from_checkpoint(start, cache, dtype=natural_dtype("cpu"), adapter_dtype=torch.float32)
    records = [record for path in sorted(train.rglob("*.jsonl.gz")) for record in read_records(path).records]
    if not records:
        sys.exit(f"{train} holds no records (*.jsonl.gz) to count in")
    texts = dict.fromkeys(text for record in records for text in passages_of(record))
    vocabulary = len(loaded.base.model.get_input_embeddings().weight)
    loaded.network.table.count((plain_ids(loaded.base.tokenizer, text) for text in texts), vocabulary)
    compression = loaded.manifest.compression.model_copy(update={"spans": "information"})
    manifest = loaded.manifest.unmeasured(compression=compression)
    checkpoint.save(loaded.network, manifest, out, card=f"{start.name} with spans of equal information.\n")


if __name__ == "__main__":
    try:
        main()
    except ClaraError as error:
        sys.exit(str(error))
