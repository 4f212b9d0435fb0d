"""Systems that answer: what they read, what they say of it, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from system_cases import ASKS, DOCS, LONG, replies, settings

from bag_model import BagModel
from clara.config import CompressionConfig, LoraSettings
from clara.errors import ClaraError, ConfigError
from clara.evaluate.cache import Failure
from clara.evaluate.system import Prediction, Query
from clara.evaluate.systems import SYSTEMS, model_system
from clara.evaluate.weights import whole_identity
from clara.ingest import make_document
from clara.ingest.split import split
from clara.model import ClaraModel, checkpoint
from clara.model.adapters import Adapters
from clara.model.backbone import load_base
from clara.model.create import Loaded
from clara.model.reader import ReaderContext, ReaderManifest, TextReader, save_reader
from clara.prompts import passage_text
from clara.records import GenerationRequest
from conftest import ramp

NAMES = {
    "closed-book",
    "closed-book-reader",
    "text-bm25",
    "text-minilm",
    "text-bge",
    "reader-bm25",
    "reader-minilm",
    "reader-bge",
    "clara",
    "clara-bm25",
    "clara-scp",
    "clara-instruct",
    "clara-end-to-end",
    "pisco",
    "llmlingua",
    "llmlingua2",
    "dro",
    "bm25",
    "minilm",
    "bge-reranker",
    "latent",
    "supervised",
}
QUOTED = {f"{name}-quoted" for name in NAMES if name.startswith(("text-", "reader-", "clara"))}


def test_every_system_has_its_name() -> None:
    assert set(SYSTEMS) == NAMES | QUOTED


@pytest.mark.parametrize("name", ["clara", "clara-bm25", "text-bm25"])
def test_a_quoted_system_reads_the_same_and_answers_in_its_words(
    name: str, tiny_model: ClaraModel, tmp_path: Path
) -> None:
    chosen = settings(tiny_model, tmp_path, max_new_tokens=40)
    free, quoted = SYSTEMS[name](chosen), SYSTEMS[f"{name}-quoted"](chosen)
    assert (free.name, quoted.name) == (name, f"{name}-quoted")
    assert free.fingerprint != quoted.fingerprint
    for ask, plain, held in zip(ASKS, replies(free), replies(quoted), strict=True):
        assert (held.ranking, held.used, held.context_tokens) == (plain.ranking, plain.used, plain.context_tokens)
        assert held.text != plain.text
        read = [passage_text(ask.docs[place].title, ask.docs[place].text) for place in held.used]
        assert held.text is not None
        assert held.text.lower() in {"yes", "no"} or any(held.text in text for text in read), held.text


@pytest.fixture
def reader_folder(tiny_base: Path, tmp_path: Path) -> Callable[[ReaderContext], Path]:
    """Makes readers on ``tiny_base`` whose adapter changes every layer."""

    def make(context: ReaderContext) -> Path:
        base = load_base(str(tiny_base), tiny_base, dtype=torch.float32)
        adapters = Adapters.fresh(base.model, LoraSettings(rank=4, alpha=8), roles=("generator",))
        ramp([p for name, p in adapters.peft_model.named_parameters() if "lora_B" in name], scale=0.3)
        manifest = ReaderManifest(
            base_model=base.name, base_identity=base.identity, context=context, lora=LoraSettings(rank=4, alpha=8)
        )
        save_reader(adapters, manifest, tmp_path / f"reader-{context}", card="# Reader\n")
        return tmp_path / f"reader-{context}"

    return make


@pytest.fixture
def staged(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes copies of ``tiny_checkpoint`` that say they were trained."""

    def make(stage: str, **values: Any) -> Path:  # noqa: ANN401 - any field of the manifest
        folder = tmp_path / f"stage-{stage}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_checkpoint, folder)
        manifest = json.loads((folder / "clara.json").read_text())
        (folder / "clara.json").write_text(json.dumps(manifest | {"stage": stage} | values))
        return folder

    return make


def texts(ask: Query, reply: Prediction) -> tuple[str, ...]:
    return tuple(passage_text(ask.docs[index].title, ask.docs[index].text) for index in reply.used)


