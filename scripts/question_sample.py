"""Draw the sample of training records that the embedded checkpoint's query reasoners were trained on.

Each candidate document has to be compressed before a selecting stage can train, so the run reads a few thousand, not
all. Multi-hop records with few documents of their own are preferred for the same reason.
Usage: question_sample.py TRAIN_FOLDER OUT.jsonl.gz
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

PASSAGES = {"squad": 350, "clara_scp": 100, "nq_qed": 500, "nq_open": 200, "ares": 50}
MULTI_HOP = {"hotpotqa": 330, "2wiki": 250, "musique": 15}
DOCUMENTS = {"hotpotqa": 3, "2wiki": 3, "musique": 20}
"""Most documents of a multi-hop record."""


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    """Write the sample, passages shuffled, then the questions over several documents."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    random.seed(5)
    passages, questions = [], []
    for name, count in PASSAGES.items():
        rows = [r for r in read(folder / "passage_qa" / f"{name}.jsonl.gz") if r.get("qa")]
        passages += random.sample(rows, min(count, len(rows)))
    for name, count in MULTI_HOP.items():
        rows = read(folder / "multi_hop" / f"{name}.jsonl.gz")
        rows = [r for r in rows if r["gold"] and len(r["docs"]) <= DOCUMENTS[name]]
        questions += random.sample(rows, min(count, len(rows)))
    random.shuffle(passages)
    with gzip.open(out, "wt", encoding="utf-8") as file:
        for record in [*passages, *questions]:
            file.write(json.dumps(record) + "\n")
    print(f"{len(passages)} passages and {len(questions)} questions over several documents: {out}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(str(error))
