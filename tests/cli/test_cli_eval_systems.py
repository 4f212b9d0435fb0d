"""``clara eval`` with systems and recipes on a tiny model: options, resuming, reports, refusals."""

from __future__ import annotations

import gzip
import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import pytest
from calling import Clara

from clara.cli.compare import EvalChoice
from clara.cli.options import DEFAULT_MODEL, ModelChoice
from clara.errors import InputError

pytest_plugins = ["cli_fixtures"]

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
QUESTIONS = FIXTURES / "multi_hop.jsonl"
FORMATS = FIXTURES / "formats"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder of named data sets."""
    folder = tmp_path / "data"
    folder.mkdir()
    for setting in ("oracle", "normal"):
        shutil.copy(QUESTIONS, folder / f"nq.{setting}.jsonl")
    return folder


@pytest.fixture
def reader(tiny_base: Path, tmp_path: Path) -> Path:
    """A reader of full text on ``tiny_base`` whose adapter changes every layer."""
    import torch  # noqa: PLC0415 - tests that load nothing should not wait for it

    from clara.config import LoraSettings  # noqa: PLC0415
    from clara.model.adapters import Adapters  # noqa: PLC0415
    from clara.model.backbone import load_base  # noqa: PLC0415
    from clara.model.reader import ReaderManifest, save_reader  # noqa: PLC0415
    from conftest import ramp  # noqa: PLC0415

    lora = LoraSettings(rank=4, alpha=8)
    base = load_base(str(tiny_base), tiny_base, dtype=torch.float32)
    adapters = Adapters.fresh(base.model, lora, roles=("generator",))
    ramp([p for name, p in adapters.peft_model.named_parameters() if "lora_B" in name], scale=0.3)
    manifest = ReaderManifest(base_model=base.name, base_identity=base.identity, context="text", lora=lora)
    save_reader(adapters, manifest, tmp_path / "reader", card="# Reader\n")
    return tmp_path / "reader"


def torch_sees_gpus() -> bool:
    import torch  # noqa: PLC0415 - tests that load nothing should not wait for it

    return torch.cuda.is_available()


def test_a_trained_reader_answers_in_the_models_place(
    clara: Clara, tiny_checkpoint: Path, reader: Path, tmp_path: Path
) -> None:
    answers: dict[str, list[str]] = {}
    common = ("eval", "--data", QUESTIONS, "--model", tiny_checkpoint, "--context", "text", "--max-new-tokens", 6)
    for name in ("base", str(reader)):
        out = tmp_path / f"out-{len(answers)}"
        found = clara(*common, "--reader", name, "--out", out, "--json").json()
        assert list(found)[:6] == ["n", "em", "f1", "cover_em", "recall_at_5", "errors"]
        assert (found["n"], found["errors"], found["context"], found["rate"]) == (7, 0, "text", None)
        assert found["model"] == str(tiny_checkpoint if name == "base" else reader)
        assert json.loads((out / "provenance.json").read_text())["model"] == found["model"]
        answers[name] = [json.loads(row)["prediction"] for row in (out / "rows.jsonl").read_text().splitlines()]
    assert answers["base"] != answers[str(reader)]
    wrong = clara("eval", "--data", QUESTIONS, "--model", tiny_checkpoint, "--context", "none", "--reader", reader)
    assert wrong.code == 2
    assert "give --context text" in wrong.err
    memory = clara("eval", "--data", QUESTIONS, "--model", tiny_checkpoint, "--reader", reader)
    assert "give --context text or --context none" in memory.err


def test_fidelity(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ("--fidelity", "--model", tiny_checkpoint, "--limit", 2, "--rate", 4, "--rate", 16)
    for data in (QUESTIONS, FIXTURES / "passage_qa.jsonl"):
        found = clara("eval", "--data", data, *options, "--out", tmp_path / data.stem, "--json").json()
        assert [(result["rate"], result["n"], result["errors"]) for result in found["results"]] == [
            (4, 2, 0),
            (16, 2, 0),
        ]
        assert all(0 <= result["rouge_l"] <= result["rouge1"] <= 1 for result in found["results"])
        rows = (tmp_path / data.stem / "fidelity.jsonl").read_text("utf-8").splitlines()
        assert len(rows) == 4
        assert found["data_sha256"] == sha256(data.read_bytes()).hexdigest()
        assert found["provenance"].keys() >= {"command", "commit", "checkpoint", "seed", "cpu"}
    assert "--out DIR" in clara("eval", "--data", QUESTIONS, *options).err
    analysed = clara(
        "analyse", "fidelity", "--data", QUESTIONS, *options[1:], "--out", tmp_path / "again", "--json"
    ).json()
    alias = json.loads((tmp_path / QUESTIONS.stem / "fidelity.json").read_text("utf-8"))
    assert analysed["results"] == alias["results"], "clara eval --fidelity is an alias"


def test_fidelity_refuses_before_it_measures(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ("eval", "--data", QUESTIONS, "--fidelity", "--model", tiny_checkpoint, "--rate", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clara.analysis.fidelity.measure_fidelity", None)  # calling it would be a bug
        unserved = clara(*options, "--rate", 8, "--out", tmp_path / "out")
        (tmp_path / "file").write_text("")
        taken = clara(*options, "--out", tmp_path / "file")
    assert unserved.code == taken.code == 2
    assert "serves the rates 4x, 16x, not 8x" in unserved.err
    assert "cannot be made" in taken.err


def test_device_auto(clara: Clara, tiny_checkpoint: Path, reader: Path, data_dir: Path, tmp_path: Path) -> None:
    common = ("eval", "--model", tiny_checkpoint, "--device", "auto", "--limit", 1, "--json")
    wanted = "cuda" if torch_sees_gpus() else "cpu"
    systems = ("--data", "nq", "--data-dir", data_dir, "--system", "closed-book", "--max-new-tokens", 2)
    reading = ("--data", QUESTIONS, "--context", "text", "--reader", reader, "--max-new-tokens", 2)
    told = ("--data", QUESTIONS, "--fidelity")
    for name, more in (("results", systems), ("provenance", reading), ("fidelity", told)):
        called = clara(*common, *more, "--out", tmp_path / name)
        assert called.code == 0, called.err
        written = (tmp_path / name / f"{name}.json").read_text(encoding="utf-8")
        assert f'"device": "{wanted}"' in written


def test_compare_and_its_alias_are_one_command(
    clara: Clara, tiny_checkpoint: Path, data_dir: Path, tmp_path: Path
) -> None:
    options = ("--data", "nq", "--data-dir", data_dir, "--limit", 2, "--model", tiny_checkpoint, "--max-new-tokens", 2)
    systems = ("--system", "clara", "--system", "bm25", "--timed", 0, "--json", "--out")
    found = clara("compare", *options, *systems, tmp_path / "compare").json()
    alias = clara("eval", *options, *systems, tmp_path / "eval").json()
    for result in (*found["results"], *alias["results"]):
        del result["origins"]
    assert found["results"] == alias["results"]
    assert found["comparisons"] == alias["comparisons"]
    refused = clara("compare", "--data", "nq", "--setting", "normal", "--out", tmp_path / "o")
    assert refused.code == 2
    assert "give --data and --system NAME; systems: bge-reranker, bm25" in refused.err


def test_one_model_is_a_run_of_one_system(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It resumes, and scores what its ``clara compare`` twin scores; any file that systems read will do."""
    options = ("--data", FORMATS / "musique_full.jsonl", "--model", tiny_checkpoint, "--max-new-tokens", 2)
    out = tmp_path / "out"
    found = clara("eval", *options, "--given", "candidates", "--context", "text", "--out", out, "--json").json()
    assert (found["n"], found["errors"], found["abstention"]["unanswerable"]) == (1, 0, 1)
    journals = {path: path.read_bytes() for path in (out / "journals").glob("*.jsonl")}
    assert len(journals) == 1
    again = clara("eval", *options, "--given", "candidates", "--context", "text", "--out", out, "--json").json()
    assert again == found
    assert {path: path.read_bytes() for path in (out / "journals").glob("*.jsonl")} == journals, (
        "nothing is asked twice"
    )
    gold = ("--given", "gold", "--json")
    single = clara("eval", *options, *gold).json()
    twin = clara("compare", *options, "--system", "clara", *gold, "--timed", 0, "--out", tmp_path / "twin").json()
    names = ("n", "em", "f1", "cover_em", "errors", "ci95", "abstention", "data_sha256")
    assert {name: single[name] for name in names} == {name: twin["results"][0][name] for name in names}
    corpus = ("--data", FORMATS / "squad_v2.json", "--corpus", "pool", "--setting", "normal", "--candidates", 2)
    public = clara(
        "eval", *corpus, "--given", "candidates", "--model", tiny_checkpoint, "--max-new-tokens", 2, "--json"
    )
    assert public.code == 0, public.err
    assert 0 <= public.json()["recall_at_5"] <= 1


