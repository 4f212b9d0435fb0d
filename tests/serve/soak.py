"""Mixed traffic against a running server for a while: what its memory and its descriptors do.

    python tests/serve/soak.py [--minutes 30] [--clients 4]

starts ``clara serve`` with the embedded model. Exits with 1 where memory grew by 2 % or more after warming up, where
descriptors grew, or where an answer had a status that it should not have.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

import httpx2 as httpx
import psutil

from clara.cli.bench import _sample_server
from clara.cli.options import ModelChoice

QUESTIONS = (
    "Who discovered penicillin?",
    "How high is the Eiffel Tower?",
    "Who was the first official world chess champion?",
    "Where does coffee come from?",
)
EXPECTED = frozenset({200, 202, 400, 404, 409, 413, 429})
WARM_SHARE = 1 / 3
"""Of the time: caches fill, every route has been asked, the allocator has its arenas."""
MOST_GROWTH = 0.02
_SAMPLE_SECONDS = 0.5


@dataclass
class SoakResult:
    """What the server did.

    Attributes:
        seconds: of traffic.
        requests: by what was asked.
        statuses: of their answers; 0 is a connection that broke.
        rss_warm: resident bytes after warming up, the median of a sixth of the time.
        rss_end: those of the last sixth.
        descriptors_warm: open files and sockets, the same way.
        descriptors_end: those of the end.
        rss_by_minute: resident bytes at the end of each minute.
    """

    seconds: float
    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    rss_warm: float = 0.0
    rss_end: float = 0.0
    descriptors_warm: float = 0.0
    descriptors_end: float = 0.0
    rss_by_minute: list[int] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Of memory after warming up."""
        return self.rss_end / self.rss_warm - 1

    @property
    def unexpected(self) -> dict[int, int]:
        """Answers that there should not be."""
        return {status: number for status, number in self.statuses.items() if status not in EXPECTED}

    @property
    def passed(self) -> bool:
        """True if memory and descriptors stayed level, and nothing was answered that should not be."""
        level = self.descriptors_end <= self.descriptors_warm + 2
        return self.growth < MOST_GROWTH and level and not self.unexpected

    def told(self) -> str:
        """All of it as JSON."""
        further = {"growth": self.growth, "unexpected": self.unexpected, "passed": self.passed}
        return json.dumps({**vars(self), **further}, indent=1)


