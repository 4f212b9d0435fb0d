"""The routes that the page needs beside OpenAI's API, against the real server with the tiny model."""

from __future__ import annotations

import json
from itertools import pairwise

from serving import Running, Serve

from clara.samples import sample_folder
from clara.serve.api.page import _POLICY
from clara.serve.insights import _MOST_POINTS, _WORDS

pytest_plugins = ["server_fixtures"]

HEIGHT = "How high is the Eiffel Tower?"


def test_the_page_and_its_files_need_no_key_and_are_the_same_while_they_are(shared: Running) -> None:
    page = shared.client.get("/")
    assert page.headers["content-security-policy"] == _POLICY
    assert "'unsafe" not in _POLICY
    named = sorted({each.split('"')[0] for each in page.text.split('"page/')[1:]})
    assert named == ["app.js", "icon.svg", "page.css"]
    for name in named:
        file = shared.client.get(f"/page/{name}")
        again = shared.client.get(f"/page/{name}", headers={"if-none-match": file.headers["etag"]})
        assert (file.status_code, again.status_code, again.content) == (200, 304, b"")
        assert file.headers["x-content-type-options"] == "nosniff"
    assert shared.client.get("/page/app.js").headers["content-type"].startswith("text/javascript")
    for name in ("nothing.js", "index.html", "..%2Fapp.py", "__init__.py"):
        assert shared.client.get(f"/page/{name}").status_code == 404


def test_stores_are_told_in_numbers(shared: Running) -> None:
    (told,) = shared.client.get("/v1/stores").json()["data"]
    documents = shared.client.get("/v1/documents").json()["data"]
    for name in ("passages", "characters", "tokens", "memory_tokens", "memory_bytes"):
        assert told[name] == sum(each[name] for each in documents) > 0
    assert (told["name"], told["rate"], told["documents"], told["write"]) == ("docs", 4, len(documents), True)
    assert told["memory_tokens"] == 16 * told["passages"]


def test_one_question_is_read_in_three_ways(shared: Running) -> None:
    body = {"messages": [{"role": "user", "content": HEIGHT}], "max_tokens": 4, "clara": {"wording": "quoted"}}
    told = shared.client.post("/v1/compare", json=body)
    assert told.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in told.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    memory, text, nothing = map(json.loads, lines[:-1])
    assert [each["context"] for each in (memory, text, nothing)] == ["memory", "text", "none"]
    assert nothing["usage"]["prompt_tokens"] < memory["usage"]["prompt_tokens"] < text["usage"]["prompt_tokens"]
    assert memory["clara"]["memory_tokens"] > 0 == text["clara"]["memory_tokens"]
    assert all(each["seconds"] > 0 for each in (memory, text, nothing))
    assert nothing["annotations"] == []
    assert shared.client.post("/v1/compare", json={"messages": [{"role": "user", "content": " "}]}).status_code == 400


def test_the_lens_shows_words_that_the_question_does_not_say(shared: Running) -> None:
    first, again = (shared.client.get("/v1/lens", params={"query": HEIGHT}).json()["words"] for _ in range(2))
    assert first == again
    assert 0 < len(first) <= _WORDS
    assert all(each["word"].lower() not in HEIGHT.lower() and each["slots"] > 0 for each in first)
    assert shared.client.get("/v1/lens", params={"query": ""}).status_code == 400
    assert shared.client.get("/v1/lens", params={"query": "tower " * 400}).status_code == 400


def test_the_map_shows_passages_and_where_a_question_stands(serve: Serve) -> None:
    server = serve("docs")
    told = server.client.get("/v1/map").json()
    assert 3 <= len(told["points"]) == told["passages"] <= _MOST_POINTS
    assert all(0 <= each[axis] <= 1 for each in told["points"] for axis in "xy")
    assert {each["document"] for each in told["points"]} == told["documents"].keys()
    whole = told["points"][0]
    text = server.client.get(f"/v1/documents/{whole['document']}/passages").json()["passages"]
    (passage,) = [each["text"] for each in text if each["start"] == whole["start"]]
    place = server.client.get("/v1/map/question", params={"query": HEIGHT}).json()
    assert 0 <= place["x"] <= 1
    assert passage.split()[:3] == whole["text"].split()[:3]
    job = server.client.post("/v1/documents", files={"files": ("oslo.txt", b"Oslo is the capital of Norway.")}).json()
    assert server.finished(job)["status"] == "done"
    assert "oslo.txt" in server.client.get("/v1/map").json()["documents"].values()


def test_a_map_of_nothing_is_refused(serve: Serve) -> None:
    server = serve(empty=["new"])
    assert server.client.get("/v1/map").json()["error"]["code"] == "store_empty"
    job = server.client.post("/v1/documents", files={"files": ("one.txt", b"A single passage.")}).json()
    assert server.finished(job)["status"] == "done"
    refused = server.client.get("/v1/map")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")
    assert "at least 3 passages" in refused.json()["error"]["message"]


def test_a_document_is_read_part_by_part(serve: Serve) -> None:
    server = serve(empty=["new"])
    text = "\n\n".join(f"Section {n} tells of the river {n} and its bridges." for n in range(120))
    job = server.client.post("/v1/documents", files={"files": ("rivers.txt", text.encode())}).json()
    assert server.finished(job)["status"] == "done"
    (document,) = server.client.get("/v1/documents").json()["data"]
    assert document["characters"] == len(text)
    address = f"/v1/documents/{document['id']}/passages"
    whole = server.client.get(address, params={"first": 0, "limit": 400}).json()
    assert "".join(each["text"] for each in whole["passages"]) == text
    assert whole["total"] == len(whole["passages"]) == document["passages"] > 12
    assert all(one["end"] == other["start"] for one, other in pairwise(whole["passages"]))
    start = text.index("river 100")
    part = server.client.get(address, params={"char": f"{start},{start + 9}", "limit": 12}).json()
    assert part["passages"] == whole["passages"][part["first"] : part["first"] + 12]
    assert part["first"] > 0
    assert any(each["start"] <= start < each["end"] for each in part["passages"])
    (one,) = server.client.get(address, params={"char": f"{start},{start + 9}", "limit": 1}).json()["passages"]
    assert one["start"] <= start < one["end"]
    for wrong in ({"char": "x"}, {"limit": 0}, {"limit": 401}):
        assert server.client.get(address, params=wrong).status_code == 400
    assert server.client.get("/v1/documents/doc-0/passages").status_code == 404


def test_pages_of_a_pdf_are_marked(serve: Serve) -> None:
    server = serve(empty=["new"])
    content = (sample_folder() / "printing-press.pdf").read_bytes()
    job = server.client.post("/v1/documents", files={"files": ("press.pdf", content)}).json()
    assert server.finished(job)["status"] == "done"
    (document,) = server.client.get("/v1/documents").json()["data"]
    passages = server.client.get(f"/v1/documents/{document['id']}/passages").json()["passages"]
    assert passages[0]["page"] == 1
    pages = passages[-1]["page"] + len(passages[-1]["breaks"])
    page = server.client.get(f"/v1/documents/{document['id']}").text
    assert [f">Page {number}<" in page for number in range(1, pages + 2)] == [True] * pages + [False]
    assert 'href="../../page/page.css"' in page
