"""Settings that cannot do what they say are refused before anything is loaded, all faults at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from train_cases import made, passages, questions

from clara.data import DataRecord
from clara.errors import ConfigError
from clara.train.run import _check_run, train
from clara.train.stages import STAGES, stage_class, stage_of

RECORDS: list[DataRecord] = [*questions(4), *passages(4)]


def refused(name: str, base: Path, **values: Any) -> str:  # noqa: ANN401
    with pytest.raises(ConfigError) as caught:
        _check_run(made(name, base, **values), RECORDS)
    return str(caught.value)


def test_all_faults_of_a_recipe_at_once(tiny_base: Path, tmp_path: Path) -> None:
    foreign = {"reader_context": "none", "teacher": str(tmp_path), "mse_weight": 0.5}
    message = refused("end-to-end", tiny_base, candidates=1, unheard_of=1, **foreign)
    assert message.startswith("test: 5 fault(s): ")
    for part in (
        "reader_context is set, but only stage reader reads it; write it in [stage.reader]",
        "mse_weight is set, but only stage scp and instruct reads it; write it in [stage.scp]",
        "teacher is set, but only stage scp and instruct reads it",
        "candidates: Input should be greater than or equal to 2",
        "unheard_of: Extra inputs are not permitted",
    ):
        assert part in message


def test_all_faults_of_a_run_at_once(tiny_base: Path, tmp_path: Path) -> None:
    mix = {"nothing": 1.0, "a": 2.0}
    message = refused("end-to-end", tiny_base, candidates=4, top_k=5, mix=mix)
    assert message.startswith("stage end_to_end: 3 fault(s): ")
    for part in (
        "top_k is 5, a question has only 4 candidates",
        'starts from a checkpoint: set start = "DIR"',
        "mix names nothing, which no record has as its source (sources: a, m)",
    ):
        assert part in message
    message = refused("scp", tiny_base, teacher=str(tmp_path), mix=mix)
    assert message.startswith("stage scp: 3 fault(s): ")
    for part in ('a teacher is named, but targets is "gold"', "has no reader.json", "mix names nothing"):
        assert part in message


def test_a_recipe_of_several_stages(tiny_base: Path) -> None:
    """Each stage takes what is its own; a table of a stage counts more than what stands at the top."""
    tables = {"instruct": {"quoted_weight": 0.5, "steps": 9}, "end-to-end": {"top_k": 2}}
    recipe = {"base": str(tiny_base), "steps": 3, "documents": 2, "restate": {"repeat": 0.0}, "stage": tables}
    stages = {name: stage_of(name, recipe, source="test") for name in STAGES}
    assert {name: stage.config.steps for name, stage in stages.items()} == dict.fromkeys(STAGES, 3) | {"instruct": 9}
    plain = {name: stage.config.model_dump() for name, stage in stages.items()}
    assert plain["instruct"]["quoted_weight"] == 0.5
    assert plain["scp"]["quoted_weight"] == 0.0
    assert plain["end-to-end"]["top_k"] == 2
    assert [plain[name].get("documents") for name in STAGES] == [None, 2, None, None, 2]
    assert plain["scp"]["restate"]["repeat"] == plain["reader"]["restate"]["repeat"] == 0.0
    with pytest.raises(ConfigError, match=r"2 fault\(s\): stage.pretrain: no such stage; .*top_k: Extra inputs"):
        stage_of("scp", {"stage": {"pretrain": {}, "scp": {"top_k": 2}}}, source="test")
    with pytest.raises(ConfigError, match=r"stage: expected a table for each stage, \[stage.scp\]"):
        stage_of("scp", {"stage": "scp"}, source="test")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_says_all_that_a_run_asks(name: str) -> None:
    stage = stage_class(name)(stage_class(name).Config())
    assert stage.name == name.replace("-", "_")
    assert stage.trains()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("scp", {"targets": "teacher"}, 'targets is "teacher", but no teacher is named'),
        ("scp", {"targets": "both", "teacher": "nowhere", "kl_weight": 0}, 'which is the same as "gold"'),
        ("scp", {"targets": "both", "teacher": "nowhere"}, "teacher: nowhere has no reader.json"),
        ("scp", {"rate_weights": (1, -1)}, "rate_weights must not be negative"),
        ("instruct", {"start": "nowhere"}, "start: no model named 'nowhere'"),
        ("retriever", {"start": "CHECKPOINT", "train_compressor": True}, "only stage end-to-end reads it"),
        ("retriever", {"start": "CHECKPOINT", "rate_weights": (1, 2, 3)}, "one weight for each rate of"),
        ("retriever", {"start": "CHECKPOINT", "reasoner_start": "checkpoint"}, "has no query reasoner of its own"),
        ("reader", {"start": "CHECKPOINT"}, "has no text reader"),
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
def test_one_fault(name: str, values: dict[str, Any], message: str, tiny_base: Path, tiny_checkpoint: Path) -> None:
    named = {key: str(tiny_checkpoint) if value == "CHECKPOINT" else value for key, value in values.items()}
    assert message in refused(name, tiny_base, **named)


def test_another_base_than_the_starts(tiny_checkpoint: Path) -> None:
    assert "base is 'smollm2-135m', but " in refused("scp", Path("smollm2-135m"), start=str(tiny_checkpoint))


def test_a_setting_at_its_default_is_no_fault(tiny_base: Path) -> None:
    _check_run(made("scp", tiny_base, top_k=5, reader_context="text", targets="gold"), RECORDS)


def test_a_refused_run_leaves_nothing(tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="mix names b, which no record has"):
        train(made("scp", tiny_base, mix={"b": 1.0}), RECORDS, out, cache=tmp_path / "cache")
    assert not out.exists()
