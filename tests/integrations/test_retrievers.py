"""Every framework's own classes over a store: what they give is what ``Clara.search`` finds; the docs' examples run."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before haystack is imported: it would look for a network

from haystack import Document as HaystackDocument
from haystack import Pipeline
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import MetadataMode

from clara.errors import InputError, MissingExtraError
from clara.integrations import haystack, langchain, llama_index
from clara.model import ClaraModel
from clara.pipeline import Clara
from clara.samples import sample_folder

QUESTION = "Who was the first official world chess champion?"
OTHERS = ("Where does coffee come from?", "What did Gutenberg print?")
PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
EXAMPLES = dict(
    re.findall(r"^([\w ]+)(?: \(extra|,)[^\n]*:\n\n```python\n(.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
)


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four documents, one with pages."""
    folder = tmp_path_factory.mktemp("framework") / "docs"
    folder.mkdir()
    for name in ("chess.txt", "coffee.html", "eiffel-tower.md", "printing-press.pdf"):
        shutil.copy(sample_folder() / name, folder)
    return folder


@pytest.fixture(scope="module")
def rag(tiny_model: ClaraModel, docs: Path) -> Iterator[Clara]:
    """A store of them."""
    with Clara.open(docs.parent / "store", model=tiny_model) as opened:
        opened.add(docs)
        yield opened


def expected(rag: Clara, question: str, k: int) -> list[tuple[str, str, float]]:
    """Id, document and score of what a search finds."""
    return [(hit.passage.id, hit.passage.document, hit.score) for hit in rag.search(question, k)]


def of_langchain(found: list[Document]) -> list[tuple[str | None, str, float]]:
    return [(document.id, document.metadata["document"], document.metadata["score"]) for document in found]


def test_langchain(rag: Clara) -> None:
    retriever = langchain.ClaraRetriever(rag=rag, k=3)
    found = retriever.invoke(QUESTION)
    assert of_langchain(found) == expected(rag, QUESTION, 3)
    for document in found:
        start, end = document.metadata["start"], document.metadata["end"]
        assert rag.document_text(document.metadata["document"])[start:end] == document.page_content
    assert asyncio.run(retriever.ainvoke(QUESTION)) == found
    assert (retriever | RunnableLambda(len)).invoke(QUESTION) == 3
    best = langchain.ClaraRetriever(rag=rag)
    assert len(best.invoke(QUESTION)) == min(rag.model.default_k, rag.store.count())
    with pytest.raises(InputError, match="the question is empty"):
        retriever.invoke(" ")


def test_langchain_in_threads(rag: Clara) -> None:
    questions = [QUESTION, *OTHERS] * 4
    batches = langchain.ClaraRetriever(rag=rag, k=2).batch(list(questions))
    assert [of_langchain(found) for found in batches] == [expected(rag, question, 2) for question in questions]


def test_pages_and_headings_are_given(rag: Clara) -> None:
    retriever = langchain.ClaraRetriever(rag=rag, k=rag.store.count(), mode="latent")
    known = {(Path(one.metadata["document"]).name, *sorted(one.metadata)) for one in retriever.invoke(QUESTION)}
    assert any(name == "printing-press.pdf" and "page" in keys for name, *keys in known)
    assert any(name == "eiffel-tower.md" and "heading" in keys for name, *keys in known)


def test_llama_index(rag: Clara) -> None:
    retriever = llama_index.ClaraRetriever(rag, k=3, mode="hybrid")
    found = retriever.retrieve(QUESTION)
    assert [(one.node_id, one.node.ref_doc_id, one.score) for one in found] == expected(rag, QUESTION, 3)
    assert asyncio.run(retriever.aretrieve(QUESTION)) == found
    shown = found[0].node.get_content(MetadataMode.LLM)
    assert "document: " in shown
    assert "start: " not in shown
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), response_mode=ResponseMode.COMPACT)
    assert engine.query(QUESTION).source_nodes == found


def test_haystack(rag: Clara) -> None:
    pipeline = Pipeline()
    pipeline.add_component("retriever", haystack.ClaraRetriever(rag, top_k=3))

    def run(**inputs: Any) -> list[HaystackDocument]:  # noqa: ANN401 - of a component
        documents: list[HaystackDocument] = pipeline.run({"retriever": inputs})["retriever"]["documents"]
        return documents

    found = run(query=QUESTION)
    assert [(one.id, one.meta["document"], one.score) for one in found] == expected(rag, QUESTION, 3)
    assert run(query=QUESTION, top_k=1) == found[:1]


@pytest.mark.parametrize("framework", ["LangChain", "A chat model", "LlamaIndex", "Haystack"])
def test_the_examples_run(
    framework: str,
    docs: Path,
    tiny_model: ClaraModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "docs").symlink_to(docs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ClaraModel, "load", lambda _: tiny_model)
    example = EXAMPLES[framework]
    assert len(example.splitlines()) <= 12
    exec(compile(example, f"{PAGE.name}: {framework}", "exec"), {})  # noqa: S102 - our own page
    assert str(docs) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("package", "extra"),
    [("langchain_core", "langchain"), ("llama_index", "llama-index"), ("haystack", "haystack")],
)
def test_a_missing_framework_names_its_extra(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, without: Callable[[str], None]
) -> None:
    module = f"clara.integrations.{extra.replace('-', '_')}"
    monkeypatch.delitem(sys.modules, module)
    without(package)
    with pytest.raises(MissingExtraError, match=re.escape(f"clara-rag[{extra}]")):
        __import__(module)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a package be missing."""

    def hide(package: str) -> None:
        for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return hide
