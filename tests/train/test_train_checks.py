"""Settings that cannot do what they say are refused before anything is loaded, all faults at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from train_cases import passages, questions, settings

from clara.data import DataRecord
from clara.errors import ConfigError
from clara.train.checks import check_run, settings_read
from clara.train.config import Stage
from clara.train.stage import train

RECORDS: list[DataRecord] = [*questions(4), *passages(4)]


def refused(stage: Stage, base: Path, **values: Any) -> str:  # noqa: ANN401
    with pytest.raises(ConfigError) as caught:
        check_run(stage, RECORDS, settings(base, **values))
    return str(caught.value)


def test_all_faults_at_once(tiny_base: Path, tmp_path: Path) -> None:
    message = refused(
        "end_to_end",
        tiny_base,
        candidates=4,
        top_k=5,
        reader_context="none",
        teacher=str(tmp_path),
        mse_weight=0.5,
        mix={"nothing": 1.0, "a": 2.0},
    )
    assert message.startswith("stage end_to_end: 8 fault(s): ")
    for part in (
        "top_k is 5, a question has only 4 candidates",
        'starts from a checkpoint: set start = "DIR"',
        "reader_context is set, but only stage reader reads it",
        "mse_weight is set, but only stage scp and instruct reads it",
        "teacher is set, but only stage scp and instruct reads it",
        'a teacher is named, but targets is "gold"',
        "has no reader.json",
        "mix names nothing, which no record has as its source (sources: a, m)",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("scp", {"targets": "teacher"}, 'targets is "teacher", but no teacher is named'),
        ("scp", {"targets": "both", "teacher": "nowhere", "kl_weight": 0}, 'which is the same as "gold"'),
        ("scp", {"targets": "both", "teacher": "nowhere"}, "teacher: nowhere has no reader.json"),
        ("scp", {"rate_weights": (1, -1)}, "rate_weights must not be negative"),
        ("instruct", {"start": "nowhere"}, "start: no model named 'nowhere'"),
        ("retriever", {"start": "CHECKPOINT", "train_compressor": True}, "only stage end_to_end reads it"),
        ("retriever", {"start": "CHECKPOINT", "rate_weights": (1, 2, 3)}, "one weight for each rate of"),
        ("retriever", {"start": "CHECKPOINT", "reasoner_start": "checkpoint"}, "has no query reasoner of its own"),
        ("reader", {"start": "CHECKPOINT"}, "start is set, but only stage scp and"),
        (
            "reader",
            {"near_distractors": True, "reader_examples": "scp"},
            "stage scp have no distractors",
        ),
        ("instruct", {"freeze_compressor": True, "mse_weight": 0.5}, "mse_weight is set, but freeze_compressor leaves"),
        ("retriever", {"start": "CHECKPOINT", "late_interaction": True}, "set query_projection = true"),
        ("scp", {"start": "CHECKPOINT", "lora": {"rank": 2}}, "lora.rank is 2, but "),
        ("scp", {"start": "CHECKPOINT", "compression": {"rates": (8,)}}, "compression.rates is (8,), but "),
        ("reader", {"reader_context": "none", "quoted_weight": 1.0}, "a reader without context has nothing to quote"),
    ],
)
def test_one_fault(stage: Stage, values: dict[str, Any], message: str, tiny_base: Path, tiny_checkpoint: Path) -> None:
    named = {name: str(tiny_checkpoint) if value == "CHECKPOINT" else value for name, value in values.items()}
    assert message in refused(stage, tiny_base, **named)


def test_another_base_than_the_starts(tiny_checkpoint: Path) -> None:
    assert "base is 'smollm2-135m', but " in refused("scp", Path("smollm2-135m"), start=str(tiny_checkpoint))


def test_a_setting_at_its_default_is_no_fault(tiny_base: Path) -> None:
    check_run("scp", RECORDS, settings(tiny_base, top_k=5, reader_context="text", targets="gold"))


def test_a_refused_run_leaves_nothing(tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="mix names b, which no record has"):
        train("scp", RECORDS, settings(tiny_base, mix={"b": 1.0}), out, cache=tmp_path / "cache")
    assert not out.exists()


def test_a_card_holds_what_the_stage_reads(tiny_base: Path) -> None:
    config = settings(tiny_base)
    assert "mse_weight" in settings_read("scp", config)
    assert "top_k" not in settings_read("scp", config)
    assert "top_k" in settings_read("end_to_end", config)
    assert {"reader_context", "seed"} <= settings_read("reader", config).keys()
