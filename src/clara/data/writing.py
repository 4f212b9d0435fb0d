"""Write records as JSON Lines, whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from clara.data.parsing import to_json
from clara.data.records import DataRecord
from clara.errors import RecordError


def write_records(path: Path, records: Iterable[DataRecord]) -> int:
    """Write records to a ``.jsonl`` or ``.jsonl.gz`` file that ``read_records`` reads back equal.

    Passages without pairs and without a paraphrase are read back with ``plain_passages`` only.

    Returns:
        The number of records written.

    Raises:
        RecordError: as ``write_jsonl``.
    """
    return write_jsonl(path, (to_json(record) for record in records))


def write_jsonl(path: Path, values: Iterable[Mapping[str, object]]) -> int:
    """Write JSON objects, one a line, UTF-8; gzipped if the name ends in ``.gz``.

    The file appears under its name only when complete: an error or a kill on the way leaves what was there before.
    Equal values give equal bytes (the gzip header holds no time).

    Args:
        path: the file; missing folders above it are made.
        values: objects of JSON types.

    Returns:
        The number of lines written.

    Raises:
        RecordError: the file cannot be written, or is not named ``*.jsonl`` or ``*.jsonl.gz``.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise RecordError(f"{path}: expected a file named *.jsonl or *.jsonl.gz")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            count = _write(file, values, packed=path.suffix == ".gz")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        # Nothing is left to remove after success, and an error on the way must not be replaced by one of the clean-up.
        with suppress(OSError):
            part.unlink()
    return count


def _write(file: BinaryIO, values: Iterable[Mapping[str, object]], *, packed: bool) -> int:
    if packed:
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as target:
            return _write(cast("BinaryIO", target), values, packed=False)
    count = 0
    for value in values:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        count += 1
    return count
