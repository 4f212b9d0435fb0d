"""The doors to MTEB, BEIR and lm-evaluation-harness, through those libraries where they are installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bag_model import BagModel
from clara.errors import ConfigError, MissingExtraError
from clara.evaluate.plugs.mteb import LatentEncoder
from clara.ingest import make_document
from clara.ingest.split import split
from clara.model import ClaraModel
from clara.records import GenerationRequest, QueryMemory

CORPUS = [
    {"title": "Insects", "text": "Bees make honey out of nectar."},
    {"title": "", "text": "Chess has bishops, knights and pawns."},
    {"title": "Foxes", "text": "Foxes hunt mice under snow."},
]


class NeverAsked(BagModel):
    """Refuses to swap documents and questions."""

    def encode_queries(self, questions: Any, *, rate: int | None = None) -> list[QueryMemory]:  # noqa: ANN401 - as its base
        assert all("?" in question for question in questions)
        return super().encode_queries(questions, rate=rate)


def test_vectors_are_flattened_memories_at_unit_length(tiny_model: ClaraModel) -> None:
    encoder = LatentEncoder(tiny_model, rate=16)
    long = "Velden counts its boats each year. " * 12
    vectors = encoder.encode_corpus([*CORPUS, {"text": "  "}, {"text": long}])
    assert vectors.shape == (5, 4 * tiny_model.width)
    assert vectors.dtype == np.float32
    flat = tiny_model.compress(["Insects\nBees make honey out of nectar."], rate=16)[0].values.ravel()
    np.testing.assert_allclose(vectors[0], flat / np.linalg.norm(flat), atol=1e-5)
    assert not vectors[3].any()
    start = tiny_model.compress([long[: tiny_model.token_spans(long)[63][1]]], rate=16)[0]
    np.testing.assert_allclose(vectors[4], start.search_vector(), atol=1e-5)
    assert (encoder.empty, encoder.cut) == (1, 1)
    query = encoder.encode_queries(["Who makes honey?"])
    np.testing.assert_allclose(
        query[0], tiny_model.encode_queries(["Who makes honey?"], rate=16)[0].search_vector(), atol=1e-6
    )
    np.testing.assert_allclose(encoder.similarity(query, vectors), query @ vectors.T)
    np.testing.assert_allclose(encoder.similarity_pairwise(vectors, vectors), [1, 1, 1, 0, 1], atol=1e-5)
    assert encoder.encode_corpus([{"text": ""}]).shape == (1, 4 * tiny_model.width)


@pytest.mark.filterwarnings("ignore")  # the library's own; this test is of its interface
def test_mteb_runs_a_retrieval_task() -> None:
    mteb = pytest.importorskip("mteb", reason="pip install 'clara-rag[mteb]'")
    from datasets import Dataset  # noqa: PLC0415 - comes with mteb
    from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: PLC0415 - as above
    from mteb.abstasks.task_metadata import TaskMetadata  # noqa: PLC0415 - as above
    from mteb.models.models_protocols import EncoderProtocol  # noqa: PLC0415 - as above

    unknown = dict.fromkeys(
        ("reference", "date", "domains", "task_subtypes", "license", "annotations_creators", "dialect")
    )

    class Invented(AbsTaskRetrieval):  # type: ignore[misc]  # the library is not checked here
        metadata = TaskMetadata(
            name="Invented",
            description="Three documents.",
            dataset={"path": "none/none", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            sample_creation=None,
            bibtex_citation=None,
            **unknown,
        )

        def load_data(self, **_: object) -> None:
            columns = {name: [doc[name] for doc in CORPUS] for name in ("title", "text")}
            split = {
                "corpus": Dataset.from_dict({"id": ["b", "c", "f"], **columns}),
                "queries": Dataset.from_dict({"id": ["1", "2"], "text": ["Who makes honey?", "What hunts mice?"]}),
                "relevant_docs": {"1": {"b": 1}, "2": {"f": 1}},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    encoder = LatentEncoder(NeverAsked())
    assert isinstance(encoder, EncoderProtocol)
    result = mteb.evaluate(encoder, Invented(), cache=None, co2_tracker=False, show_progress_bar=False)
    scores = result.task_results[0].scores["test"][0]
    assert (scores["ndcg_at_10"], scores["recall_at_1"]) == (1.0, 1.0)
    assert encoder.mteb_model_meta.name == "clara-rag/bag-of-words"
    assert encoder.mteb_model_meta.revision == "bag-1-default"


TASK = """
task: invented_reading
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "Background: {{{{context}}}}\\n\\nQuestion: {{{{question}}}}\\n\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
metric_list:
  - metric: exact_match
