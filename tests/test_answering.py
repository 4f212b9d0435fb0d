"""How an answer is read and where it stands: the reading rule, the quotation's place, an answer withheld."""

from __future__ import annotations

from collections.abc import Generator as Pieces
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from clara.answering import (
    _CUT,
    NOT_FOUND,
    AnswerOptions,
    AnswerStream,
    Reading,
    _covered,
    _cut_mark,
    _generate,
    _repeats,
    find_quote,
    passages_to_find,
    plan_reading,
)
from clara.errors import InputError
from clara.model import ClaraModel, Sampling
from clara.model.checkpoint import ReadingRule
from clara.pipeline import Clara
from clara.prompts import NO_ANSWER
from clara.records import ContextChoice, Generation, GenerationRequest, Hit, Memory, Passage, TokenCounts

PUMPS = (
    "The Birch pump has a relief valve. It opens at 25 bar and the pump is switched on with --prime=slow.",
    "The Cedar pump came later. Its relief valve opens at 18 bar; the Birch pump's opens at 25 bar.\n"
    "- rinse it\n- 25 bar",
)


def hit(text: str, *, start: int = 100, number: int = 0) -> Hit:
    passage = Passage(f"id{number}", f"pumps{number}.txt", "Pumps", text, start, start + len(text))
    metadata = {"page": "2", "page_breaks": str(start + 36), "heading": "Valves"}
    return Hit(passage, 1.0, Memory(np.ones((2, 4), np.float32), "f" * 16, 4, 8), metadata)


def lacks_name(question: str, hits: list[Hit]) -> bool:
    return Reading(GenerationRequest(question), hits, [None] * len(hits)).lacks_name


HITS = [hit(text, number=number) for number, text in enumerate(PUMPS)]


@pytest.mark.parametrize(
    ("answer", "question", "document", "sentence"),
    [
        (
            "--prime=slow",
            "Which option?",
            "pumps0.txt",
            "It opens at 25 bar and the pump is switched on with --prime=slow.",
        ),
        (
            "25 bar",
            "At what does the relief valve of the Birch pump open, later than the Cedar pump?",
            "pumps1.txt",
            "Its relief valve opens at 18 bar; the Birch pump's opens at 25 bar.",
        ),
        ("rinse it", "What next?", "pumps1.txt", "- rinse it"),
    ],
)
def test_a_quotation_is_found_with_its_sentence(answer: str, question: str, document: str, sentence: str) -> None:
    quote = find_quote(answer, question, HITS)
    assert quote is not None
    assert (quote.document, quote.sentence) == (document, sentence)
    passage = next(one.passage for one in HITS if one.passage.document == document)
    assert passage.text[quote.start - passage.start : quote.end - passage.start] == answer
    assert passage.text[quote.sentence_start - passage.start :].startswith(sentence)
    assert quote.page == (3 if quote.start >= 136 else 2)
    assert quote.heading == "Valves"


@pytest.mark.parametrize("answer", ["yes", "no", "", "5 bar", "prime", "Pumps", "Kestrel"])
def test_what_stands_nowhere_in_whole_words_has_no_place(answer: str) -> None:
    text = "It opens at 25 bar. Its primed valve"
    assert find_quote(answer, "Which?", [hit(text)]) is None


@pytest.mark.parametrize(
    ("answer", "mark"),
    [
        ("It opens at 25 bar and the pump is", _CUT),
        ("It opens at 25 bar and the pump is switched on with --prime=slow", ""),
        ("It opens", ""),
        ("opens at 25 bar and the pump is", ""),
    ],
)
def test_a_quotation_that_breaks_off_in_mid_sentence_is_marked(answer: str, mark: str) -> None:
    request = GenerationRequest("Which option?", texts=(PUMPS[0],), reader="text_reader", quote_from=(PUMPS[0],))
    assert _cut_mark(find_quote(answer, "Which option?", HITS[:1]), request) == mark


