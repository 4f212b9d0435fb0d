"""The verifier on pairs that people wrote: theirs are accepted, the same pairs about another passage are not.

Measured on the small sample in ``fixtures``; on more where the shared data folder lies beside the checkout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import verifier_bench
from verifier_bench import POOLED, VerifierScore, score_verifier

from clara.data import PassageQA, read_records
from clara.errors import RecordError
from clara.synth.output import SynthReport
from clara.synth.run import SynthJob, synthesize
from clara.synth.settings import CheckSettings, LexicalSettings, SynthSettings
from clara.synth.sources import read_sources
from llm_server import LLMServer, serving

FIXTURE = Path(__file__).parent / "fixtures" / "human_pairs.jsonl"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "train" / "passage_qa"
_SAMPLE = 80  # passages a data set; all of them take minutes (verifier_bench.py)


def score(records: tuple[PassageQA, ...]) -> VerifierScore:
    return score_verifier(records, CheckSettings(), LexicalSettings())


def test_human_pairs_of_the_sample() -> None:
    measured = score(read_records(FIXTURE).passage_qa)
    assert measured.passages == 80
    assert measured.recall >= 0.95
    assert measured.rejection >= 0.95
    assert measured.precision >= 0.95


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
def test_human_pairs_of_the_pooled_data_sets() -> None:
    pooled = VerifierScore(0, 0, 0, 0, 0, {})
    for name in POOLED:
        records = read_records(SHARED / f"{name}.jsonl.gz").passage_qa
        pooled += score(records[:: max(1, len(records) // _SAMPLE)])
    assert pooled.pairs > 500
    assert pooled.recall >= 0.95
    assert pooled.rejection >= 0.95


def test_the_table_names_what_it_cannot_measure(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(FIXTURE.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
    with pytest.raises(SystemExit, match="expected at least two"):
        verifier_bench.main([tmp_path / "one.jsonl"])
    with pytest.raises(RecordError, match="nothing"):
        verifier_bench.main([tmp_path / "nothing"])


def in_other_words(text: str) -> str:
    """A stand-in for a paraphrase: groups of seven words in reverse order."""
    spelled = text.split()
    return " ".join(" ".join(spelled[i : i + 7]) for i in reversed(range(0, len(spelled), 7)))


def replay(folder: Path, texts: list[str], replayed: list[dict[str, Any]]) -> SynthReport:
    """Run a synthesis in which the language model answers about each text with a person's pairs."""
    known = {}
    passages = []
    for number, (text, record) in enumerate(zip(texts, replayed, strict=True)):
        pairs = [{"question": item["question"], "answer": item["answers"][0]} for item in record["qa"]]
        known[text] = {
            "simple_qa": {"pairs": pairs},
            "complex_qa": {"pairs": []},
            "paraphrase": {"paraphrase": in_other_words(text)},
        }
        passages.append({"id": f"p{number}", "source": "x", "title": "", "text": text})
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, passages)), "utf-8")
    sources = read_sources([folder / "in.jsonl"], passage_words=190, min_passage_words=8)
    with serving(LLMServer(known)) as llm:
        server = {"url": llm.url, "model": "people", "first_wait_seconds": 0.01}
        settings = SynthSettings.model_validate({"server": server, "max_rounds": 2})
        return synthesize(sources, settings, SynthJob(folder / "out.jsonl"))


def test_replayed_pairs_of_people_become_records_and_those_of_others_do_not(tmp_path: Path) -> None:
    """Through the whole loop, the server's judge saying yes to everything."""
    records = [json.loads(line) for line in FIXTURE.read_text("utf-8").splitlines()][::4]
    texts = [record["text"] for record in records]
    (tmp_path / "own").mkdir()
    (tmp_path / "other").mkdir()
    own = replay(tmp_path / "own", texts, records)
    other = replay(tmp_path / "other", texts, records[1:] + records[:1])
    assert own.accepted >= 0.95 * len(records)
    assert other.accepted <= 0.05 * len(records)
    asked = sum(len(record["qa"]) for record in records)
    assert own.pairs >= 0.95 * asked
