"""Uploads, jobs, lists, deletions and the page of a document, against the real server."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import Mock

import pytest
from serving import Running, Serve

from clara.serve.access import Limits
from clara.serve.faults import ApiError

pytest_plugins = ["server_fixtures"]


def test_files_are_indexed_and_those_that_cannot_be_read_are_named(serve: Serve) -> None:
    server = serve(empty=["new"])
    text = "Oslo is the capital of Norway.\n" * 40
    files = [("files", ("oslo.txt", text.encode())), ("files", ("broken.pdf", b"%PDF-1.4 no pages"))]
    taken = server.client.post("/v1/documents", files=files)
    assert taken.status_code == 202, taken.text
    told = server.finished(taken.json())
    assert (told["status"], told["added"], told["files"], told["files_done"]) == ("done", 1, 2, 2)
    (failure,) = told["failures"]
    assert failure["file"] == "broken.pdf"
    assert failure["reason"]
    store = server.app.state.server.library.all()["new"]
    assert str(store.uploads) not in json.dumps(told)
    (document,) = server.client.get("/documents").json()["data"]
    assert (document["filename"], document["store"]) == ("oslo.txt", "new")
    assert document["passages"] > 1
    found = server.client.get("/search", params={"query": "capital of Norway"}).json()["results"]
    assert found[0]["source"] == "oslo.txt"
    page = server.client.get(f"/documents/{document['id']}")
    assert page.text.count("Oslo is the capital") == 40
    assert server.client.delete(f"/v1/documents/{document['id']}").json()["deleted"] is True
    assert server.client.get("/v1/documents").json()["data"] == []
    assert server.client.delete(f"/v1/documents/{document['id']}").status_code == 404
    assert not (store.uploads / "oslo.txt").exists()


def test_progress_comes_as_events(serve: Serve) -> None:
    server = serve(empty=["new"])
    job = server.client.post("/v1/documents", files={"files": ("a.txt", b"A text about Oslo.")}).json()
    events = server.client.get(f"/v1/documents/jobs/{job['id']}/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    told = [json.loads(line[6:]) for line in events.text.split("\n") if line.startswith("data: ")]
    assert told[-1]["status"] == "done"
    done = [each["files_done"] for each in told]
    assert done == sorted(done)


def test_the_head_of_progress_does_not_wait_for_the_job(serve: Serve) -> None:
    server = serve(empty=["new"])
    store = server.app.state.server.library.all()["new"]
    with store.writing:  # nothing can be indexed
        job = server.client.post("/v1/documents", files={"files": ("a.txt", b"A text about Oslo.")}).json()
        head = server.client.head(f"/v1/documents/jobs/{job['id']}/events")
        assert head.headers["content-type"].startswith("text/event-stream")
        assert server.client.get("/healthz").status_code == 200  # on the same connection
    server.finished(job)


def test_a_list_goes_on_after_a_document_and_after_no_other(serve: Serve) -> None:
    server = serve("docs")
    first, *others = (each["id"] for each in server.client.get("/v1/documents").json()["data"])
    rest = server.client.get("/v1/documents", params={"after": first}).json()["data"]
    assert [each["id"] for each in rest] == others
    assert server.client.delete(f"/v1/documents/{first}").status_code == 200
    gone = server.client.get("/v1/documents", params={"after": first})
    assert (gone.status_code, gone.json()["error"]["param"]) == (400, "after")


def test_files_that_no_document_comes_from_are_deleted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(empty=["new"])
    store = server.app.state.server.library.all()["new"]

    def uploaded(name: str, content: bytes) -> dict[str, Any]:
        return server.finished(server.client.post("/v1/documents", files={"files": (name, content)}).json())

    def kept() -> list[str]:
        return sorted(path.name for path in store.uploads.rglob("*") if path.is_file())

    assert uploaded("broken.pdf", b"%PDF-1.4 no pages")["failures"]
    records = b"".join(json.dumps({"text": f"The river {n} is long."}).encode() + b"\n" for n in range(2))
    uploaded("rivers.jsonl", records)
    uploaded("oslo.txt", b"A text about Oslo.")
    uploaded("oslo.txt", b"\0\0\0\0" * 100)  # what was read before stays, and its file with it
    assert kept() == ["oslo.txt", "rivers.jsonl"]
    documents = {each["filename"]: each["id"] for each in server.client.get("/v1/documents").json()["data"]}
    for name, left in zip(sorted(documents), (["rivers.jsonl"], ["rivers.jsonl"], []), strict=True):
        assert server.client.delete(f"/v1/documents/{documents[name]}").status_code == 200
        assert kept() == left, name
    monkeypatch.setattr(store.rag, "add", Mock(side_effect=RuntimeError("a bug")))
    told = uploaded("bern.txt", b"A text about Bern.")
    assert (told["status"], told["error"]["code"]) == ("failed", "server_error")
    assert kept() == []


def test_a_document_that_another_client_removed_first_is_not_found(serve: Serve) -> None:
    server = serve("docs")
    state = server.app.state.server
    document = state.library.documents(state.library.all()["docs"])[0]
    state.uploads.remove(document)
    with pytest.raises(ApiError) as caught:  # it was looked up before the other removed it
        state.uploads.remove(document)
    assert (caught.value.status_code, caught.value.code) == (404, "document_not_found")
    assert document.uri not in caught.value.message


def test_jobs_that_have_not_ended_are_listed_in_their_order(serve: Serve) -> None:
    server = serve(empty=["new", "other"])
    store = server.app.state.server.library.all()["new"]
    with store.writing:  # nothing can be indexed
        jobs = [
            server.client.post(f"/v1/documents?store={name}", files={"files": (file, b"A text about Oslo.")}).json()
            for name, file in (("new", "a.txt"), ("other", "b.txt"), ("new", "c.txt"))
        ]
        told = server.client.get("/v1/documents/jobs", params={"store": "new"}).json()
        assert [each["id"] for each in told["data"]] == [jobs[0]["id"], jobs[2]["id"]]
        assert [each["filenames"] for each in told["data"]] == [["a.txt"], ["c.txt"]]
    for job in jobs:
        server.finished(job)
    assert server.client.get("/v1/documents/jobs", params={"store": "new"}).json()["data"] == []
    assert server.client.get("/v1/documents/jobs").status_code == 400  # of several stores one is named


def test_an_upload_beyond_the_limits_leaves_nothing(serve: Serve) -> None:
    server = serve(empty=["new"], limits=Limits(file_bytes=1000, files=2))
    two = [("files", ("a.txt", b"x" * 10)), ("files", ("b.txt", b"x" * 1001))]
    large = server.client.post("/v1/documents", files=two)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "file_too_large")
    assert two[1][0] in large.json()["error"]["param"]
    many = [("files", (f"{n}.txt", b"x")) for n in range(3)]
    refused = server.client.post("/v1/documents", files=many)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_files")
    body = server.client.post("/v1/documents", files={"files": ("a.txt", b"x" * 50_000)})
    assert (body.status_code, body.json()["error"]["code"]) == (413, "body_too_large")
    for name in ("../../a.txt", ".a.txt"):
        refused = server.client.post("/v1/documents", files={"files": (name, b"x")})
        assert refused.status_code == 400, name
    assert server.client.post("/v1/documents", data={"store": "new"}, files={}).status_code == 400
    uploads: Path = server.app.state.server.library.all()["new"].uploads
    assert [path for path in uploads.rglob("*") if path.is_file()] == []


def test_a_job_that_the_server_did_not_end_is_ended_by_the_next(serve: Serve) -> None:
    first = serve(empty=["new"])
    uploads = first.app.state.server.uploads
    store = first.app.state.server.library.all()["new"]
    with store.writing:  # nothing can be indexed
        begun, waiting = (
            first.client.post("/v1/documents", files={"files": (name, f"{name} tells of Oslo.".encode())}).json()
            for name in ("a.txt", "b.txt")
        )
        half = store.uploads / ".incoming" / "job-0f"  # an upload whose client has left
        half.mkdir()
        (half / "c.txt").write_text("never whole")
        closing = Thread(target=uploads.close)
        closing.start()
        uploads._closing.wait(10)
    closing.join(30)
    assert [each.status for each in uploads._jobs.values()] == ["queued", "queued"]
    assert first.client.get("/v1/documents").json()["total"] == 0
    second = serve(empty=["new"])
    for job in (begun, waiting):
        told = second.finished(job)
        assert (told["status"], told["added"]) == ("done", 1)
    names = [each["filename"] for each in second.client.get("/v1/documents").json()["data"]]
    assert names == ["a.txt", "b.txt"]
    assert list((store.uploads / ".incoming").iterdir()) == []


def test_a_job_that_ends_the_server_each_time_is_given_up(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "new-uploads" / ".incoming" / "job-1f"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("Oslo")
    (folder / ".job.json").write_text(json.dumps({"created": 1, "files": ["a.txt"], "attempts": 3}))
    escaping = folder.with_name("job-2f")
    escaping.mkdir()
    (escaping / ".job.json").write_text(json.dumps({"created": 1, "files": ["../a.txt"]}))
    server = serve(empty=["new"])
    told = server.finished({"id": "job-1f"})
    assert (told["status"], told["error"]["code"]) == ("failed", "job_failed")
    assert not folder.exists()
    assert not escaping.exists()


def test_the_page_escapes_and_highlights(serve: Serve) -> None:
    server = serve(empty=["new"])
    text = "<script>alert(1)</script> & 😀 the height is 330 m."
    job = server.client.post("/v1/documents", files={"files": ("<b>.txt", text.encode())}).json()
    assert server.finished(job)["status"] == "done"
    (document,) = server.client.get("/v1/documents").json()["data"]
    start = text.index("330")
    page = server.client.get(f"/documents/{document['id']}", params={"char": f"{start},{start + 5}"})
    assert "<mark>330 m</mark>" in page.text
    assert "<script>alert" not in page.text
    assert "&lt;b&gt;.txt" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert server.client.get(f"/documents/{document['id']}", params={"char": "9,1x"}).status_code == 400


def test_questions_are_answered_while_files_are_indexed(serve: Serve) -> None:
    server: Running = serve("docs")
    text = "\n\n".join(f"Section {n} tells of the river {n} and its bridges." for n in range(400))
    job = server.client.post("/v1/documents", files={"files": ("long.txt", text.encode())}).json()
    asked = server.client.get("/v1/search", params={"query": "river", "k": 1})
    assert asked.status_code == 200
    assert server.finished(job)["status"] == "done"
