"""How passages are found and read, as ``clara calibrate`` measures it: what is kept, chosen and recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clara.calibrate import run
from clara.calibrate.decoding import Bench, _choose, _threshold, draw, measure, right_answers_needed
from clara.calibrate.run import CalibrationOptions, CheckpointLoader
from clara.cli import main
from clara.data import DataRecord, DocText, MultiHop, PassageQA, QAPair, write_records
from clara.model import ClaraModel, checkpoint
from clara.model.checkpoint import ReadingRule
from clara.train.data import within_window

WORDS = ("iron", "stone", "glass", "wood", "brick", "clay", "straw", "copper", "marble", "steel")


def one_word(count: int = 10) -> list[DataRecord]:
    """Passages of one word; what is quoted of the right one, or said beside, is right."""
    return [
        PassageQA(f"a{i}", "a", "", word, (QAPair(f"Of what is tower {i}?", (word, "yes", "no")),))
        for i, word in enumerate(WORDS[:count])
    ]


def quiet(*_: object) -> None:
    """Takes progress."""


def test_a_candidate_needs_a_gain_beyond_its_standard_error() -> None:
    level = [1.0, 0.0, 1.0, 0.0]
    kept = _choose(0.5, {0.5: level, 1.0: [0.0, 1.0, 1.0, 0.1]}, "F1")
    assert (kept.value, kept.was) == (0.5, 0.5), "0.025 of gain is within the noise"
    assert kept.figures == {"0.5": 0.5, "1.0": 0.525}
    changed = _choose(0.5, {0.5: level, 1.0: [1.0, 0.9, 1.0, 0.9]}, "F1")
    assert changed.value == 1.0
    assert _choose("free", {"free": level, "quoted": level}, "F1").value == "free", "of equals the current one"


def test_the_threshold_keeps_a_share_of_the_right_answers() -> None:
    right = [i / 20 for i in range(20)]
    found = _threshold(right, [-1.0, -0.5, 0.3, 0.9], keep=0.95, was=None)
    assert found.value == 0.05, "one of twenty is given up"
    assert found.figures["right answers kept"] == 0.95
    assert found.figures["answers refused that the passages do not hold"] == 0.5
    assert _threshold(right, [], keep=1.0, was=None).value == 0.0
    assert _threshold([0.123456], [], keep=0.9, was=None).value <= 0.123456, "rounded down, it is kept"


@pytest.mark.parametrize(("keep", "needed"), [(0.95, 20), (0.9, 10), (0.5, 2), (1.0, 1)])
def test_so_many_right_answers_have_one_to_lose(keep: float, needed: int) -> None:
    assert right_answers_needed(keep) == needed
    right = [float(i) for i in range(needed)]
    assert _threshold(right, [], keep, None).value == (1.0 if keep < 1 else 0.0)
    assert _threshold(right[: needed - 1] or [0.0], [], keep, None).value == 0.0


def test_no_more_records_are_cut_than_are_asked(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[int] = []

    def count(records: Sequence[DataRecord], *rest: Any) -> Any:  # noqa: ANN401 - handed on as they are
        cut.append(len(records))
        return within_window(records, *rest)

    monkeypatch.setattr(run, "within_window", count)
    said: list[str] = []
    run.calibrate(
        str(tiny_checkpoint),
        one_word(),
        CalibrationOptions(frozenset({"wording", "evidence"}), limit=3, keep=0.99),
        CheckpointLoader(tmp_path / "cache"),
        on_notice=said.append,
    )
    assert cut == [3]
    assert any("to keep 0.99 of them takes at least 100: ask more questions (--limit)" in line for line in said)


def test_a_sample_has_one_question_of_a_record_and_knows_what_does_not_answer_it() -> None:
    docs = (DocText("", "It stands in Paris."), DocText("", "It was built in 1889."))
    records: list[DataRecord] = [
        MultiHop("m", "m", "Where is it?", ("Paris",), docs, (0,)),
        PassageQA("a", "a", "", "Paris is a city.", (QAPair("What is it?", ("city",)), QAPair("What?", ("city",)))),
        PassageQA("b", "b", "", "Bread is baked.", (QAPair("What is baked?", ("bread",)),)),
    ]
    sample = draw(records, 10, seed=0)
    assert len(sample.questions) == 3
    assert len(sample.passages) == 4
    where = next(question for question in sample.questions if question.text == "Where is it?")
    assert [sample.passages[name].text for name in where.gold] == ["It stands in Paris."]
    assert {sample.passages[name].text for name in sample.answerless(where)} == {"Bread is baked."}
    assert len(draw(records, 2, seed=0).questions) == 2
    assert draw(records, 2, seed=1) == draw(records, 2, seed=1)


def test_passages_are_found_as_a_search_finds_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = ClaraModel.load(tiny_checkpoint, dtype="fp32")
    docs = tuple(DocText("", f"Tower {i} is of {word}.") for i, word in enumerate(WORDS * 2))
    records: list[DataRecord] = [
        MultiHop(f"m{i}", "m", f"Of what is tower {i}?", (WORDS[i],), docs, (i,)) for i in range(3)
    ]
    bench = Bench(model, draw(records, 3, 0), tmp_path, quiet)
    for question, hits in bench.retrieved(4):
        assert len(hits) == 12
        for k in (1, 3, 5):
            shorter = bench._stores[4].search(question.text, k)
            assert [hit.passage.id for hit in hits[:k]] == [hit.passage.id for hit in shorter]
    bench.close()


def test_how_many_are_ranked_again_is_measured_by_what_then_stands_first(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = ClaraModel.load(tiny_checkpoint, dtype="fp32")
    bench = Bench(model, draw(one_word(), 10, 0), tmp_path, quiet)
    measured = measure(bench, "rerank", 0.95)["rerank"]
    assert measured.questions == 20, "at both rates"
    for depth, figure in measured.figures.items():
        bench.change_reading(rerank=int(depth))
        first = [hits[0].passage.id in q.gold for rate in model.rates for q, hits in bench.retrieved(rate)]
        assert figure == pytest.approx(sum(first) / 20)
    bench.close()


def test_evidence_keeps_right_answers_and_says_what_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = ClaraModel.load(tiny_checkpoint, dtype="fp32")
    bench = Bench(model, draw(one_word(6), 6, 0), tmp_path, quiet)
    assert measure(bench, "evidence", 0.9) == {}, "free answers have no evidence"
    bench.change(wording="quoted")
    found = measure(bench, "evidence", 0.9)["memory_evidence"]
    bench.close()
    assert 6 < found.questions <= 12, "right ones, at both rates"
    assert found.figures["right answers kept"] >= 0.9
    assert 0 <= found.figures["answers refused that the passages do not hold"] <= 1
    assert model.reading.memory_evidence == found.value


def test_the_command_keeps_what_it_was_not_asked_for(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = Path(shutil.copytree(tiny_checkpoint, tmp_path / "start"))
    manifest = json.loads((start / checkpoint.MANIFEST).read_text("utf-8"))
    rule = {"auto_texts": 2, "memory_k": 3, "text_k": None, "text_evidence": -0.5, "memory_evidence": None}
    marks = {"steps": 7, "not_remeasured": ["latent_weight", "wording", "reading"]}
    given = {"latent_weight": 0.5, "wording": "quoted", "reading": rule, "trained": marks}
    (start / checkpoint.MANIFEST).write_text(json.dumps(manifest | given), "utf-8")
    before = {path: path.read_bytes() for path in start.rglob("*") if path.is_file()}
    write_records(tmp_path / "records.jsonl", one_word())
    command = ["calibrate", str(start), "--data", str(tmp_path / "records.jsonl"), "--cache", str(tmp_path / "cache")]
    assert main([*command, "--only", "latent-weight", "--out", str(tmp_path / "out"), "--limit", "6", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["checkpoint"] == str(tmp_path / "out")
    entry = printed["calibrated"]["latent-weight"]
    assert (entry["was"], entry["metric"], entry["questions"]) == (0.5, "Recall@5", 12)
    assert set(entry["candidates"]) == {"0.1", "0.25", "0.5", "1.0", "2.0"}
    assert (entry["data"], entry["records"], entry["seed"], entry["passages"]) == (["records.jsonl"], 10, 0, 6)
    assert {path: path.read_bytes() for path in before} == before, "CHECKPOINT itself stays"
    made = checkpoint.read_manifest(tmp_path / "out")
    assert (made.latent_weight, made.wording, made.reading) == (
        entry["value"],
        "quoted",
        ReadingRule.model_validate(rule),
    )
    assert made.trained["calibrated"] == {"latent-weight": entry}
    assert (made.trained["steps"], made.trained["not_remeasured"]) == (7, ["wording", "reading"])
    old, new = (ClaraModel.load(folder, dtype="fp32") for folder in (start, tmp_path / "out"))
    assert old.fingerprint == new.fingerprint, "stores stay valid"
    command[1] = str(tmp_path / "out")
    assert main([*command, "--only", "evidence", "--limit", "4", "--out", str(tmp_path / "out")]) == 0
    again = checkpoint.read_manifest(tmp_path / "out")
    assert set(again.trained["calibrated"]) == {"latent-weight", "evidence"}
    assert again.reading is not None
    assert (again.reading.memory_k, again.reading.text_evidence) == (3, -0.5)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert card.startswith("# A tiny checkpoint for tests")
    assert card.count("## Calibrated") == 1
    assert "| latent-weight |" in card
    assert "| evidence, memory_evidence |" in card


def test_contrast_wording_and_reading_are_measured(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "records.jsonl", one_word())
    command = ["calibrate", str(tiny_checkpoint), "--data", str(tmp_path / "records.jsonl"), "--limit", "2"]
    command += ["--cache", str(tmp_path / "cache"), "--json"]
    parts = "queries,contrast,wording,reading"
    assert main([*command, "--only", parts, "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)["calibrated"]
    assert set(found) == set(parts.split(","))
    candidates = found["wording"]["candidates"]
    assert candidates["quoted"] > candidates["free"], "most quotations are right, random words are not"
    assert set(found["contrast"]) == {"passages", "4x", "16x", "date", "data", "records", "seed"}
    assert found["reading"]["memory_k"]["value"] == 5, "no other number is better"
    made = checkpoint.read_manifest(tmp_path / "out")
    assert (made.wording, made.late_interaction) == (found["wording"]["value"], True)
    assert made.reading == ReadingRule(memory_k=5)
    assert main([*command, "--only", "contrast"]) == 2
    assert "contrast needs late interaction" in capsys.readouterr().err


def test_faults_are_said_in_one_line(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "eval").mkdir()
    for folder in (tmp_path, tmp_path / "eval"):
        write_records(folder / "records.jsonl", one_word())
    given = ("--data", str(tmp_path / "records.jsonl"))
    cases: list[tuple[tuple[str, ...], str]] = [
        (("--only", "waiting", *given), "there is no waiting; give some of spans, queries"),
        ((), "take records to measure on: give --data FILE"),
        (("--data", str(tmp_path / "eval" / "records.jsonl")), "under a folder named eval"),
        (("--keep", "0", *given), "keep must be above 0"),
        (("--from", str(tmp_path)), "no model named"),
        (("--reader", str(tmp_path)), "expected the folder that clara train reader wrote"),
    ]
    for arguments, said in cases:
        assert main(["calibrate", str(tiny_checkpoint), *arguments, "--out", str(tmp_path / "out")]) == 2, arguments
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
