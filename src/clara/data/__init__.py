"""Question-answering records: read, checked, counted and written as JSON Lines.

Knows files and records, not tokens or models; batches for training are made in ``train``.
"""

from clara.data.reading import (
    QuestionSet,
    RecordSet,
    read_questions,
    read_records,
    sha256_of,
    write_jsonl,
    write_records,
)
from clara.data.records import DataRecord, DocText, GoldRef, MultiHop, PassageQA, QAPair, Question

__all__ = [
    "DataRecord",
    "DocText",
    "GoldRef",
    "MultiHop",
    "PassageQA",
    "QAPair",
    "Question",
    "QuestionSet",
    "RecordSet",
    "read_questions",
    "read_records",
    "sha256_of",
    "write_jsonl",
    "write_records",
]
