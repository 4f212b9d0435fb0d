"""A store on a disk that fills up, or that cannot be written to: one clear error, nothing lost, and it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import rooms  # noqa: F401 - sets the path of the next ones
from index_rows import MODEL
from index_sequence import bring_up_to_date, contents, many

from clara.index import LanceStore

DOCUMENTS = 12
PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from index_rows import MODEL
from index_sequence import bring_up_to_date, many
from clara.errors import ClaraError
from clara.index import LanceStore
{before}
try:
    with LanceStore.create(Path({folder!r}), MODEL) as store:
        bring_up_to_date(store, many("v2", {documents}))
except ClaraError as error:
    print(error)
    sys.exit(3)
"""


def run(folder: Path, before: str) -> subprocess.CompletedProcess[str]:
    """Bring a store up to date in a process that something was done to before."""
    paths = [path for path in sys.path if path]
    program = PROGRAM.format(paths=paths, before=textwrap.dedent(before), folder=str(folder), documents=DOCUMENTS)
    return subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)


def filled(folder: Path, version: str) -> dict[str, object]:
    with LanceStore.create(folder, MODEL) as store:
        bring_up_to_date(store, many(version, DOCUMENTS))
        return contents(store)


@pytest.mark.parametrize("room", [6_000])
def test_a_full_disk_loses_nothing(room: int, tmp_path: Path) -> None:
    """No file may grow beyond ``room`` bytes, as on a disk that has no more."""
    folder = tmp_path / "store"
    filled(folder, "v1")
    full = f"""
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY))
    """
    failed = run(folder, full)
    assert failed.returncode == 3, failed.stdout + failed.stderr
    assert len(failed.stdout.strip().splitlines()) == 1, "one line"
    assert "/rustc/" not in failed.stdout
    with LanceStore.open(folder, MODEL) as left:
        for uri, entry in left.documents().items():
            assert len(left.passage_ids(uri)) >= entry.passages, "what is complete is whole"
    wanted = filled(tmp_path / "undisturbed", "v1") and filled(tmp_path / "undisturbed", "v2")
    assert filled(folder, "v2") == wanted, "the same calls go on where it stopped"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_store_that_cannot_be_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    before = filled(folder, "v1")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in [tmp_path, *tmp_path.parents[:3]]:
        if path != Path(path.anchor) and path != Path("/tmp"):  # noqa: S108 - what pytest makes below it
            path.chmod(0o755)
    refused = run(folder, "import os\nos.setuid(65534)")
    assert refused.returncode == 3, refused.stdout + refused.stderr
    assert str(folder) in refused.stdout
    with LanceStore.open(folder, MODEL) as left:
        assert contents(left) == before