class _Client:
    """One of the clients: does one thing after another, drawn at random."""

    def __init__(self, url: str, number: int, result: SoakResult, tokens: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=600)
        self._random = random.Random(number)
        self._number = number
        self._result = result
        self._tokens = tokens
        self._files = 0

    def run(self, until: float) -> None:
        things = (
            (8, self.ask), (4, self.stream), (2, self.leave), (6, self.search), (3, self.embed), (2, self.read),
            (2, self.upload), (2, self.remove), (2, self.wrong), (2, self.look),
        )  # fmt: skip
        weights, doing = [weight for weight, _ in things], [thing for _, thing in things]
        with self._http:
            while time.monotonic() < until:
                (thing,) = self._random.choices(doing, weights)
                self._result.requests[thing.__name__] += 1
                try:
                    thing()
                except httpx.TransportError:
                    self._result.statuses[0] += 1

    def ask(self) -> None:
        self._count(self._http.post("/v1/chat/completions", json=self._body()))

    def stream(self) -> None:
        with self._http.stream("POST", "/v1/chat/completions", json=self._body(stream=True)) as answer:
            text = answer.read().decode()
            self._count(answer)
        if answer.status_code == 200 and not text.endswith("data: [DONE]\n\n"):
            self._result.statuses[0] += 1

    def leave(self) -> None:
        with self._http.stream("POST", "/v1/chat/completions", json=self._body(stream=True)) as answer:
            for _ in answer.iter_raw():
                break
            self._count(answer)

    def search(self) -> None:
        mode = self._random.choice(["hybrid", "latent", "text"])
        self._count(self._http.get("/v1/search", params={"query": self._question(), "k": 3, "mode": mode}))

    def embed(self) -> None:
        self._count(self._http.post("/v1/embeddings", json={"input": [self._question()] * 2}))

    def read(self) -> None:
        documents = self._http.get("/v1/documents").json()["data"]
        if documents:
            self._count(self._http.get(f"/documents/{self._random.choice(documents)['id']}?char=3,40"))

    def upload(self) -> None:
        self._files += 1
        text = " ".join(f"Note {self._random.randrange(10**6)} of {self._number} tells of a bridge." for _ in range(12))
        name = f"note-{self._number}-{self._files % 5}.txt"
        taken = self._http.post("/v1/documents", files={"files": (name, text.encode())})
        self._count(taken)
        if taken.status_code == 202:
            self._count(self._http.get(f"/v1/documents/jobs/{taken.json()['id']}/events"))

    def remove(self) -> None:
        mine = [
            each
            for each in self._http.get("/v1/documents").json()["data"]
            if each["filename"].startswith(f"note-{self._number}-")
        ]
        if mine:
            self._count(self._http.delete(f"/v1/documents/{mine[0]['id']}"))

    def wrong(self) -> None:
        bodies = (b"{", b"{}", b'{"messages": []}', b'{"messages": [{"role": "user", "content": " "}]}')
        json_type = {"content-type": "application/json"}
        self._count(self._http.post("/v1/chat/completions", content=self._random.choice(bodies), headers=json_type))
        self._count(self._http.get("/v1/documents/doc-none"))

    def look(self) -> None:
        for path in ("/v1/models", "/healthz", "/readyz", "/metrics"):
            self._count(self._http.get(path))

    def _count(self, answer: httpx.Response) -> None:
        self._result.statuses[answer.status_code] += 1

    def _question(self) -> str:
        return self._random.choice(QUESTIONS)

    def _body(self, *, stream: bool = False) -> dict[str, object]:
        context = self._random.choice(["auto", "memory", "text"])
        message = {"role": "user", "content": self._question()}
        return {
            "messages": [message], "stream": stream, "max_tokens": self._tokens, "clara": {"context": context, "k": 2}
        }  # fmt: skip


def soak(url: str, server: psutil.Process, *, seconds: float, clients: int = 4, tokens: int = 16) -> SoakResult:
    """Let clients do what clients do, and watch the server's process.

    Args:
        url: the server's address; it needs no key.
        server: its process.
        seconds: of traffic.
        clients: at once.
        tokens: longest answer.
    """
    result = SoakResult(seconds)
    started = time.monotonic()
    workers = [
        threading.Thread(target=_Client(url, number, result, tokens).run, args=(started + seconds,))
        for number in range(clients)
    ]
    for worker in workers:
        worker.start()
    samples: list[tuple[float, int, int]] = []
    while any(worker.is_alive() for worker in workers):
        samples.append(((time.monotonic() - started) / seconds, server.memory_info().rss, server.num_fds()))
        time.sleep(_SAMPLE_SECONDS)
    warm = [sample for sample in samples if WARM_SHARE <= sample[0] < WARM_SHARE + 1 / 6] or samples[-1:]
    end = [sample for sample in samples if sample[0] >= 5 / 6] or samples[-1:]
    result.rss_warm, result.rss_end = (median(rss for _, rss, _ in each) for each in (warm, end))
    result.descriptors_warm, result.descriptors_end = (median(count for *_, count in each) for each in (warm, end))
    result.rss_by_minute = list({int(share * seconds / 60): rss for share, rss, _ in samples}.values())
    return result


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    before = {child.pid for child in psutil.Process().children()}
    with _sample_server(ModelChoice("smollm2-135m"), waiting=16) as url:
        (server,) = [child for child in psutil.Process().children() if child.pid not in before]
        result = soak(url, server, seconds=60 * given.minutes, clients=given.clients)
    sys.stdout.write(result.told() + "\n")
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
