"""A stand-in for the hub's HTTP API over loopback: what huggingface-hub asks of it, and faults on demand.

Written from the requests that the client makes. Repositories live in memory: commits of whole file trees, branches,
large files by hash. Writing needs a token, reading a private repository too. A request it does not know is answered
404 and noted, so that a test can tell.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_only_for_tests"  # noqa: S105 - of the stand-in
LARGE = 1000
"""Bytes from which a file that is not text is stored by its hash, as the hub does with weights."""


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        seed = json.dumps([branch, len(self.commits), sorted(files)]).encode()
        sha = hashlib.sha1(seed, usedforsecurity=False).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class HubState:
    """What the stand-in holds and saw, and how it is to misbehave."""

    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    """Bytes after which a file's download breaks off, by path."""
    stall: dict[str, threading.Event] = field(default_factory=dict)
    """Downloads that stop half-way, by path, until the event is set."""
    url: str = ""

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repos[repo]
        return found.commits[found.branches[revision]]

    def add(self, repo: str, files: dict[str, bytes]) -> None:
        self.repos.setdefault(repo, Repo(private=False)).commit("main", files, "added")


@contextmanager
def hub_server() -> Iterator[HubState]:
    state = HubState()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        for event in state.stall.values():
            event.set()
        server.shutdown()
        server.server_close()
        thread.join()


def is_large(path: str, content: bytes) -> bool:
    return len(content) >= LARGE and not path.endswith((".json", ".md"))


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


ROUTES = [
    ("GET", r"/api/agent-harnesses", "nothing"),  # asked now and then, for the client's user agent
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>.+)", "branch"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>.+))?", "info"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>.+)", "preupload"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>.+)", "commit"),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", "put"),
    ("POST", r"/large/verify", "verify"),
    ("HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class _Handler(BaseHTTPRequestHandler):
    state: HubState
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        del format, args

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815 - as above

    def _handle(self) -> None:
        self._body = self._read()
        path = unquote(urlsplit(self.path).path)
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if method == self.command and found:
                getattr(self, f"_{name}")(**{key: value for key, value in found.groupdict().items() if value})
                return
        self.state.unknown.append(f"{self.command} {self.path}")
        self._fail(404, "EntryNotFound", "no such route")

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _fail(self, status: int, code: str, message: str) -> None:
        self._answer({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may_write(self) -> bool:
        if not self._known():
            self._fail(401, "", "Invalid username or password.")
        return self._known()

    def _repo(self, name: str) -> Repo | None:
        repo = self.state.repos.get(name)
        if repo is None or (repo.private and not self._known()):
            # As the hub does: a private repository looks like none to others.
            self._fail(404 if self._known() else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _json(self) -> Any:  # noqa: ANN401 - JSON
        return json.loads(self._body)

    def _nothing(self) -> None:
        self._answer({})

    def _create(self) -> None:
        if not self._may_write():
            return
        asked = self._json()
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        url = {"url": f"{self.state.url}/{name}"}
        if name in self.state.repos:
            self._answer({**url, "error": "You already created this model repo"}, 409)
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.state.repos[name] = Repo(private=bool(private))
        self.state.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._answer(url)

    def _validate(self) -> None:
        head = re.match(r"---\n(.*?)\n---", self._json()["content"], re.DOTALL)
        base = re.search(r"^base_model: (.*)$", head.group(1), re.MULTILINE) if head else None
        if base and not re.fullmatch(r"[\w.-]+/[\w.-]+", base.group(1).strip()):
            message = f'"base_model" with value "{base.group(1)}" is not valid. Use a model id.'
            self._answer({"errors": [{"message": message}], "warnings": []}, 400)
            return
        self._answer({"errors": [], "warnings": []})

    def _branch(self, repo: str, branch: str) -> None:
        if not self._may_write() or (found := self._repo(repo)) is None:
            return
        if branch in found.branches:
            self._fail(409, "", "Reference already exists")
            return
        found.branches[branch] = found.branches["main"]
        self._answer({})

    def _revision(self, repo: str, revision: str) -> tuple[Repo, str] | None:
        found = self._repo(repo)
        if found is None:
            return None
        sha = found.at(revision)
        if sha is None:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return found, sha

    def _info(self, repo: str, revision: str = "main") -> None:
        if (at := self._revision(repo, revision)) is not None:
            found, sha = at
            siblings = [{"rfilename": path} for path in sorted(found.commits[sha])]
            self._answer({"id": repo, "sha": sha, "private": found.private, "siblings": siblings, "tags": []})

    def _tree(self, repo: str, revision: str) -> None:
        if (at := self._revision(repo, revision)) is not None:
            found, sha = at
            self._answer([_entry(path, content) for path, content in sorted(found.commits[sha].items())])

    def _preupload(self, repo: str, revision: str) -> None:
        if not self._may_write() or (at := self._revision(repo, revision)) is None:
            return
        found, sha = at
        there = found.commits[sha]
        files = []
        for file in self._json()["files"]:
            path, size = file["path"], file["size"]
            mode = "lfs" if size >= LARGE and not path.endswith((".json", ".md")) else "regular"
            oid = None
            if path in there:
                content = there[path]
                oid = hashlib.sha256(content).hexdigest() if is_large(path, content) else _git_oid(content)
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": files})

    def _batch(self, repo: str) -> None:
        if not self._may_write() or self._repo(repo) is None:
            return
        objects = []
        for wanted in self._json()["objects"]:
            entry: dict[str, Any] = dict(wanted)
            if wanted["oid"] not in self.state.large:
                entry["actions"] = {
                    "upload": {"href": f"{self.state.url}/large/{wanted['oid']}"},
                    "verify": {"href": f"{self.state.url}/large/verify"},
                }
            objects.append(entry)
        self._answer({"transfer": "basic", "objects": objects})

    def _put(self, oid: str) -> None:
        if hashlib.sha256(self._body).hexdigest() != oid:
            self._fail(400, "", "hash mismatch")
            return
        self.state.large[oid] = self._body
        self._send(b"", 200, {})

    def _verify(self) -> None:
        asked = self._json()
        kept = self.state.large.get(asked["oid"])
        self._answer({}, 200 if kept is not None and len(kept) == asked["size"] else 404)

    def _commit(self, repo: str, revision: str) -> None:
        if not self._may_write() or (at := self._revision(repo, revision)) is None:
            return
        found, sha = at
        files, message = dict(found.commits[sha]), ""
        for line in self._body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.state.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        made = found.commit(revision, files, message)
        self._answer({"commitUrl": f"{self.state.url}/{repo}/commit/{made}", "commitOid": made, "success": True})

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        if (at := self._revision(repo, revision)) is None:
            return
        found, sha = at
        content = found.commits[sha].get(path)
        if content is None:
            self._fail(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_git_oid(content)}"', "Accept-Ranges": "bytes"}
        if is_large(path, content):
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        if self.command == "HEAD":
            self._send(b"", 200, {**headers, "Content-Length": str(len(content))})
            return
        self.state.fetched.append(path)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked.group(1)) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._stream(path, content[start:], 206 if asked else 200, headers)

    def _stream(self, path: str, content: bytes, status: int, headers: dict[str, str]) -> None:
        cut, stall = self.state.cut.get(path), self.state.stall.get(path)
        if cut is None and stall is None:
            self._send(content, status, headers)
            return
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[: cut if cut is not None else len(content) // 2])
        self.wfile.flush()
        if stall is not None:
            stall.wait(30)
        self.close_connection = True


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if is_large(path, content):
        sha = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 132}
    return entry
