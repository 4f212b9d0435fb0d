"""Who may do what: keys, stores, rates, hosts, sizes; and that a key never learns of another key's store."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from serving import Running, Serve

from clara import errors
from clara.errors import ClaraError, ConfigError
from clara.serve.access import Caller, KeyEntry, Keyring, Limits, Links, check_origin, read_keys
from clara.serve.app import JsonLines, create_app
from clara.serve.faults import ApiError, _fault_of
from clara.serve.uploads import _safe_name

pytest_plugins = ["server_fixtures"]

STORES = ("red", "green", "blue")
HEIGHT = "How high is the Eiffel Tower?"


def entry(key: str, *stores: str, write: bool = True, rate: int | None = None) -> KeyEntry:
    rights: list[Any] = ["read", "write"] if write else ["read"]
    return KeyEntry(key=key, name=f"key of {key[:3]}", stores=list(stores), rights=rights, requests_a_minute=rate)


@pytest.fixture
def three(serve: Serve) -> Running:
    """Three stores, a key for every set of them."""
    sets = [
        entry(f"secret-{number:03b}", *(s for i, s in enumerate(STORES) if number >> i & 1)) for number in range(1, 8)
    ]
    return serve(*STORES, keys=[*sets, entry("secret-all", "*")])


def routes(store: str, document: str) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """A request of each family that names a store, or one of its documents."""
    ask: dict[str, Any] = {"model": store, "max_tokens": 1}
    return {
        "chat": ("POST", "/chat/completions", {"json": {**ask, "messages": [{"role": "user", "content": HEIGHT}]}}),
        "completions": ("POST", "/completions", {"json": {**ask, "prompt": HEIGHT}}),
        "responses": ("POST", "/responses", {"json": {**ask, "input": HEIGHT}}),
        "embeddings": ("POST", "/embeddings", {"json": {**ask, "input": HEIGHT}}),
        "search": ("GET", "/search", {"params": {"store": store, "query": HEIGHT}}),
        "vector store": ("POST", f"/vector_stores/{store}/search", {"json": {"query": HEIGHT}}),
        "list": ("GET", "/documents", {"params": {"store": store}}),
        "jobs": ("GET", "/documents/jobs", {"params": {"store": store}}),
        "upload": ("POST", "/documents", {"params": {"store": store}, "files": {"files": ("a.txt", b"text")}}),
        "upload by form": ("POST", "/documents", {"data": {"store": store}, "files": {"files": ("a.txt", b"text")}}),
        "model": ("GET", f"/models/{store}", {}),
        "read": ("GET", f"/documents/{document}", {}),
        "passages": ("GET", f"/documents/{document}/passages", {}),
        "compare": ("POST", "/compare", {"json": {**ask, "messages": [{"role": "user", "content": HEIGHT}]}}),
        "lens": ("GET", "/lens", {"params": {"store": store, "query": HEIGHT}}),
        "map": ("GET", "/map", {"params": {"store": store}}),
        "place": ("GET", "/map/question", {"params": {"store": store, "query": HEIGHT}}),
        "delete": ("DELETE", f"/documents/{document}", {}),
    }


@given(
    number=st.integers(1, 7),
    name=st.sampled_from([*STORES, "none", "re", "RED", "red*"]),
    route=st.sampled_from(sorted(routes("", ""))),
    prefix=st.sampled_from(["", "/v1"]),
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_store_of_another_key_is_as_one_that_there_is_not(
    three: Running, number: int, name: str, route: str, prefix: str
) -> None:
    mine = {store for i, store in enumerate(STORES) if number >> i & 1}
    assume(name not in mine)
    library = three.app.state.server.library
    document = library.documents(library.all()[name])[0].id if name in STORES else "doc-none"
    with three.with_key(f"secret-{number:03b}") as client:
        method, path, content = routes(name, document)[route]
        refused = client.request(method, prefix + path, **content)
        method, path, content = routes("absent", "doc-absent")[route]
        absent = client.request(method, prefix + path, **content)
        assert refused.status_code == absent.status_code == 404
        told = refused.text.replace(repr(name), "?")
        assert told == absent.text.replace("'absent'", "?")
        assert not any(store in told for store in set(STORES) - mine)
        assert {model["id"] for model in client.get(f"{prefix}/models").json()["data"]} == mine
        assert {each["name"] for each in client.get(f"{prefix}/stores").json()["data"]} == mine


@given(number=st.integers(1, 7), route=st.sampled_from(["chat", "completions", "search"]))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_citation_opens_without_a_key_and_opens_nothing_else(three: Running, number: int, route: str) -> None:
    mine = [store for i, store in enumerate(STORES) if number >> i & 1]
    library = three.app.state.server.library
    for store in mine:
        with three.with_key(f"secret-{number:03b}") as client:
            method, path, content = routes(store, "")[route]
            if "json" in content:
                content["json"]["clara"] = {"always_answer": True}
            told = client.request(method, path, **content).text
        address = urlsplit(re.findall(r'"url": ?"([^"]+)"', told)[0])
        opened = three.client.get(f"{address.path}?{address.query}")
        assert opened.status_code == 200
        assert "<mark>" in opened.text
        assert three.client.get(f"/v1{address.path}?{address.query}").status_code == 200
        fields = parse_qs(address.query)
        start, end = fields["char"][0].split(",")
        assert address.fragment == f"char={start},{end}"
        documents = [each.id for name in STORES for each in library.documents(library.all()[name])]
        for other in documents:
            if not address.path.endswith(other):
                assert three.client.get(f"/documents/{other}?{address.query}").status_code == 401
        later = int(fields["expires"][0]) + 1
        for wrong in (
            address.query.replace(f"char={start},", f"char={int(start) + 1},"),
            re.sub("expires=[0-9]+", f"expires={later}", address.query),
            address.query[:-1] + ("0" if address.query[-1] != "0" else "1"),
            re.sub("&signature=.*", "", address.query),
        ):
            assert three.client.get(f"{address.path}?{wrong}").status_code == 401, wrong
        for method, path in (("DELETE", address.path), ("GET", "/documents"), ("GET", "/models"), ("GET", "/metrics")):
            assert three.client.request(method, f"{path}?{address.query}").status_code == 401, path


def test_a_link_expires_and_is_one_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    links, others = Links(["red"], seconds=60), Links(["red"], seconds=60)
    query = links.query("red", "doc-1f", 3, 9).encode()
    caller = links.caller("/documents/doc-1f", query)
    assert caller is not None
    assert (caller.stores, caller.write) == (frozenset({"red"}), False)
    assert links.caller("/documents", query) is None
    assert links.caller("/documents/doc-1f", b"char=3,9") is None
    with pytest.raises(ApiError) as foreign:
        others.caller("/documents/doc-1f", query)
    assert foreign.value.code == "link_expired"
    now = time.time()
    monkeypatch.setattr("clara.serve.access.time.time", lambda: now + 62)
    with pytest.raises(ApiError) as expired:
        links.caller("/documents/doc-1f", query)
    assert (expired.value.status_code, expired.value.code) == (401, "link_expired")


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_person_who_follows_a_void_link_sees_a_page(shared: Running, serve: Serve, prefix: str) -> None:
    """A browser asks for HTML; a program gets OpenAI's shape all the same."""
    keyed = serve("docs", keys=[entry("secret-12345", "docs")])
    void = "char=1,2&expires=1&signature=0"
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for server, said, status in ((keyed, "his link has expired", 401), (shared, "here is no such document", 404)):
        path = f"{prefix}/documents/doc-1f?{void}"
        page = server.client.get(path, headers=browser)
        assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert said in page.text
        sheet = re.search('rel="stylesheet" href="([^"]+)"', page.text)
        assert sheet is not None
        assert server.client.get(str(page.url.join(sheet[1]))).status_code == 200
        assert said in server.client.get(path).json()["error"]["message"]
        assert "error" in server.client.get(f"{prefix}/documents/doc-1f/passages?{void}", headers=browser).json()