"""


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_runs_a_reading_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="pip install 'clara-rag[lm-eval]'")
    import datasets  # noqa: PLC0415 - comes with lm-eval
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 - as above

    from clara.evaluate.plugs.lm_eval import ClaraLM  # noqa: PLC0415 - as above

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"context": "Bees make honey. Foxes hunt mice.", "question": "Who makes honey?", "answer": "bees"},
        {"context": "Chess has pawns.", "question": "Which game has pawns?", "answer": "chess"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(TASK.format(file=file), encoding="utf-8")
    model = BagModel()
    result = lm_eval.simple_evaluate(
        model=ClaraLM(model, context="memory", batch_size=1),
        tasks=["invented_reading"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    assert [request.question for request in model.requests] == ["Who makes honey?", "Which game has pawns?"]
    assert [len(request.memories) for request in model.requests] == [1, 1]
    assert model.compressed == [row["context"] for row in rows]
    assert model.max_new_tokens == {8}
    answers = [sample["resps"][0][0] for sample in result["samples"]["invented_reading"]]
    assert answers == [generation.text for generation in model.generate_many(model.requests[:2])]


def test_lm_eval_model_reads_as_it_is_told(tiny_model: ClaraModel) -> None:
    pytest.importorskip("lm_eval", reason="pip install 'clara-rag[lm-eval]'")
    from lm_eval.api.instance import Instance  # noqa: PLC0415 - optional

    from clara.evaluate.plugs.lm_eval import ClaraLM, _at_last_question  # noqa: PLC0415 - optional

    background = "The harbour of Velden was dug in 1611. " * 9
    prompt = f"Passage: {background}\nQ: old?\nA: yes\n\nQuestion: Who dug it?\nAnswer:"

    def answer(model: ClaraLM, text: str, **settings: object) -> str:
        request = Instance("generate_until", {}, (text, {"max_gen_toks": 6, **settings}), 0)
        return model.generate_until([request])[0]

    def wanted(request: GenerationRequest) -> str:
        return tiny_model.generate_many([request], max_new_tokens=6)[0].text

    asked = _at_last_question(prompt)
    assert (asked.background[-11:], asked.question) == ("old?\nA: yes", "Who dug it?")
    document = make_document("x", "", asked.background)
    windows = [p.text for p in split(document, tiny_model.token_spans, max_tokens=64)]
    assert len(windows) > 1
    memories = tuple(tiny_model.compress(windows, rate=16))
    by_memory = answer(ClaraLM(tiny_model, rate=16), prompt)
    assert by_memory == wanted(GenerationRequest("Who dug it?", memories=memories))
    text = GenerationRequest("Who dug it?", texts=(asked.background,), reader="base")
    assert answer(ClaraLM(tiny_model, context="text"), prompt) == wanted(text)
    nothing = GenerationRequest("Who dug it?", reader="base")
    assert answer(ClaraLM(tiny_model, context="none"), prompt) == wanted(nothing)
    assert answer(ClaraLM(tiny_model), "Who dug it?\nAnswer:") == wanted(nothing)
    assert answer(ClaraLM(tiny_model, rate=16), prompt, until=[by_memory[2:4]]) == by_memory[:2]
    with pytest.raises(ConfigError, match="wants sampling"):
        answer(ClaraLM(tiny_model), prompt, do_sample=True)
    with pytest.raises(ConfigError, match="answers generate_until tasks only"):
        ClaraLM(tiny_model).loglikelihood([Instance("loglikelihood", {}, ("a", "b"), 0)])


def test_a_missing_suite_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = __import__("sys").modules
    monkeypatch.setitem(modules, "mteb.models.model_meta", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'clara-rag\[mteb\]'"):
        _ = LatentEncoder(BagModel()).mteb_model_meta
    for name in [name for name in modules if name.startswith(("clara.evaluate.plugs.lm_eval", "lm_eval"))]:
        monkeypatch.delitem(modules, name)
    monkeypatch.setitem(modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'clara-rag\[lm-eval\]'"):
        __import__("clara.evaluate.plugs.lm_eval")