@pytest.mark.parametrize(
    ("question", "answer", "repeated"),
    [
        ("What code is the Birch pump painted with?", "Birch pump", True),
        ("What code is the Birch pump painted with?", "the Birch pump", True),
        ("In which cabinet is the book of the Damson pump?", "Damson", True),
        ("What code is the Birch pump painted with?", "BX_SEAL_7", False),
        ("What code is the Birch pump painted with?", "Birch pump 7", False),
        ("Which is older, the Birch or the Cedar pump?", "Cedar pump", False),
        ("Which of the Birch and the Cedar pump is older?", "Cedar pump", False),
        ("Is the Birch pump painted?", "painted", False),
        ("What?", "", False),
    ],
)
def test_an_answer_repeats_its_question(question: str, answer: str, repeated: bool) -> None:  # noqa: FBT001
    assert _repeats(question, answer) is repeated


@pytest.mark.parametrize(
    ("question", "count", "lacking"),
    [
        ("Who owns the Fir pump?", 5, True),
        ("Who owns the Birch pump?", 5, False),
        ("Who owns the Birch's pump?", 5, False),
        ("Who owns the Fir pump?", 4, False),
        ("Who owns the fir pump?", 5, False),
        ("Who Owns The Fir Pump?", 5, False),
        ("Wem gehört die Tanne?", 5, False),
        ("What do I switch on?", 5, False),
    ],
)
def test_a_name_stands_in_none_of_enough_passages(question: str, count: int, lacking: bool) -> None:  # noqa: FBT001
    assert lacks_name(question, (HITS * 3)[:count]) is lacking


def test_free_and_memory_answers_about_what_no_passage_names_are_withheld(
    tiny_model: ClaraModel, tmp_path: Path
) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"The Birch pump {number} opens at {number} bar.")
    rag = Clara.open(tmp_path / "store", model=tiny_model)
    rag.add(sorted(tmp_path.glob("*.txt")))
    for options in (AnswerOptions(k=5, max_new_tokens=2), AnswerOptions(k=5, wording="quoted", max_new_tokens=2)):
        assert rag.ask("What does the Birch pump open at?", options=options).answered
        made = rag.ask("What does the Fir pump open at?", options=options)
        assert (made.answered, made.text, made.quote) == (False, NOT_FOUND, None)
        assert "".join(rag.stream("What does the Fir pump open at?", options=options).pieces) == NOT_FOUND
        assert rag.ask("What does the Fir pump open at?", options=options, always_answer=True).answered
    rag.close()


class Echoing:
    """Gives back the first words that it may quote, as a model does that takes the question for its answer."""

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []

    def stream(self, request: GenerationRequest, sampling: Sampling, *, scored: bool) -> Pieces[str, None, Generation]:
        self.asked.append(request)
        assert (sampling.max_new_tokens, scored) == (7, True)
        source = request.quote_from[0] if request.quote_from else "Birch pump"
        words = next(line for line in source.splitlines() if line.strip()).split()
        yield ""
        return Generation(" ".join(words[:2]), (), TokenCounts(9, 0, 9, 2), "stop")


def whole(pieces: Pieces[str, None, Generation]) -> Generation:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            generation: Generation = end.value
            return generation


def test_in_the_place_of_an_echo_another_quotation_is_taken() -> None:
    model, question, text = Echoing(), "What is the Birch pump painted with?", "Birch pump\nA green coat of paint"
    request = GenerationRequest(question, texts=(text,), reader="text_reader", quote_from=(text,))
    reading = Reading(request, HITS[:1], ["text"])
    options = AnswerOptions(max_new_tokens=7)
    assert whole(_generate(cast("ClaraModel", model), reading, options)).text == "A green"
    assert [one.texts for one in model.asked] == [(text,), (text,)], "it still reads everything"
    model.asked.clear()
    free = replace(reading, request=replace(request, quote_from=()))
    assert whole(_generate(cast("ClaraModel", model), free, options)).text == "Birch pump"
    assert len(model.asked) == 1