def test_without_keys_addresses_are_plain(shared: Running) -> None:
    found = shared.client.get("/search", params={"query": HEIGHT, "k": 1}).json()["results"][0]
    assert "signature" not in found["url"]


def test_other_sites_pages_may_use_it_only_where_they_are_named(serve: Serve) -> None:
    server = serve("docs", keys=[entry("secret-12345", "docs")], cors_origins=["https://chat.example.org"])
    headers = {
        "Origin": "https://chat.example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    asked = server.client.options("/v1/chat/completions", headers=headers)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://chat.example.org"
    assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
    evil = server.client.options("/v1/chat/completions", headers={**headers, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in evil.headers
    with server.with_key("secret-12345") as client:
        allowed = client.get("/v1/models", headers={"Origin": "https://chat.example.org"})
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example.org"
        assert "x-request-id" in allowed.headers["access-control-expose-headers"]
        assert client.get("/v1/models", headers={"Origin": "https://chat.example.org.evil"}).status_code == 403
    for wrong in ("*", "chat.example.org", "https://a.example/path", "https://u@a.example", "file:///x", "https://[a"):
        with pytest.raises(ConfigError, match="--cors-origin"):
            create_app([], cors_origins=[wrong])


def test_a_limit_is_told_in_the_unit_of_the_option_that_sets_it(shared: Running) -> None:
    refused = shared.client.post("/v1/chat/completions", content=b"x" * (3 << 19))
    assert refused.json()["error"]["message"] == "the body is larger than 1 MiB"


def test_a_body_that_stops_coming_is_given_up(serve: Serve) -> None:
    server = serve("docs", limits=Limits(silence=0.3))
    address = ("127.0.0.1", int(server.base.rpartition(":")[2]))
    with socket.create_connection(address, timeout=20) as client:
        head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(head + b"Content-Length: 100\r\n\r\n{")
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


def test_jobs_and_counts_are_not_told_to_other_keys(three: Running) -> None:
    with (
        three.with_key("secret-001") as red,
        three.with_key("secret-010") as green,
        three.with_key("secret-all") as all_,
    ):
        job = red.post("/v1/documents", files={"files": ("new.txt", b"A new text about Oslo.")}).json()
        for path in (f"/v1/documents/jobs/{job['id']}", f"/v1/documents/jobs/{job['id']}/events"):
            assert green.get(path).status_code == 404
            assert red.get(path).status_code == 200
        assert green.get("/metrics").status_code == 403
        counts = all_.get("/metrics").text
        assert "clara_requests_total" in counts
        assert not any(store in counts for store in STORES)


def test_keys_are_needed_compared_and_limited(serve: Serve) -> None:
    server = serve("docs", keys=[entry("reader-key", "docs", write=False), entry("slow-key-1", "docs", rate=3)])
    for headers in ({}, {"Authorization": "Bearer wrong-key"}, {"Authorization": "Basic reader-key"}):
        refused = server.client.get("/v1/models", headers=headers)
        assert refused.status_code == 401
        assert refused.headers["x-should-retry"] == "false"
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert server.client.get("/readyz").status_code == 200
    with server.with_key("reader-key") as reader:
        upload = reader.post("/v1/documents", files={"files": ("a.txt", b"text")})
        assert (upload.status_code, upload.json()["error"]["code"]) == (403, "read_only_key")
        first = reader.get("/v1/documents").json()["data"][0]["id"]
        assert reader.delete(f"/v1/documents/{first}").status_code == 403
    with server.with_key("slow-key-1") as slow:
        assert [slow.get("/v1/models").status_code for _ in range(4)] == [200, 200, 200, 429]
        last = slow.get("/v1/models")
        assert int(last.headers["retry-after"]) >= 1


def test_a_key_file_is_checked_and_its_keys_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    good = {"key": "secret-12345", "name": "a", "stores": ["*"]}
    path.write_text(json.dumps({"keys": [good]}))
    (read,) = read_keys(path)
    assert read.rights == ["read"]
    assert "secret-12345" not in repr(read) + repr(Keyring([read]).caller("Bearer secret-12345"))
    for wrong in ({**good, "key": "short"}, {**good, "right": ["read"]}, {**good, "rights": ["admin"]}):
        path.write_text(json.dumps({"keys": [wrong]}))
        with pytest.raises(ConfigError) as refused:
            read_keys(path)
        assert str(wrong["key"]) not in str(refused.value)
    path.write_text(json.dumps({"keys": [good, good]}))
    with pytest.raises(ConfigError, match="twice"):
        read_keys(path)


def test_only_loopback_without_a_key() -> None:
    with pytest.raises(ConfigError, match="--api-key"):
        create_app([], host="0.0.0.0")  # noqa: S104 - refused
    create_app([], host="::1")
    with pytest.raises(ConfigError, match="'other'"):
        create_app([], keys=[entry("secret-12345", "other")])


def test_foreign_hosts_and_origins_are_refused(shared: Running) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        refused = shared.client.get("/v1/models", headers=headers)
        assert refused.status_code == 403, headers
    assert shared.client.get("/v1/models", headers={"Origin": shared.base}).status_code == 200
    assert "access-control-allow-origin" not in shared.client.get("/v1/models").headers
    check_origin("anything.example:80", None, ())
    with pytest.raises(ApiError):
        check_origin("[::1", None, ("localhost",))


@pytest.mark.parametrize(
    "name",
    ["../a.txt", "a/b.txt", "a\\b.txt", "..", ".", "", ".hidden", "c:a.txt", "a\0.txt", "a\n.txt", "x" * 300, " a"],
)
def test_a_file_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ApiError) as refused:
        _safe_name(name)
    assert refused.value.code == "invalid_filename"


@given(st.text(max_size=300))
def test_a_name_that_is_taken_stays_in_its_folder(name: str) -> None:
    folder = Path("/uploads")
    try:
        taken = _safe_name(name)
    except ApiError:
        return
    assert (folder / taken).parent == folder
    assert (folder / taken).resolve() == folder / taken


def test_every_exception_has_a_status() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ClaraError)]
    assert len(kinds) > 20
    for kind in kinds:
        made = kind("a", "b") if kind is errors.MissingExtraError else kind("a")
        assert 400 <= _fault_of(made).status < 600
    assert _fault_of(errors.ConfigError("x")).status == 400
    assert _fault_of(errors.StoreModelError("/secret/path")).told is False


