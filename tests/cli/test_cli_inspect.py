"""``clara inspect`` and ``clara analyse`` on the tiny checkpoint: fields, files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from calling import Clara

from clara.data.reading import sha256_of
from clara.model import ClaraModel
from clara.samples import sample_folder

pytest_plugins = ["cli_fixtures"]

QUESTIONS = Path(__file__).parents[1] / "data" / "fixtures" / "multi_hop.jsonl"
KEYS = [
    *("text", "role", "weights", "model", "fingerprint", "rate", "memory_tokens"),
    *("space", "score", "words", "slots"),
]
PNG = b"\x89PNG\r\n\x1a\n"


def test_inspect_prints_one_object(clara: Clara, tiny_checkpoint: Path, tiny_model: ClaraModel) -> None:
    options = ("--model", tiny_checkpoint, "--dtype", "fp32", "--json")
    shown = clara("inspect", "Who built it?", *options, "--rate", 16, "--top", 3).json()
    assert list(shown) == KEYS
    assert (shown["role"], shown["weights"]) == ("query_reasoner", "compressor")
    assert (shown["rate"], shown["memory_tokens"], shown["space"], shown["score"]) == (16, 4, "hidden", "logit")
    assert shown["fingerprint"] == tiny_model.fingerprint
    assert [len(slot) for slot in shown["slots"]] == [3] * 4
    assert all(list(token) == ["token", "score", "begins_word"] for slot in shown["slots"] for token in slot)
    assert all(list(word) == ["word", "slots", "score"] for word in shown["words"])
    lens = tiny_model.inspector().lens("Who built it?", role="query_reasoner", rate=16, top=3)
    assert [[token["token"] for token in slot] for slot in shown["slots"]] == [
        [token.token for token in slot] for slot in lens.slots
    ]
    other = clara("inspect", "Who built it?", *options, "--space", "memory").json()
    assert (other["rate"], other["memory_tokens"], other["score"]) == (4, 16, "cosine")


def test_inspect_shows_words_and_says_whose_weights_read(clara: Clara, tiny_checkpoint: Path) -> None:
    said = clara("inspect", "Who built it?", "--model", tiny_checkpoint, "--rate", 16)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == "Who built it?"
    assert lines[1].endswith(
        "16x: 4 memory vectors; query reasoner (untrained: the compressor's weights read the question)"
    )
    assert lines[3].startswith("not in the text (vectors): ")
    assert lines[5].split()[0] in {"1", "1-2", "1-3", "1-4"}


def test_inspect_looks_at_texts_and_documents(clara: Clara, tiny_checkpoint: Path) -> None:
    options = ("--model", tiny_checkpoint, "--json")
    text = clara("inspect", "--text", "Owls hunt at dusk.", *options).json()
    assert (text["text"], text["role"], text["weights"]) == ("Owls hunt at dusk.", "compressor", "compressor")
    file = sample_folder() / "eiffel-tower.md"
    first = clara("inspect", "--document", file, *options).json()
    second = clara("inspect", "--document", file, "--passage", 2, *options).json()
    assert "Eiffel" in first["text"]
    assert second["text"] != first["text"]
    far = clara("inspect", "--document", file, "--passage", 999, *options)
    assert far.code == 2
    assert "--passage 999" in far.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of a question, --text TEXT and --document FILE"),
        (("Who?", "--text", "a"), "give one of"),
        (("",), "the question is empty"),
        (("--text", ""), "is empty"),
        (("Who?", "--rate", "8"), "4x, 16x"),
        (("--document", "missing.txt"), "missing.txt"),
    ],
)
def test_inspect_refuses(clara: Clara, tiny_checkpoint: Path, arguments: tuple[str, ...], said: str) -> None:
    called = clara("inspect", *arguments, "--model", tiny_checkpoint)
    assert called.code == 2
    assert said in called.err
    assert called.out == ""


ANALYSES: list[tuple[str, tuple[object, ...], str]] = [
    ("lens", ("--top", 10), "gold"),
    ("gradient", ("--k", 2, "--temperature", 0.1, "--compare", "again"), "probability_helpful"),
    ("tsne", (), "mixing"),
    ("attention", ("--distractors", 1, "--max-new-tokens", 3), "gold_share"),
    ("robustness", ("--vary", "order", "--vary", "distractors", "--max-new-tokens", 2), "conditions"),
    ("faithfulness", ("--max-new-tokens", 4), "found"),
]


@pytest.mark.parametrize(("kind", "options", "field"), ANALYSES)
def test_analyse_writes_a_figure_and_all_numbers(
    clara: Clara, tiny_checkpoint: Path, tmp_path: Path, kind: str, options: tuple[object, ...], field: str
) -> None:
    again = tmp_path / "again" / tiny_checkpoint.name
    again.parent.mkdir()
    again.symlink_to(tiny_checkpoint)
    options = tuple(again if option == "again" else option for option in options)
    command = ("analyse", kind, "--data", QUESTIONS, "--out", tmp_path / "out", "--model", tiny_checkpoint)
    report = clara(*command, "--limit", 4, "--rate", 16, *options, "--json").json()
    assert list(report) == ["kind", "figure", "json", "models"]
    assert Path(report["figure"]).read_bytes().startswith(PNG)
    stored: dict[str, Any] = json.loads(Path(report["json"]).read_text(encoding="utf-8"))
    assert list(stored) == ["kind", "settings", "data", "runs", "models"]
    assert stored["data"] == {"path": str(QUESTIONS), "sha256": sha256_of(QUESTIONS)}
    assert stored["settings"]["rate"] == 16
    assert len(stored["models"]) == len(stored["runs"]) == len(report["models"]) == 1 + (kind == "gradient")
    labels = [model["label"] for model in report["models"]]
    assert len(set(labels)) == len(labels)
    for short, whole, run in zip(report["models"], stored["models"], stored["runs"], strict=True):
        assert field in short
        assert {key: whole[key] for key in short} == short
        memories, _, generator = run["checkpoint"].partition("-")
        assert memories == whole["fingerprint"]
        assert generator, "the answers depend on more than the memories"


def test_analyse_shows_a_table(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = ("analyse", "robustness", "--data", QUESTIONS, "--out", tmp_path / "out", "--model", tiny_checkpoint)
    said = clara(*command, "--limit", 2, "--rate", 16, "--vary", "order", "--max-new-tokens", 2)
    assert said.code == 0
    assert said.out.count("F1, order: ") == 4
    assert said.out.splitlines()[-1] == f"{tmp_path / 'out' / 'robustness.png'} and robustness.json"


def test_analyse_refuses_what_has_no_meaning(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = ("--data", QUESTIONS, "--out", tmp_path / "out", "--model", tiny_checkpoint)
    foreign = clara("analyse", "tsne", *command, "--k", 3, "--max-new-tokens", 3)
    assert foreign.code == 2
    assert "--k, --max-new-tokens has no meaning for clara analyse tsne" in foreign.err
    twice = clara("analyse", "lens", *command, "--rate", 4, "--rate", 16)
    assert twice.code == 2
    assert "takes one --rate" in twice.err
    fidelity = clara("analyse", "fidelity", *command, "--seed", 1, "--compare", tiny_checkpoint)
    assert fidelity.code == 2
    assert "--compare, --seed has no meaning for clara analyse fidelity" in fidelity.err
    vary = clara("analyse", "robustness", *command, "--vary", "length")
    assert vary.code == 2
    assert "vary" in vary.err
    few = clara("analyse", "tsne", *command, "--limit", 2)
    assert few.code == 2
    assert "at least 4 texts" in few.err
    assert not (tmp_path / "out" / "tsne.json").exists()
