"""Requests drawn from the server's own description (schemathesis), fitting and not: none may be the server's fault."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation

_ROUNDS = 2  # over all operations and both modes, at which a strategy that is built again costs little


@dataclass
class Fuzzed:
    """What came of it.

    Attributes:
        cases: requests that were sent.
        statuses: of their answers.
        failures: requests whose answer was a 5xx, or that got none.
    """

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def fuzz(base: str, *, store: str, cases: int) -> Fuzzed:
    """Send cases to a server, in rounds over all operations, until there are enough.

    Args:
        base: the server's address; it needs no key.
        store: a store of it, put into half of the cases that name one, lest all end at a store that there is not.
        cases: at least.
    """
    result = Fuzzed()
    operations = [
        each.ok()  # type: ignore[union-attr]  # our own description is valid
        for each in schemathesis.openapi.from_url(f"{base}/openapi.json").get_all_operations()
    ]
    documents = [each["id"] for each in httpx.get(f"{base}/v1/documents", params={"store": store}).json()["data"]]
    real = {"store": [store], "model": [store], "name": [store], "document_id": documents}
    a_round = 1 + cases // (_ROUNDS * 2 * len(operations))
    with requests.Session() as session:
        for number in range(1, 10_000):
            for operation in operations:
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    _round(result, operation, mode, session, real, number, a_round)
                    if result.cases >= cases:
                        return result
    return result


def _round(
    result: Fuzzed,
    operation: APIOperation[Any, Any, Any, Any],
    mode: GenerationMode,
    session: requests.Session,
    real: dict[str, list[str]],
    number: int,
    a_round: int,
) -> None:
    chance = random.Random(number)
    if operation.method.upper() == "DELETE":  # a store that is emptied has nothing to answer from
        real = {name: values for name, values in real.items() if name != "document_id"}

    @seed(number)
    @settings(
        max_examples=a_round,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Case[Any]) -> None:
        if mode is GenerationMode.POSITIVE:
            for fields in (case.path_parameters, case.query, case.body):
                _name_real_ones(fields, real, chance)
        result.cases += 1
        try:
            answer = case.call(session=session, timeout=60)
        except requests.RequestException as error:
            result.failures.append(f"{case.method} {case.formatted_path}: {error!r}")
            return
        result.statuses[answer.status_code] += 1
        if answer.status_code >= 500:
            result.failures.append(f"{answer.status_code} {case.as_curl_command()}: {answer.text[:300]}")

    with suppress(Unsatisfiable):  # an operation that takes nothing cannot be given what does not fit
        send()


def _name_real_ones(fields: object, real: dict[str, list[str]], chance: random.Random) -> None:
    if not isinstance(fields, dict):
        return
    for name, values in real.items():
        if name in fields and values and chance.random() < 0.5:
            fields[name] = chance.choice(values)