def test_text_is_read_in_the_rankings_order(tiny_model: ClaraModel, tmp_path: Path) -> None:
    run = settings(tiny_model, tmp_path)
    ranked = replies(SYSTEMS["bm25"](run))
    for ask, order, reply in zip(ASKS, ranked, replies(SYSTEMS["text-bm25"](run)), strict=True):
        assert reply.ranking == order.ranking
        assert reply.ranking is not None
        assert reply.used == reply.ranking[:2]
        request = GenerationRequest(ask.question, texts=texts(ask, reply), reader="base")
        assert reply.text == tiny_model.generate_many([request], max_new_tokens=6)[0].text
        assert reply.context_tokens == sum(map(tiny_model.token_count, texts(ask, reply)))
        assert (reply.compressed_to, reply.first_token_seconds) == (None, None)


@pytest.mark.parametrize("given", ["gold", "candidates"])
def test_closed_book_reads_nothing(given: str, tiny_model: ClaraModel, tmp_path: Path) -> None:
    for ask, reply in zip(
        ASKS, replies(SYSTEMS["closed-book"](settings(tiny_model, tmp_path, given=given))), strict=True
    ):
        request = GenerationRequest(ask.question, reader="base")
        assert reply.text == tiny_model.generate_many([request], max_new_tokens=6)[0].text
        assert (reply.ranking, reply.used, reply.context_tokens) == (None, (), 0)


def test_clara_without_a_reasoner_reads_memories_in_bm25s_order(tiny_model: ClaraModel, tmp_path: Path) -> None:
    run = settings(tiny_model, tmp_path, rate=16)
    ranked = replies(SYSTEMS["bm25"](run))
    for ask, order, reply in zip(ASKS, ranked, replies(SYSTEMS["clara"](run)), strict=True):
        assert reply.ranking == order.ranking
        windows = [
            passage_text(passage.title, passage.text)
            for index in reply.used
            for passage in split(
                make_document("x", ask.docs[index].title, ask.docs[index].text), tiny_model.token_spans, max_tokens=64
            )
        ]
        memories = tiny_model.compress(windows, rate=16)
        request = GenerationRequest(ask.question, memories=tuple(memories))
        assert reply.text == tiny_model.generate_many([request], max_new_tokens=6)[0].text
        assert reply.context_tokens == 4 * len(windows)
        assert reply.compressed_to == reply.context_tokens / sum(map(tiny_model.token_count, windows))
    assert len(windows) > 2  # the last question's best documents include one of several windows


def test_clara_ranks_by_its_own_reasoner(
    make_network: Callable[[CompressionConfig], Loaded], tiny_model: ClaraModel, tmp_path: Path
) -> None:
    loaded = make_network(tiny_model.manifest.compression)
    loaded.network.adapters.split_query_reasoner()
    parameters = loaded.network.adapters.peft_model.named_parameters()
    ramp([p for name, p in parameters if "lora_B" in name and "query_reasoner" in name], scale=0.5)
    manifest = loaded.manifest.model_copy(update={"stage": "end_to_end"})
    folder = tmp_path / "end-to-end"
    checkpoint.save(loaded.network, manifest, folder, card="# End to end\n")
    run = settings(tiny_model, tmp_path, options={"end_to_end": folder})
    model = ClaraModel.load(folder)
    wanted = replies(SYSTEMS["latent"](settings(model, tmp_path)))
    found = replies(SYSTEMS["clara-end-to-end"](run))
    assert [reply.ranking for reply in found] == [reply.ranking for reply in wanted]
    by_words = replies(SYSTEMS["clara-bm25"](settings(model, tmp_path)))
    assert [reply.ranking for reply in by_words] != [reply.ranking for reply in found]


def test_gold_documents_are_read_as_given(tiny_model: ClaraModel, tmp_path: Path) -> None:
    """The same answers as ``clara eval --given gold`` for one model gives."""
    asks = tuple(Query(ask.id, ask.question, (ask.docs[0], ask.docs[2])) for ask in ASKS)
    run = settings(tiny_model, tmp_path, given="gold")
    for name, context, reader in (("clara", "memory", "generator"), ("text-bm25", "text", "base")):
        wanted = replies(model_system(run, context=context, reader=reader), asks)
        found = replies(SYSTEMS[name](run), asks)
        assert [reply.text for reply in found] == [reply.text for reply in wanted]
        assert {(reply.ranking, reply.used) for reply in found} == {(None, (0, 1))}