def test_a_bucket_fills_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("clara.serve.access.time.monotonic", lambda: now)
    caller = Caller("a", requests_a_minute=60)
    for _ in range(60):
        caller.count_request()
    with pytest.raises(ApiError):
        caller.count_request()
    now = 101.1
    caller.count_request()


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """What the server writes into its log meanwhile."""
    log, lines = logging.getLogger("clara.serve"), io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


def test_the_log_names_requests_and_no_content(serve: Serve) -> None:
    with logged() as lines:
        server = serve("docs", keys=[entry("secret-12345", "docs")])
        with server.with_key("secret-12345") as client:
            client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "zebra " * 200}]})
            answer = client.get("/v1/search", params={"query": "zebra", "k": 1})
            client.get("/v1/documents/doc-zebra")
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert answer.headers["x-request-id"] in {line.get("request_id") for line in told}
    assert "zebra" not in lines.getvalue()
    assert "secret-12345" not in lines.getvalue()


def test_what_asks_for_another_sites_page_has_an_id_and_a_line_in_the_log(serve: Serve) -> None:
    headers = {"Origin": "https://chat.example.org", "Access-Control-Request-Method": "POST"}
    with logged() as lines:
        server = serve("docs", keys=[entry("secret-12345", "docs")], cors_origins=["https://chat.example.org"])
        asked = [
            server.client.options("/v1/models", headers={**headers, **change})
            for change in (
                {},
                {"Origin": "https://evil.example"},
                {"Origin": "null"},
                {"Access-Control-Request-Method": "PUT"},
            )
        ]
        keyless = server.client.get("/v1/models", headers={"Origin": "https://chat.example.org"})
    assert [answer.status_code for answer in asked] == [200, 403, 403, 400]
    assert asked[1].json()["error"]["code"] == "forbidden_origin"
    told = {line["request_id"]: line["status"] for line in map(json.loads, lines.getvalue().splitlines())}
    assert [told.get(answer.headers["x-request-id"]) for answer in asked] == [200, 403, 403, 400]
    assert keyless.status_code == 401
    assert keyless.headers["access-control-allow-origin"] == "https://chat.example.org", "the page may read why"


@pytest.mark.parametrize("content", [False, True])
def test_questions_and_answers_are_logged_only_where_wanted(serve: Serve, *, content: bool) -> None:
    with logged() as lines:
        server = serve("docs", log_content=content)
        body = {"messages": [{"role": "user", "content": HEIGHT}], "max_tokens": 2, "clara": {"always_answer": True}}
        made = server.client.post("/v1/chat/completions", json=body)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    (answer,) = [line for line in told if line["message"] == "answer"]
    assert answer["request_id"] == made.headers["x-request-id"]
    assert (answer["store"], answer["answered"]) == ("docs", True)
    said = made.json()["choices"][0]["message"]["content"]
    assert (answer.get("question"), answer.get("answer")) == ((HEIGHT, said) if content else (None, None))
