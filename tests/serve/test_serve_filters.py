"""Filters and ranking options of OpenAI's searches, with OpenAI's own client: heeded, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from serving import Running, Serve

from clara import pipeline

pytest_plugins = ["server_fixtures"]

HEIGHT = "How high is the Eiffel Tower?"
TOWER, COFFEE, CHESS = "eiffel-tower.md", "coffee.html", "chess.txt"
ALL = 100


@pytest.fixture
def openai(shared: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{shared.base}/v1", api_key="empty", max_retries=0) as client:
        yield client


def compared(kind: str, key: str, value: object) -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value}


def joined(kind: str, *filters: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "filters": list(filters)}


def found(openai: OpenAI, filters: Any = None, *, mode: str = "latent", most: int = ALL, **fields: Any) -> list[Any]:  # noqa: ANN401
    given = fields if filters is None else {**fields, "filters": filters}
    clara = {"clara": {"mode": mode}}
    return openai.vector_stores.search("docs", query=HEIGHT, max_num_results=most, extra_body=clara, **given).data


@pytest.mark.parametrize("mode", ["hybrid", "latent"])
def test_each_comparison_finds_what_a_loop_over_all_results_does(openai: OpenAI, mode: str) -> None:
    everything = found(openai, mode=mode)
    assert {each.filename for each in everything} == {TOWER, COFFEE, CHESS}
    coffee = next(each.file_id for each in everything if each.filename == COFFEE)
    heading = next(each.attributes["heading"] for each in everything if "heading" in each.attributes)
    start = sorted(each.attributes["start"] for each in everything)[len(everything) // 2]
    name = compared("eq", "filename", TOWER)
    later = compared("gte", "start", start)
    for filters, wanted in (
        (name, lambda each: each.filename == TOWER),
        (compared("ne", "filename", TOWER), lambda each: each.filename != TOWER),
        (compared("eq", "file_id", coffee), lambda each: each.filename == COFFEE),
        (compared("in", "filename", [COFFEE, TOWER]), lambda each: each.filename != CHESS),
        (compared("nin", "filename", [COFFEE, TOWER]), lambda each: each.filename == CHESS),
        (compared("lt", "filename", COFFEE), lambda each: each.filename == CHESS),
        (compared("gt", "start", start), lambda each: each.attributes["start"] > start),
        (compared("lte", "start", start), lambda each: each.attributes["start"] <= start),
        (later, lambda each: each.attributes["start"] >= start),
        (compared("eq", "heading", heading), lambda each: each.attributes.get("heading") == heading),
        (compared("ne", "heading", heading), lambda each: each.attributes.get("heading") != heading),
        (compared("eq", "page", 1), lambda _: False),
        (compared("nin", "page", [1, 2]), lambda _: True),
        (joined("and", name, later), lambda each: each.filename == TOWER and each.attributes["start"] >= start),
        (joined("or", name, later), lambda each: each.filename == TOWER or each.attributes["start"] >= start),
        (
            joined("and", joined("or", name, compared("eq", "file_id", coffee)), compared("lt", "start", start)),
            lambda each: each.filename != CHESS and each.attributes["start"] < start,
        ),
        (compared("eq", "filename", "not there.md"), lambda _: False),
    ):
        told = {(each.file_id, each.attributes["start"]) for each in found(openai, filters, mode=mode)}
        assert told == {(each.file_id, each.attributes["start"]) for each in everything if wanted(each)}, filters


def test_as_many_as_are_wanted_are_found_beyond_those_that_do_not_fit(openai: OpenAI) -> None:
    last = found(openai)[-1]
    later = compared("gte", "start", last.attributes["start"])
    (best,) = found(openai, later, most=1)
    assert best.score == pytest.approx(found(openai, later)[0].score)


def test_a_threshold_leaves_out_lower_scores(openai: OpenAI) -> None:
    everything = found(openai)
    middle = everything[len(everything) // 2].score
    kept = found(openai, ranking_options={"ranker": "auto", "score_threshold": middle})
    assert [each.score for each in kept] == [each.score for each in everything if each.score >= middle]
    assert len(kept) < len(everything)
    none = {"ranker": "none", "score_threshold": 0.0}
    assert len(found(openai, ranking_options=none, rewrite_query=False)) == len(everything)
    assert len(found(openai, ranking_options={"score_threshold": 0}, mode="hybrid")) == len(everything)


REFUSED = [
    ({"filters": compared("eq", "author", "me")}, "filters.key"),
    ({"filters": compared("like", "filename", "a")}, "filters.type"),
    ({"filters": compared("eq", "filename", 5)}, "filters"),
    ({"filters": compared("eq", "page", "5")}, "filters"),
    ({"filters": {"type": "eq", "key": "page", "value": True}}, "filters"),
    ({"filters": compared("in", "filename", TOWER)}, "filters"),
    ({"filters": compared("eq", "filename", [TOWER])}, "filters"),
    ({"filters": {"type": "eq", "key": "page"}}, "filters"),
    ({"filters": {"type": "and", "filters": []}}, "filters.filters"),
    ({"filters": {"type": "and"}}, "filters"),
    ({"filters": joined("or", compared("eq", "author", "me"))}, "filters.filters.0.key"),
    ({"filters": {**compared("eq", "page", 1), "filters": []}}, "filters.filters"),
    ({"ranking_options": {"ranker": "default-2024-11-15"}}, "ranking_options.ranker"),
    ({"ranking_options": {"score_threshold": 0.5}}, "ranking_options.score_threshold"),
    (
        {"ranking_options": {"hybrid_search": {"embedding_weight": 1, "text_weight": 1}}},
        "ranking_options.hybrid_search",
    ),
    ({"max_num_results": 0}, "max_num_results"),
    ({"max_num_results": 1000}, "max_num_results"),
]


@pytest.mark.parametrize(("fields", "param"), [*REFUSED, ({"rewrite_query": True}, "rewrite_query")])
def test_what_a_search_cannot_heed_is_refused(openai: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.vector_stores.search("docs", query=HEIGHT, **fields)
    assert (refused.value.code, refused.value.param) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *REFUSED,
        ({"vector_store_ids": ["other"]}, "vector_store_ids"),
        ({"vector_store_ids": ["a", "b"]}, "vector_store_ids"),
    ],
)
def test_what_the_tool_cannot_heed_is_refused(openai: OpenAI, fields: dict[str, Any], param: str) -> None:
    tool: Any = {"type": "file_search", "vector_store_ids": ["docs"], **fields}
    with pytest.raises(BadRequestError) as refused:
        openai.responses.create(model="docs", input=HEIGHT, tools=[{"type": "web_search"}, tool])
    assert (refused.value.code, refused.value.param) == ("invalid_value", f"tools.1.{param}")


def answered(openai: OpenAI, *tools: Any, **fields: Any) -> list[str]:  # noqa: ANN401
    """The files that an answer was read from."""
    clara = {"clara": {"always_answer": True, "mode": "latent", "context": "memory", **fields}}
    made = openai.responses.create(model="docs", input=HEIGHT, max_output_tokens=2, tools=tools, extra_body=clara)
    searches = [each for each in made.output if each.type == "file_search_call"]
    return [each.filename or "" for search in searches for each in search.results or ()]


def test_an_answer_is_read_from_what_the_tool_filters(openai: OpenAI) -> None:
    tool = {"type": "file_search", "vector_store_ids": ["docs"]}
    assert set(answered(openai, tool)) == set(answered(openai)) > {COFFEE}
    assert set(answered(openai, {**tool, "filters": compared("eq", "filename", COFFEE)})) == {COFFEE}
    assert answered(openai, {**tool, "filters": compared("eq", "filename", "none.md")}) == []
    assert len(answered(openai, {**tool, "max_num_results": 2})) == 2
    assert len(answered(openai, {**tool, "max_num_results": 2}, k=1)) == 1
    assert answered(openai, {**tool, "ranking_options": {"score_threshold": 10.0**6}}) == []
    other_tools = [{"type": "web_search", "filters": {"allowed_domains": ["example.org"]}}, tool]
    assert set(answered(openai, *other_tools)) == set(answered(openai))
    with pytest.raises(BadRequestError) as two:
        answered(openai, tool, tool)
    assert two.value.param == "tools"


def test_the_tool_names_the_store_where_the_model_does_not(serve: Serve) -> None:
    server = serve("law", "manuals")
    body = {"input": HEIGHT, "max_output_tokens": 1, "tools": [{"type": "file_search", "vector_store_ids": ["law"]}]}
    for choice in ("auto", "required", {"type": "file_search"}):
        assert server.client.post("/v1/responses", json={**body, "tool_choice": choice}).json()["model"] == "law"


def test_a_filter_that_hardly_anything_passes_is_said_to_be_too_narrow(
    openai: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_MOST_LOOKED_AT", 3)
    with pytest.raises(BadRequestError, match="passes 0 of the 3 best passages, 1 were wanted"):
        found(openai, compared("eq", "page", 7), most=1)


def test_filters_within_filters_end(shared: Running) -> None:
    for deep in (200, 2000, 20_000):  # all of them within the limit of a body
        filters = '{"type": "and", "filters": [' * deep + '{"type": "eq", "key": "page", "value": 1}' + "]}" * deep
        body = f'{{"query": "{HEIGHT}", "filters": {filters}}}'
        told = shared.client.post(
            "/v1/vector_stores/docs/search", content=body, headers={"content-type": "application/json"}
        )
        assert told.status_code in {200, 400}, (deep, told.text)