def test_readers_answer_with_their_own_weights(
    reader_folder: Callable[[ReaderContext], Path], tiny_model: ClaraModel, tmp_path: Path
) -> None:
    options = {"reader": reader_folder("text"), "closed_book_reader": reader_folder("none")}
    run = settings(tiny_model, tmp_path, options=options)
    reader = TextReader.load(options["reader"], cache=tmp_path)
    for ask, reply in zip(ASKS, replies(SYSTEMS["reader-bm25"](run)), strict=True):
        request = GenerationRequest(ask.question, texts=texts(ask, reply))
        assert reply.text == reader.generate_many([request], max_new_tokens=6)[0].text
    closed = replies(SYSTEMS["closed-book-reader"](run))
    assert {reply.context_tokens for reply in closed} == {0}
    assert SYSTEMS["reader-bm25"](run).fingerprint != SYSTEMS["text-bm25"](run).fingerprint
    swapped = {"reader": options["closed_book_reader"], "closed_book_reader": options["reader"]}
    for name in ("reader-bm25", "closed-book-reader"):
        with pytest.raises(ConfigError, match="a reader of context"):
            SYSTEMS[name](settings(tiny_model, tmp_path, options=swapped))
        with pytest.raises(ConfigError, match=r"needs --option \w*reader=DIR"):
            SYSTEMS[name](settings(tiny_model, tmp_path))


@pytest.mark.parametrize("name", ["clara-scp", "clara-instruct", "clara-end-to-end"])
def test_stages_want_a_checkpoint_of_that_stage(
    name: str, staged: Callable[..., Path], tiny_model: ClaraModel, tmp_path: Path
) -> None:
    stage = name.removeprefix("clara-").replace("-", "_")
    run = settings(tiny_model, tmp_path, options={stage: staged(stage)})
    # The weights are those of the model under test, which is loaded in fp32 and this one as the machine likes it.
    assert [reply.context_tokens for reply in replies(SYSTEMS[name](run))] == [
        reply.context_tokens for reply in replies(SYSTEMS["clara"](run))
    ]
    with pytest.raises(ConfigError, match=f"a checkpoint of stage other; system {name} is one of stage {stage}"):
        SYSTEMS[name](settings(tiny_model, tmp_path, options={stage: staged("other")}))
    with pytest.raises(ConfigError, match=r"trained on .* all systems of a run share its backbone"):
        SYSTEMS[name](settings(tiny_model, tmp_path, options={stage: staged(stage, base_identity="f" * 16)}))
    with pytest.raises(ConfigError, match="serves the rates 4x, 16x, not 8x"):
        SYSTEMS[name](settings(tiny_model, tmp_path, options={stage: staged(stage)}, rate=8))


def test_pisco_wants_a_teachers_answers_and_no_pretraining(
    staged: Callable[..., Path], tiny_model: ClaraModel, tmp_path: Path
) -> None:
    right = staged("instruct", trained={"config": {"start": None, "targets": "teacher"}})
    run = settings(tiny_model, tmp_path, options={"pisco": right})
    found = replies(SYSTEMS["pisco"](run))
    assert [reply.ranking for reply in found] == [reply.ranking for reply in replies(SYSTEMS["bm25"](run))]
    for config in ({"start": "runs/scp", "targets": "teacher"}, {"start": None, "targets": "gold"}):
        wrong = staged("instruct", trained={"config": config})
        with pytest.raises(ConfigError, match="PISCO starts from the base model and learns a teacher's answers"):
            SYSTEMS["pisco"](settings(tiny_model, tmp_path, options={"pisco": wrong}))


