"""``clara doctor``: is everything there that the other commands need? The checks themselves are in ``checks``."""

from __future__ import annotations

from dataclasses import asdict

import typer

from clara.cli.options import DEFAULT_STORE, JsonOption, ModelChoice, StoreOption
from clara.cli.terminal import print_json, write

_FAILED = 1


def doctor(
    *,
    store: StoreOption = DEFAULT_STORE,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Check the installation, the model and the store; say what to do about what is wrong.

    Downloads nothing. Ends with exit code 1 if a check fails; a warning is not a failure.

    --json prints {"ok", "checks": [{"name", "status", "detail", "remedy"}]}, status being ok, warn or fail.
    """
    from clara.cli.checks import run_checks  # noqa: PLC0415

    found = []
    for check in run_checks(store, choice):
        found.append(check)
        if not as_json:
            write(f"{check.status:<4}  {check.name}: {check.detail}")
            if check.remedy:
                write(f"      -> {check.remedy}")
    failed = any(check.status == "fail" for check in found)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in found]})
    if failed:
        raise typer.Exit(_FAILED)
