"""Question-answering records: read, checked, counted, mixed and written as JSON Lines.

Knows files and records, not tokens or models; batches for training are made in ``train``.
"""

from clara.data.questions import GoldRef, Question
from clara.data.reading import RecordFault, RecordSet, read_records, sha256_of
from clara.data.reading_questions import QuestionSet, read_questions
from clara.data.records import DataRecord, DocText, MultiHop, PassageQA, QAPair
from clara.data.sampling import mixture
from clara.data.writing import write_jsonl, write_records

__all__ = [
    "DataRecord",
    "DocText",
    "GoldRef",
    "MultiHop",
    "PassageQA",
    "QAPair",
    "Question",
    "QuestionSet",
    "RecordFault",
    "RecordSet",
    "mixture",
    "read_questions",
    "read_records",
    "sha256_of",
    "write_jsonl",
    "write_records",
]