def test_an_error_in_one_question_is_its_own(tmp_path: Path) -> None:
    asks = (*ASKS[:2], Query("fox", "Where do snow foxes live?", (DOCS[4], DOCS[3])), Query("e", "broken?", (LONG,)))
    model = BagModel()
    model.broken = frozenset({"broken?"})
    found = SYSTEMS["text-bm25"](settings(model, tmp_path, k=1)).predict(asks)
    assert [isinstance(reply, Failure) for reply in found] == [False, False, False, True]
    model = BagModel()
    model.broken = frozenset({"Orrin bread is"})
    found = SYSTEMS["clara-bm25"](settings(model, tmp_path, k=1)).predict(asks)
    assert [isinstance(reply, Failure) for reply in found] == [False, True, False, False]
    assert isinstance(found[1], Failure)
    assert found[1].reason == "RuntimeError: out of memory at Orrin bread is"


def test_the_first_questions_are_timed_singly(tiny_model: ClaraModel, tmp_path: Path) -> None:
    system = SYSTEMS["clara"](settings(tiny_model, tmp_path, timed=2))
    first, second = replies(system, ASKS[:1]), replies(system, ASKS[1:])
    seconds = [reply.first_token_seconds for reply in (*first, *second)]
    assert [value is not None for value in seconds] == [True, True, False]
    assert all(value is None or 0 < value < 30 for value in seconds)


def test_fingerprints_change_with_what_decides_replies(
    make_network: Callable[[CompressionConfig], Loaded], tiny_model: ClaraModel, tmp_path: Path
) -> None:
    def of(name: str, **values: Any) -> str:  # noqa: ANN401 - any setting
        return SYSTEMS[name](settings(values.pop("model", tiny_model), tmp_path, **values)).fingerprint

    assert of("clara") == of("clara", rate=4)  # the default rate
    assert of("text-bm25") == of("text-bm25", rate=16)
    assert of("closed-book") == of("closed-book", k=5)
    different = [of(name) for name in ("clara", "text-bm25", "closed-book", "bm25", "latent", "llmlingua")]
    different += [of("clara", rate=16), of("clara", k=3), of("clara", max_new_tokens=7), of("clara", given="gold")]
    different += [of("text-bm25", k=3), of("llmlingua", rate=16), of("latent", rate=16)]
    # Another generator leaves the model's own fingerprint as it is: memories stay good, answers do not.
    loaded = make_network(tiny_model.manifest.compression)
    parameters = loaded.network.adapters.peft_model.named_parameters()
    ramp([p for name, p in parameters if "lora_B" in name and "generator" in name], scale=0.9)
    checkpoint.save(loaded.network, loaded.manifest, tmp_path / "other", card="# Other\n")
    other = ClaraModel.load(tmp_path / "other")
    assert other.fingerprint == tiny_model.fingerprint
    different.append(of("clara", model=other))
    assert of("text-bm25", model=other) == of("text-bm25")
    # So do answers with what its manifest says of decoding.
    loaded.network.table.project_queries(projected=True, late=True)
    late = {"query_projection": True, "late_interaction": True}
    for changed in ({}, {"contrast": (0.0, 0.3)}):
        folder = tmp_path / f"changed {sorted(changed)}"
        checkpoint.save(loaded.network, loaded.manifest.model_copy(update=late | changed), folder, card="# Other\n")
        different.append(of("clara", model=ClaraModel.load(folder)))
    assert len(set(different)) == len(different)


def test_a_checkpoint_that_gains_a_text_reader_keeps_its_journals(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    before = whole_identity(ClaraModel.load(folder))
    reader = folder / "adapters" / "text_reader"
    shutil.copytree(folder / "adapters" / "generator", reader)
    assert whole_identity(ClaraModel.load(folder)) == before
    other = folder / "adapters" / "other"
    shutil.copytree(reader, other)
    assert whole_identity(ClaraModel.load(folder)) != before, "any other weights count"


def test_a_missing_package_names_its_extra(
    tiny_model: ClaraModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, name in (
        ("bm25s", "bm25"),
        ("sentence_transformers", "minilm"),
        ("llmlingua", "llmlingua"),
    ):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(ClaraError, match=r"pip install 'clara-rag\[eval\]'"):
            SYSTEMS[name](settings(tiny_model, tmp_path))
        monkeypatch.undo()