def test_systems_side_by_side_and_again(clara: Clara, tiny_checkpoint: Path, data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    systems = ("--system", "clara-bm25", "--system", "closed-book", "--system", "text-bm25", "--system", "bm25")
    data = ("--data", "nq", "--data-dir", data_dir, "--setting", "oracle", "--limit", 3)
    options = ("--rate", 4, "--rate", 16, "--k", 2, "--max-new-tokens", 3, "--timed", 1, "--out", out)
    command = ("eval", *data, "--model", tiny_checkpoint, *systems, *options)
    found = clara(*command, "--json").json()
    assert found == json.loads((out / "results.json").read_text("utf-8"))
    labels = [(result["system"], result["rate"]) for result in found["results"]]
    expected = [("clara-bm25", 4), ("closed-book", None), ("text-bm25", None), ("bm25", None), ("clara-bm25", 16)]
    assert labels == expected
    for result in found["results"]:
        assert (result["errors"], result["data"], result["setting"], result["given"]) == (
            0,
            "nq",
            "oracle",
            "candidates",
        )
        assert result["n"] == (0 if result["system"] == "bm25" else 3)
        assert result["origins"][0]["command"].startswith("clara")
    assert {path.name for path in out.iterdir()} >= {
        "report.md",
        "results.json",
        "rows.jsonl",
        "journals",
        "recall.png",
    }
    journals = {path: path.read_bytes() for path in (out / "journals").glob("*.jsonl")}
    assert len(journals) == 5
    again = clara(*command)
    assert again.code == 0
    assert {path: path.read_bytes() for path in (out / "journals").glob("*.jsonl")} == journals, (
        "nothing is asked twice"
    )
    assert "clara-bm25 16x" in again.out
    assert str(out / "report.md") in again.out


def test_a_recipe_runs_a_grid_and_writes_the_page(
    clara: Clara,
    tiny_checkpoint: Path,
    data_dir: Path,
    tmp_path: Path,
) -> None:
    recipe, page = tmp_path / "grid.toml", tmp_path / "docs" / "results.md"
    recipe.write_text(
        f'''
page = "{page}"
max_new_tokens = 2
timed = 0
[[benefit]]
name = "zero-shot"
none = "closed-book"
text = "text-bm25"
[[runs]]
data = ["nq"]
settings = ["oracle", "normal"]
systems = ["closed-book", "text-bm25", "reader-bm25"]
limit = 2
[[runs]]
data = ["nq"]
settings = ["oracle"]
systems = ["clara-bm25"]
rates = [16]
limit = 2
'''
    )
    command = (
        "eval",
        "--recipe",
        recipe,
        "--data-dir",
        data_dir,
        "--model",
        tiny_checkpoint,
        "--out",
        tmp_path / "out",
    )
    called = clara(*command)
    assert called.code == 0, called.err
    assert "not run: reader-bm25" in called.err
    assert "questions," in called.err
    assert "left" in called.err
    text = page.read_text("utf-8")
    assert "clara-bm25 16x" in text
    assert "reader-bm25" in text.split("## Left out")[1]
    assert len(json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["results"]) == 5
    trial = clara(*command[:-1], tmp_path / "trial", "--limit", 1)
    assert trial.code == 0, trial.err
    assert page.read_text("utf-8") == text, "a trial leaves the real page alone"
    assert "| closed-book | 1 |" in (tmp_path / "trial" / "results.md").read_text("utf-8")


def test_candidates_from_a_store_and_from_a_pool(
    clara: Clara,
    tiny_checkpoint: Path,
    store: Path,
    tmp_path: Path,
) -> None:
    options = ("--system", "bm25", "--setting", "normal", "--candidates", 3, "--model", tiny_checkpoint, "--json")
    for number, stage in enumerate(("bm25", "dense", "hybrid")):
        corpus = ("--corpus", store, "--first-stage", stage, "--limit", 1)
        found = clara("eval", "--data", QUESTIONS, *corpus, *options, "--out", tmp_path / str(number)).json()
        assert found["results"][0]["candidates"].startswith(f"first 3 of {stage} over the store")
    pool = clara("eval", "--data", FORMATS / "squad_v2.json", *options, "--out", tmp_path / "pool").json()
    assert "pool of squad_v2" in pool["results"][0]["candidates"]
    assert pool["left_out"]["squad_v2 normal"]["no answers"] == 1
    beir = clara("eval", "--data", FORMATS / "beir", *options, "--out", tmp_path / "beir").json()
    assert beir["results"][0]["ranked"] == 2


def test_options_about_searching_are_refused_where_nothing_is_searched(
    clara: Clara, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    command = ("eval", "--data", QUESTIONS, "--system", "bm25", "--model", tiny_checkpoint, "--out", tmp_path / "o")
    for option in (("--candidates", 20), ("--first-stage", "bm25")):
        called = clara(*command, *option)
        assert called.code == 2
        assert f"{option[0]} has no meaning for {QUESTIONS} with --setting oracle" in called.err
    assert clara(*command).code == 0


def test_a_damaged_corpus_is_named(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "cut.jsonl.gz"
    packed = gzip.compress(b'{"id": "1", "title": "", "text": "words"}\n' * 50)
    corpus.write_bytes(packed[: len(packed) // 2])
    options = ("--system", "bm25", "--model", tiny_checkpoint, "--out", tmp_path / "o", "--corpus", corpus)
    called = clara("eval", "--data", QUESTIONS, *options)
    assert called.code == 2
    assert f"{corpus} is damaged or cut off" in called.err


@pytest.mark.parametrize(
    ("typed", "environment", "taken"),
    [
        ((), None, "of-the-recipe"),
        (("--model", DEFAULT_MODEL), None, DEFAULT_MODEL),
        ((), DEFAULT_MODEL, DEFAULT_MODEL),
        (("--model", "another"), None, "another"),
    ],
)
def test_a_model_that_the_user_names_takes_the_place_of_the_recipes(
    clara: Clara,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    typed: tuple[str, ...],
    environment: str | None,
    taken: str,
) -> None:
    def load(_: ModelChoice, name: str) -> NoReturn:
        raise InputError(f"asked for {name}")

    monkeypatch.setattr("clara.cli.compare.load_model", load)
    if environment is not None:
        monkeypatch.setenv("CLARA_MODEL", environment)
    recipe = tmp_path / "grid.toml"
    recipe.write_text('model = "of-the-recipe"\n[[runs]]\ndata = ["nq"]\nsystems = ["bm25"]\n')
    called = clara("eval", "--recipe", recipe, "--out", tmp_path / "o", *typed)
    assert f"asked for {taken}\n" in called.err


def test_abstention_is_reported_where_questions_have_no_answer(
    clara: Clara,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    options = ("--system", "text-bm25", "--model", tiny_checkpoint, "--max-new-tokens", 2, "--timed", 0)
    out = tmp_path / "out"
    called = clara("eval", "--data", FORMATS / "musique_full.jsonl", *options, "--out", out, "--json").json()
    found = called["results"][0]
    assert (found["n"], found["abstention"]["unanswerable"]) == (1, 1)
    assert "unanswerable" in (out / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--system", "clara"), "--out DIR"),
        (("--system", "klara", "--out", "o"), "no such system: klara; there are"),
        (("--system", "bm25", "--context", "text", "--out", "o"), "--context is for a single model"),
        (("--system", "bm25", "--reader", "base", "--out", "o"), "folder of a reader"),
        (("--system", "bm25", "--option", "reader", "--out", "o"), "must be NAME=DIR"),
        (("--rate", 4, "--rate", 16), "give --system to compare"),
        (("--reader", "nowhere"), "generator, base, or the folder of a reader"),
        (("--recipe", "nothing.toml", "--out", "o"), "--recipe says which data"),
        (("--recipe", "nothing.toml", "--k", 3, "--rate", 4, "--out", "o"), "--rate, --k has no meaning with --recipe"),
        (("--timed", 1, "--option", "a=b"), "--option, --timed has no meaning for a single model (give --system"),
        (("--retry-errors",), "--retry-errors needs the --out DIR of the earlier run"),
        (("--system", "bm25", "--encoder", "e", "--out", "o"), "--encoder has no meaning with --system"),
        (("--fidelity", "--k", 3, "--out", "o"), "--k has no meaning with --fidelity"),
    ],
)
def test_refusals_before_anything_is_loaded(clara: Clara, options: tuple[object, ...], message: str) -> None:
    called = clara("eval", "--data", QUESTIONS, *options)
    assert called.code == 2
    assert message in called.err


def test_a_named_data_set_that_is_not_there(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = ("eval", "--data", "squad", "--system", "bm25", "--model", tiny_checkpoint, "--out", tmp_path / "o")
    assert "CLARA_DATA" in clara(*command).err
    assert "no squad.oracle.jsonl.gz" in clara(*command, "--data-dir", tmp_path).err


def test_the_old_name_of_a_rule_works(tiny_checkpoint: Path, clara: Clara) -> None:
    assert [EvalChoice(yes_no=old).rule for old in (False, True)] == ["squad", "hotpotqa"]
    assert clara("eval", "--data", QUESTIONS, "--model", tiny_checkpoint, "--limit", 1, "--yes-no", "--json").code == 0