@pytest.fixture
def filled(tiny_model: ClaraModel, tmp_path: Path) -> Clara:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number, text in enumerate(PUMPS):
        (folder / f"{number}.txt").write_text(text)
    rag = Clara.open(tmp_path / "store", model=tiny_model)
    rag.add(folder)
    return rag


def ruled(model: ClaraModel, monkeypatch: pytest.MonkeyPatch, rule: ReadingRule, *, reads_text: bool) -> None:
    roles = (*model.manifest.roles, *(("text_reader",) if reads_text else ()))
    monkeypatch.setattr(model, "manifest", model.manifest.model_copy(update={"reading": rule, "roles": roles}))


def test_auto_reads_the_best_as_text_where_the_model_reads_text(
    tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = AnswerOptions()
    memories = plan_reading(tiny_model, "Which?", HITS, auto)
    assert (memories.read_as, memories.request.reader) == (["memory", "memory"], "generator")
    ruled(tiny_model, monkeypatch, ReadingRule(auto_texts=1, memory_k=3, text_k=2), reads_text=True)
    text = plan_reading(tiny_model, "Which?", HITS, auto)
    assert (text.read_as, text.request.reader) == (["text", None], "text_reader")
    assert text.request.texts == (f"Pumps\n{PUMPS[0]}",)
    assert [one.passage.id for one in text.read()] == ["id0"]
    wanted: list[tuple[ContextChoice, int]] = [("auto", 5), ("memory", 3), ("text", 2), ("none", 0)]
    for context, count in wanted:
        assert passages_to_find(tiny_model, replace(auto, context=context)) == count


def test_an_answer_that_the_model_hardly_believes_is_withheld(filled: Clara, monkeypatch: pytest.MonkeyPatch) -> None:
    quoted = AnswerOptions(wording="quoted", max_new_tokens=4)
    sure = filled.ask("Which option?", options=quoted)
    assert sure.answered
    ruled(filled.model, monkeypatch, ReadingRule(memory_evidence=0.5), reads_text=False)
    unsure = filled.ask("Which option?", options=quoted)
    assert (unsure.answered, unsure.text, unsure.quote) == (False, NOT_FOUND, None)
    assert unsure.citations == sure.citations
    stream = filled.stream("Which option?", options=quoted)
    assert isinstance(stream, AnswerStream)
    assert "".join(stream.pieces) == NOT_FOUND
    assert stream.answer is not None
    assert (stream.answer.text, stream.answer.answered, stream.quote()) == (NOT_FOUND, False, None)
    forced = filled.ask("Which option?", options=quoted, always_answer=True)
    assert (forced.answered, forced.text) == (True, sure.text)
    assert filled.ask("Which option?", wording="free", max_new_tokens=4).answered, "only quotations are judged"
    ruled(filled.model, monkeypatch, ReadingRule(memory_evidence=-1e9), reads_text=False)
    assert filled.ask("Which option?", options=quoted).text == sure.text


def test_evidence_is_what_went_to_quotations_and_the_words_found(tiny_model: ClaraModel) -> None:
    """Against a slow count: each token's probability among all, over that among those a quotation allows."""
    request = GenerationRequest("Which pump?", memories=(tiny_model.compress([PUMPS[0]])[0],), quote_from=(PUMPS[0],))
    made = tiny_model.generate_many([request], max_new_tokens=6, scored=True)[0]
    quotations = tiny_model._prompter.quotations(request.quote_from)
    logs = []
    with tiny_model._weights.acting_as("generator") as lm, torch.inference_mode():
        prompt = tiny_model._generator.embeds(lm, request, Sampling())[None]
        written = list(made.token_ids)
        ends = [tiny_model._prompter.eos] if made.finish_reason == "stop" else []
        embeds = torch.cat([prompt, lm.get_input_embeddings()(torch.tensor([written]))], dim=1)
        scores = lm(inputs_embeds=embeds).logits[0, prompt.shape[1] - 1 :].float().softmax(-1)
        for count, row in enumerate(scores[: len(written) + len(ends)]):
            allowed = quotations.next_ids(written[:count])
            if quotations.may_end(written[:count]):
                allowed |= {tiny_model._prompter.eos}
            logs.append(float(row[sorted(allowed)].sum().log()))
    assert made.evidence is not None
    assert made.evidence == pytest.approx(sum(logs) / len(logs), abs=1e-3)
    reading = Reading(request, [HITS[0]], ["memory"])
    assert reading.evidence(tiny_model, made) == pytest.approx(made.evidence + 0.4)
    assert _covered("Who owns the Fir pump?", ["The Birch pumps"]) == pytest.approx(1 / 3)
    assert _covered("What is it?", ["The Birch pump"]) == 1


def test_words_near_a_quotation_are_evidence_for_it(tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ruled(tiny_model, monkeypatch, ReadingRule(coverage_weight=2, nearness_weight=4), reads_text=False)
    text = f"The Fir pump lifts 7 litres.{' Nothing else is known.' * 20} The owner of the Birch has 9."
    reading = Reading(GenerationRequest("Which owner has the Fir pump?", quote_from=(text,)), [HITS[0]], ["memory"])

    def evidence(answer: str) -> float | None:
        made = Generation(answer, (1,), TokenCounts(1, 0, 1, 1), "stop", evidence=-1.0)
        return reading.evidence(tiny_model, made)

    # Of owner, Fir and pump all stand in the text, two beside the 7, one beside the 9; yes stands nowhere.
    assert evidence("7") == pytest.approx(-1 + 2 + 4 * 2 / 3)
    assert evidence("9") == pytest.approx(-1 + 2 + 4 * 1 / 3)
    assert evidence("yes") == pytest.approx(-1 + 2 + 4)


def test_options_that_cannot_be(filled: Clara) -> None:
    with pytest.raises(InputError, match="latent_weight must be at least 0, got -1"):
        filled.ask("Which?", latent_weight=-1)
    with pytest.raises(TypeError, match="mod"):
        filled.ask("Which?", mod="text")  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def pumps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clara]:
    """The embedded model on documents of which the one that shares most words with a question does not answer it."""
    folder = tmp_path_factory.mktemp("pumps")
    (folder / "log.txt").write_text(
        "Log of the Cedar pump. The Cedar pump was checked. The Cedar pump was cleaned. The firm was told that the "
        "Cedar pump is loud.",
        encoding="utf-8",
    )
    (folder / "delivery.txt").write_text(
        "Delivered in 1974: the Cedar pump, made by Kestrel in Graz, and four hoses.", encoding="utf-8"
    )
    (folder / "bees.txt").write_text("Bees dance to tell the others where flowers are.", encoding="utf-8")
    with Clara.open(folder / "store", model=ClaraModel.load("smollm2-135m", dtype="fp32")) as rag:
        rag.add(sorted(folder.glob("*.txt")))
        yield rag


@pytest.mark.parametrize("always", [False, True])
def test_what_the_first_passage_does_not_hold_is_read_in_the_next(pumps: Clara, always: bool) -> None:  # noqa: FBT001
    question = "Which firm made the Cedar pump?"
    found = pumps.ask(question, always_answer=always)
    assert found.answered
    assert found.text.startswith("Kestrel")
    assert [Path(each.document).name for each in found.citations[:2]] == ["log.txt", "delivery.txt"]
    assert [each.read_as for each in found.citations] == ["text", "text", None]
    assert found.quote is not None
    assert found.quote.document.endswith("delivery.txt")
    assert found.tokens.prompt > sum(each.tokens for each in found.citations), "both prompts are counted"


def test_what_no_passage_holds_is_not_found_or_guessed(pumps: Clara) -> None:
    question = "What does the Cedar pump weigh?"
    found = pumps.ask(question)
    assert (found.text, found.answered, found.quote) == (NOT_FOUND, False, None)
    assert [each.read_as for each in found.citations] == ["text"] * 3
    guess = pumps.ask(question, always_answer=True)
    assert guess.answered
    assert guess.text not in {NOT_FOUND, NO_ANSWER}
