"""A few seconds of ``make soak``, and a few hundred cases of ``make schemathesis``."""

from __future__ import annotations

import os
import sys

import psutil
from fuzz_openapi import fuzz
from serving import Serve
from soak import soak

pytest_plugins = ["server_fixtures"]


def test_mixed_traffic_is_answered_and_leaves_nothing_open(serve: Serve) -> None:
    server = serve("docs")
    seconds = float(os.environ.get("CLARA_SOAK_SECONDS", "5"))
    result = soak(server.base, psutil.Process(), seconds=seconds, clients=3, tokens=4)
    sys.stdout.write(result.told() + "\n")
    assert result.unexpected == {}
    assert result.requests.keys() >= {"ask", "stream", "search", "upload"}
    assert result.descriptors_end <= result.descriptors_warm + 20  # clients live in this process too
    assert server.app.state.server.queue.waiting == 0


def test_no_request_of_the_description_is_the_servers_fault(serve: Serve) -> None:
    cases = int(os.environ.get("CLARA_FUZZ_CASES", "200"))
    result = fuzz(serve("docs", "other").base, store="docs", cases=cases)
    sys.stdout.write(f"{result.cases} cases: {dict(result.statuses)}\n")
    assert result.failures == []
    assert result.cases >= cases
    assert result.statuses[200] > cases / 20
