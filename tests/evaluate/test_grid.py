"""Whole comparisons of small real systems: plan, journals, scores, report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from matplotlib.figure import Figure
from word_system import SYSTEMS, WordSystem, make_settings

from bag_model import BagModel
from clara.config import check
from clara.errors import ClaraError, ConfigError, InputError, MissingExtraError, RecordError
from clara.evaluate.cache import Failure
from clara.evaluate.journal import Provenance
from clara.evaluate.plots import draw_all
from clara.evaluate.questions import Task, TaskLoader
from clara.evaluate.report import GridReport, make_report, write_page, write_report
from clara.evaluate.results import Scoring, plain
from clara.evaluate.run import (
    Grid,
    GridResult,
    GridRun,
    RunSettings,
    _GridBlock,
    plan,
    run_grid,
    run_system,
)
from clara.evaluate.statistics import Benefit, kept_benefits
from clara.evaluate.system import Build, Prediction, Query, SystemSettings
from clara.metrics import bootstrap_interval, score_answer

FILE = Path(__file__).parents[1] / "data" / "fixtures" / "multi_hop.jsonl"
LOADER = TaskLoader(None)
PAIR = Benefit(name="plain", none="nothing", text="words")


def load(given: str = "candidates", k: int = 2, limit: int | None = None) -> Task:
    return LOADER.load(str(FILE), "oracle", given=given, k=k, max_new_tokens=8, limit=limit)  # type: ignore[arg-type]


def turned(path: Path) -> Path:
    """The same questions with other answers, as a file of the same name."""
    path.parent.mkdir(parents=True)
    records = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
    for record in records:
        record["answers"] = [f"{answer} indeed" for answer in record["answers"]]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def compare(
    folder: Path, runs: list[dict[str, object]], systems: Mapping[str, Build] = SYSTEMS, **how: object
) -> GridResult:
    wanted = plan([check(_GridBlock, {"data": (str(FILE),), **run}, source="test") for run in runs])
    settings = RunSettings(folder=folder, batch_size=3, **how)  # type: ignore[arg-type]
    return run_grid(wanted, systems, make_settings(), LOADER, settings)


def test_scores_follow_from_the_replies(tmp_path: Path) -> None:
    task = load()
    system = WordSystem("words", make_settings())
    result = run_system(system, task, RunSettings(tmp_path, batch_size=3))
    assert len(task.questions) == 8
    assert system.asked == [question.id for question in task.questions]
    values = [
        score_answer(row.prediction or "", q.answers or ()) for q, row in zip(task.questions, result.rows, strict=True)
    ]
    assert result.f1 == pytest.approx(fmean(value.f1 for value in values))
    assert result.ci95 is not None
    assert result.ci95["f1"] == bootstrap_interval([value.f1 for value in values])
    assert (result.n, result.errors, result.ranked, result.without_gold) == (8, 0, 7, 1)
    assert result.first_token_seconds == 0.25
    assert result.retrieval is not None
    assert 0 < result.retrieval["R@1"] <= result.retrieval["R@5"] <= 1
    assert result.abstention is None, "every question has an answer"
    assert json.loads(json.dumps(plain(result)))["key"] == result.key


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    first, again, more = (WordSystem("words", make_settings()) for _ in range(3))
    run_system(first, load(limit=5), RunSettings(tmp_path, batch_size=2))
    result = run_system(again, load(), RunSettings(tmp_path, batch_size=2))
    assert first.asked + again.asked == [question.id for question in load().questions]
    assert run_system(more, load(), RunSettings(tmp_path)) == result
    assert not more.asked
    other = WordSystem("words", make_settings(rate=2), minds_rate=True)
    run_system(other, load(), RunSettings(tmp_path), rate=2)
    assert len(other.asked) == 8, "another fingerprint is another run"
    quantised = WordSystem("words", make_settings())
    run_system(quantised, load(), RunSettings(tmp_path, precision="int4"))
    assert len(quantised.asked) == 8, "so is another precision of the weights"


def test_an_error_is_counted_named_and_in_no_mean(tmp_path: Path) -> None:
    system, sound = WordSystem("words", make_settings()), WordSystem("words", make_settings())
    system.broken = frozenset({"sample:2", "sample:4"})
    result = run_system(system, load(), RunSettings(tmp_path / "a", batch_size=3))
    full = run_system(sound, load(), RunSettings(tmp_path / "b", batch_size=3))
    assert (result.n, result.errors) == (6, 2)
    assert set(result.error_reasons) == {f"RuntimeError: out of memory at sample:{n}" for n in (2, 4)}
    kept = [row for row in full.rows if row.id not in system.broken]
    assert [row for row in result.rows if row.error is None] == kept
    assert result.f1 == pytest.approx(fmean(row.scores.f1 for row in kept if row.scores))
    system.broken = frozenset()
    system.asked.clear()
    assert run_system(system, load(), RunSettings(tmp_path / "a")).errors == 2, "an error stays"
    assert not system.asked
    mended = run_system(system, load(), RunSettings(tmp_path / "a", retry_errors=True))
    assert sorted(system.asked) == ["sample:2", "sample:4"]
    assert mended.rows == full.rows


def test_a_system_that_raises_or_points_nowhere_fails_question_by_question(tmp_path: Path) -> None:
    class Odd(WordSystem):
        def _one(self, ask: Query) -> Prediction | Failure:
            if ask.id == "sample:1":
                raise MemoryError("too large")
            reply = super()._one(ask)
            return replace(reply, used=(99,)) if ask.id == "sample:3" and isinstance(reply, Prediction) else reply

    result = run_system(Odd("words", make_settings()), load(), RunSettings(tmp_path, batch_size=4))
    assert result.errors == 2
    assert {row.id for row in result.rows if row.error} == {"sample:1", "sample:3"}


def test_gold_documents_only(tmp_path: Path) -> None:
    task = load("gold")
    result = run_system(WordSystem("words", make_settings(given="gold")), task, RunSettings(tmp_path))
    assert [row.used for row in result.rows] == [tuple(range(len(question.gold))) for question in task.questions]
    assert (result.retrieval, result.ranked, result.without_gold) == (None, 0, 0)


def test_the_plan_names_each_run_once_and_keeps_data_together() -> None:
    run = _GridBlock(data=("a", "b"), systems=("x", "y"), rates=(4, 16), settings=("oracle", "normal"))
    plain = _GridBlock(data=("a",), systems=("z", "x"))
    found = plan([run, plain, run])
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2 + 2
    groups = [(trial.data, trial.setting) for trial in found]
    assert [group for n, group in enumerate(groups) if n == 0 or groups[n - 1] != group] == list(dict.fromkeys(groups))
    assert GridRun("a", "oracle", "candidates", 5, None, "z", None) in found


def test_a_trial_caps_every_block() -> None:
    runs = [_GridBlock(data=(str(limit),), systems=("x",), limit=limit) for limit in (None, 1, 5)]
    assert [run.limit for run in plan(runs, limit=2)] == [2, 1, 2]
    assert [run.limit for run in plan(runs)] == [None, 1, 5]


def test_a_system_that_minds_no_rate_is_asked_once(tmp_path: Path) -> None:
    outcome = compare(tmp_path, [{"systems": ("words", "every"), "rates": (1, 2)}])
    assert [result.label for result in outcome.results] == ["words", "every 1x", "every 2x"]


def test_systems_that_cannot_be_built(tmp_path: Path) -> None:
    def missing(_: SystemSettings) -> WordSystem:
        raise MissingExtraError("llmlingua", "eval")

    systems = {**SYSTEMS, "lingua": missing}
    runs: list[dict[str, object]] = [{"systems": ("lingua", "words", "every"), "rates": (2, 3)}]
    outcome = compare(tmp_path, runs, systems, strict=False)
    assert [result.label for result in outcome.results] == ["words", "every 2x"]
    assert set(outcome.not_run) == {"lingua 2x", "lingua 3x", "every 3x"}
    assert "pip install 'clara-rag[eval]'" in outcome.not_run["lingua 2x"]
    with pytest.raises(ClaraError, match="llmlingua"):
        compare(tmp_path / "strict", runs, systems)
    assert not (tmp_path / "strict").exists(), "said before anything is asked"
    with pytest.raises(ConfigError, match="no such system: wrds; there are every, nothing, words"):
        compare(tmp_path, [{"systems": ("wrds",)}])


def test_progress_counts_all_questions_and_foresees_the_end(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int, float | None]] = []
    wanted = plan([_GridBlock(data=(str(FILE),), systems=("words", "nothing"))])
    how = RunSettings(tmp_path, batch_size=3)
    run_grid(wanted, SYSTEMS, make_settings(), LOADER, how, on_progress=lambda *step: steps.append(step))
    _, done, total, seconds = zip(*steps, strict=True)
    assert done == (3, 6, 8, 11, 14, 16)
    assert set(total) == {16}
    assert seconds[-1] == 0
    assert all(left is not None and left >= 0 for left in seconds)


def test_kept_benefit_by_hand(tmp_path: Path) -> None:
    outcome = compare(tmp_path, [{"systems": ("words", "nothing")}, {"systems": ("every",), "rates": (1, 2)}])
    f1 = {result.label: result.f1 or 0.0 for result in outcome.results}
    kept = {item.system: item for item in kept_benefits(outcome.results, [PAIR])}
    assert list(kept) == ["every 1x", "every 2x"]
    for label, item in kept.items():
        expected = (f1[label] - f1["nothing"]) / (f1["words"] - f1["nothing"])
        assert item.kept == pytest.approx(expected)
        assert item.n == 8
    assert kept["every 1x"].kept == 1.0, "the same words as the full text"
    assert kept["every 1x"].ci95 is not None
    assert kept["every 1x"].ci95.low == kept["every 1x"].ci95.high == 1.0
    back = kept_benefits(outcome.results, [Benefit(name="turned", none="words", text="nothing")])
    assert {item.kept for item in back} == {None}, "text that does not help keeps nothing"


def test_the_report_holds_every_number_with_its_run(tmp_path: Path) -> None:
    origin = Provenance(command="clara eval", model="bag", checkpoint=BagModel().fingerprint, seed=0, device="cpu")
    outcome = compare(
        tmp_path / "journals",
        [{"systems": ("words", "nothing")}, {"systems": ("every",), "rates": (1, 2)}],
        origin=origin,
    )
    report = make_report(outcome, origin, Scoring(), [PAIR])
    written = {path.name for path in write_report(report, tmp_path / "out")}
    figures = {"f1_rate.png", "recall.png", "first_token_f1.png", "kept_benefit.png"}
    assert written == {"report.md", "results.json", "rows.jsonl"} | figures
    for name in figures:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    for result in outcome.results:
        assert text.count(f"`{result.key}`") >= 2, "in the table of scores and in the table of runs"
        assert f"{100 * (result.f1 or 0):.1f}" in text
    for fact in (origin.commit, origin.cpu, origin.torch, origin.checkpoint, "seed 0"):
        assert fact in text
    found = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert [item["f1"] for item in found["results"]] == [result.f1 for result in outcome.results]
    assert found["results"][0]["origins"][0]["commit"] == origin.commit
    assert found["results"][0]["data_sha256"] == load().data_sha256
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 4 * 8
    assert {row["run"] for row in rows} == {result.key for result in outcome.results}
    assert len(found["comparisons"]["multi_hop oracle candidates"]) == 6


def origin_of_tests() -> Provenance:
    return Provenance(command="clara eval", model="bag", checkpoint="bag-1", seed=0, device="cpu")


def page(report: GridReport, note: str = "") -> str:
    with TemporaryDirectory() as folder:
        write_page(report, Path(folder) / "page.md", note=note)
        return (Path(folder) / "page.md").read_text("utf-8")


def markdown(report: GridReport) -> str:
    with TemporaryDirectory() as folder:
        write_report(report, Path(folder))
        return (Path(folder) / "report.md").read_text("utf-8")


def test_data_sets_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = turned(tmp_path / "other" / FILE.name)
    runs: list[dict[str, object]] = [
        {"data": (str(FILE), str(other)), "systems": ("words", "nothing")},
        {"data": (str(FILE), str(other)), "systems": ("every",), "rates": (2,)},
    ]
    outcome = compare(tmp_path / "journals", runs)
    here, there = (f"multi_hop ({sha256(path.read_bytes()).hexdigest()[:8]})" for path in (FILE, other))
    report = make_report(outcome, origin_of_tests(), Scoring(), [PAIR])
    found = report.to_json()["comparisons"]
    assert isinstance(found, dict)
    assert list(found) == [f"{name} oracle candidates" for name in (here, there)]
    whole = markdown(report)
    sections = whole.split("\n## ")
    for name, own in ((here, outcome.results[:3]), (there, outcome.results[3:])):
        section = next(text for text in sections if text.startswith(f"{name}, oracle, given candidates\n"))
        difference = 100 * ((own[0].f1 or 0) - (own[1].f1 or 0))
        line = next(line for line in section.splitlines() if line.startswith("| words – nothing |"))
        assert f"{difference:+.1f}" in line, "each has the tests of its own questions"
        assert f"| {name} oracle, candidates | plain | every 2x |" in whole
    text = page(report)
    assert text.count("### Oracle") == 1
    assert f"| system | n | {here} | {there} | mean |" in text
    row = next(line for line in text.splitlines() if line.startswith("| words | 8 |"))
    for result in outcome.results:
        if result.label == "words":
            assert f"| {100 * (result.f1 or 0):.1f} (" in row

    drawn: dict[str, Any] = {}
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.update({path.name: self}))
    draw_all(outcome.results, report.kept, tmp_path)
    for figure in drawn.values():
        assert [axes.get_title().partition(",")[0] for axes in figure.axes] == [here, there]


def test_two_values_of_k_have_a_table_each(tmp_path: Path) -> None:
    systems = ("words", "nothing")
    runs: list[dict[str, object]] = [{"systems": systems, "given": "gold"}]
    runs += [{"systems": systems, "k": k} for k in (1, 3)]
    outcome = compare(tmp_path, runs)
    report = make_report(outcome, origin_of_tests(), Scoring(), [PAIR])
    assert len({result.f1 for result in outcome.results if result.system == "words"}) == 3
    found = report.to_json()["comparisons"]
    assert isinstance(found, dict)
    names = ["multi_hop oracle gold", "multi_hop oracle candidates, k 1", "multi_hop oracle candidates, k 3"]
    assert list(found) == names
    text = page(report)
    headings = [line for line in text.splitlines() if line.startswith("### Oracle")]
    assert headings == [
        "### Oracle, the gold documents only given",
        "### Oracle, all candidates given, k 1",
        "### Oracle, all candidates given, k 3",
    ]
    for result in outcome.results:
        if result.system == "words":
            assert f"| words | {result.n} | {100 * (result.f1 or 0):.1f} (" in text


def test_a_system_is_not_asked_the_same_questions_twice(tmp_path: Path) -> None:
    twice: list[dict[str, object]] = [{"systems": ("words",), "limit": limit} for limit in (5, 3)]
    with pytest.raises(ConfigError, match=r"words is to be asked twice on multi_hop .* the first 5 .* the first 3"):
        compare(tmp_path / "journals", twice)
    assert not (tmp_path / "journals").exists(), "said before anything is asked"
    outcomes = [compare(tmp_path / str(number), [run]) for number, run in enumerate(twice)]
    both = GridResult(tuple(outcome.results[0] for outcome in outcomes), {}, {})
    with pytest.raises(InputError, match="two results of words on multi_hop oracle"):
        make_report(both, origin_of_tests(), Scoring())


def test_what_is_left_out_is_said_of_each_task(tmp_path: Path) -> None:
    data = tmp_path / "faulty.jsonl"
    data.write_text(FILE.read_text("utf-8") + "{\n", encoding="utf-8")
    runs: list[dict[str, object]] = [
        {"data": (str(data),), "systems": ("words",)},
        {"data": (str(data),), "systems": ("nothing",), "limit": 2},
    ]
    assert compare(tmp_path / "a", runs).left_out == {"faulty oracle": {"bad JSON": 1}}
    runs += [{"data": (str(data),), "systems": ("words",), "given": "gold"}]
    assert compare(tmp_path / "b", runs).left_out == {
        "faulty oracle, given candidates, all questions": {"bad JSON": 1},
        "faulty oracle, given candidates, the first 2 questions": {"bad JSON": 1},
        "faulty oracle, given gold, all questions": {"bad JSON": 1, "questions without a gold document": 1},
    }


def test_replies_of_changed_files_are_told_from_those_of_the_commit(tmp_path: Path) -> None:
    sha = "a1b2c3d4" * 5
    commits = (f"{sha}+changes", sha, "version 0.30.0.dev12+local")
    (result,) = compare(tmp_path, [{"systems": ("words",)}]).results
    told = replace(result, origins=tuple({"commit": commit} for commit in commits))
    shown = page(make_report(GridResult((told,), {}, {}), origin_of_tests(), Scoring()))
    assert "| a1b2c3d4a1b2+changes, a1b2c3d4a1b2, version 0.30.0.dev12+local |" in shown


def test_the_results_page_keeps_the_paper_apart(tmp_path: Path) -> None:
    origin = Provenance(command="clara eval", model="bag", checkpoint="bag-1", seed=0, device="cpu")
    outcome = compare(tmp_path, [{"systems": ("words", "nothing"), "limit": 3}])
    report = make_report(outcome, origin, Scoring(), [PAIR])
    write_page(report, tmp_path / "docs" / "results.md", note="From dev sets.\n")
    text = (tmp_path / "docs" / "results.md").read_text("utf-8")
    assert text == page(report, note="From dev sets.")
    assert "## This checkpoint\n\nFrom dev sets.\n\n### Oracle" in text
    ours, paper = text.split("## The paper's figures")
    assert "57.05" in paper
    assert "57.05" not in ours
    assert f"{100 * (outcome.results[0].f1 or 0):.1f}" in ours
    assert "not comparable" in paper
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_the_results_page_ranks_on_the_questions_that_all_ranked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ranks(WordSystem):
        def _one(self, ask: Query) -> Prediction | Failure:
            reply = super()._one(ask)
            if not isinstance(reply, Prediction) or reply.ranking is None:
                return reply
            order = reply.ranking if self.name == "near" else reply.ranking[::-1]
            return replace(reply, text=None, used=(), ranking=order)

    systems: dict[str, Build] = {**SYSTEMS, "near": lambda s: Ranks("near", s), "far": lambda s: Ranks("far", s)}
    outcome = compare(tmp_path, [{"systems": ("near", "words")}, {"systems": ("far",), "limit": 3}], systems)
    origin = Provenance(command="clara eval", model="bag", checkpoint="bag-1", seed=0, device="cpu")
    text = page(make_report(outcome, origin, Scoring()))
    assert "compare them with care" in text
    table = text.split("on the questions that all of these ranked (multi_hop 3):\n\n")[1].split("\n\n")[0]
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()[2:]}
    assert set(rows) == {"near", "far"}, "systems that answer rank as one of these does"
    near, far = (next(r for r in outcome.results if r.system == name).rows[:3] for name in ("near", "far"))
    for name, own in (("near", near), ("far", far)):
        for measure in ("R@5", "R@1", "RR"):
            value = fmean((row.ranking or {})[measure] for row in own)
            assert f" {100 * value:.1f} " in rows[name]
    assert "| words | 8 |" in text

    drawn: dict[str, Any] = {}
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.update({path.name: self}))
    draw_all(outcome.results, [], tmp_path)
    for figure in drawn.values():
        assert len(figure.legends) == 1
        assert all(axes.get_legend() is None for axes in figure.axes), "a legend in a panel hides points"
    assert [shown.get_text() for shown in drawn["recall.png"].legends[0].get_texts()] == ["near", "far"]


def test_recipes_are_checked_whole() -> None:
    with pytest.raises(ConfigError, match="3 fault"):
        check(Grid, {"runs": [{"data": ["nq"], "systems": []}], "seeds": 1}, source="recipe")
    with pytest.raises(ConfigError, match="each system once"):
        check(Grid, {"runs": [{"data": ["nq"], "systems": ["a", "a"]}]}, source="recipe")


def test_names_lead_to_files_or_to_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "nq.oracle.jsonl").write_text(FILE.read_text("utf-8"), encoding="utf-8")
    sources = TaskLoader(tmp_path)
    task = sources.load("nq", "oracle", given="candidates", k=5, max_new_tokens=8)
    assert (task.data, len(task.questions), task.candidates) == ("nq", 8, "as in the file")
    with pytest.raises(InputError, match=r"no nq.normal.jsonl.gz .* --data-dir"):
        sources.load("nq", "normal", given="candidates", k=5, max_new_tokens=8)
    with pytest.raises(InputError, match="CLARA_DATA"):
        TaskLoader(None).load("squad", "oracle", given="candidates", k=5, max_new_tokens=8)
    with pytest.raises(RecordError, match="no data file"):
        TaskLoader(None).load("nothing.jsonl", "oracle", given="candidates", k=5, max_new_tokens=8)
