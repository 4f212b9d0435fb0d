"""``clara bench`` on the tiny checkpoint: the figures belong together, whatever they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import Clara

from clara import bench

pytest_plugins = ["cli_fixtures"]


@pytest.fixture(autouse=True)
def _short_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_PEAK_SECONDS", 0.01)
    monkeypatch.setattr(bench, "_PEAK_SIZE", 128)


def test_compress_counts_tokens_and_relates_them_to_the_peak(clara: Clara, tiny_checkpoint: Path) -> None:
    result = clara("bench", "compress", "--model", tiny_checkpoint, "--passages", 12, "--rate", 16, "--json").json()
    assert (result["passages"], result["rate"]) == (12, 16)
    assert 12 < result["tokens"] <= 12 * 64
    assert result["tokens_per_second"] == pytest.approx(result["tokens"] / result["seconds"])
    assert result["share_of_peak"] == pytest.approx(result["gflops"] / result["peak_gflops"])
    said = clara("bench", "compress", "--model", tiny_checkpoint, "--passages", 3)
    assert "tokens/s" in said.out
    assert "%" in said.out


def test_ask_reads_fewer_positions_from_memories(clara: Clara, tiny_checkpoint: Path) -> None:
    result = clara("bench", "ask", "--model", tiny_checkpoint, "--questions", 2, "--k", 3, "--json").json()
    assert (result["questions"], result["passages"], result["rate"]) == (2, 3, 16)
    # 3 memories of 4 vectors against 3 windows of up to 64 tokens, the rest of the prompt being the same
    assert result["text_prompt"] - result["memory_prompt"] > 3 * (50 - 4)
    assert result["ratio"] > 0
    assert "times faster" in clara("bench", "ask", "--model", tiny_checkpoint, "--questions", 1).out


def test_candidates_are_faster_from_an_index(clara: Clara, tiny_checkpoint: Path) -> None:
    call = ("bench", "candidates", "--model", tiny_checkpoint, "--questions", 2, "--candidates", 6)
    result = clara(*call, "--k", 3, "--json").json()
    assert (result["questions"], result["candidates"], result["k"], result["rate"]) == (2, 6, 3, 4)
    assert result["docs_per_second"] > 0
    assert result["compressed_seconds"] > result["indexed_seconds"] > 0
    assert result["ratio"] > 1
    assert "5 of them read at 4x" in clara(*call).out


def test_codecs_are_compared_on_the_same_questions(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    docs = [{"title": f"Tower {number}", "text": f"It is {number} metres high."} for number in range(8)]
    lines = [
        {
            "id": str(number),
            "source": "here",
            "question": f"How high is tower {number}?",
            "answers": [f"{number} metres"],
            "docs": docs,
            "gold": [number],
        }
        for number in range(6)
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    call = ("bench", "codecs", "--model", tiny_checkpoint, "--data", tmp_path / "asked.jsonl", "--rate", 4)
    result = clara(*call, "--limit", 5, "--json").json()
    assert (result["questions"], result["rate"]) == (5, 4)
    sizes = {cost["codec"]: cost["bytes_per_passage"] for cost in result["codecs"]}
    assert list(sizes) == ["fp16", "int8", "int4", "residual"]
    assert sizes["fp16"] > sizes["int8"] > sizes["int4"] > sizes["residual"]
    assert result["codecs"][0]["f1_difference"] == result["codecs"][0]["f1_low"] == 0
    for cost in result["codecs"]:
        assert cost["f1_difference"] == pytest.approx(cost["f1"] - result["codecs"][0]["f1"])
        assert cost["f1_low"] <= cost["f1_difference"] <= cost["f1_high"]
        assert 0 <= cost["recall_at_5"] <= 1
        assert min(cost["encode_per_second"], cost["decode_per_second"]) > 0
    assert "bytes a passage at 4x" in clara(*call, "--limit", 1).out
