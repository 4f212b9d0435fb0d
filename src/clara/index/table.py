"""The LanceDB table of a store: its columns, and every call to LanceDB.

Knows rows, filters and index kinds; in what order things happen so that a kill does no harm is ``store``'s business.
LanceDB starts threads of its own and does not survive ``fork``: start worker processes with ``spawn``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.expr import col
from lancedb.index import FTS, IvfRq
from lancedb.query import MatchQuery

from clara.errors import StoreError
from clara.index import codec
from clara.index.catalogue import Place
from clara.index.protocol import IndexRow, StoreModel, lexical_text
from clara.index.ranking import Ranked
from clara.records import FloatArray, Memory, Passage

TABLE = "passages"

# Rows of one commit: 75 MB of memories at 4x. Larger commits need more memory, smaller ones leave more files.
_COMMIT_ROWS = 1024
# Rows read at a time when all memories are read. LanceDB's own default of 8,192 is 600 MB at 4x.
_SCAN_ROWS = 128
# Ids in one filter or one fetch.
_FETCH_ROWS = 1024
# An old version of the table is deleted when it is this old; searches start from the newest, so none needs it longer.
_KEEP_VERSIONS = timedelta(minutes=5)
# Neighbours that the approximate index hands over for exact scoring, per passage wanted. RaBitQ keeps one bit a
# value: with 1 its ten best held half of the true ten on clustered memories of 36,864 values, with 4 all of them.
_REFINE = 4
# Cells of the approximate index, and training vectors for each: LanceDB's defaults (square root of rows, 256) would
# hold 12 GB of training vectors for 100,000 memories at 4x; these hold 300 MB.
_CELLS = 32
_CELL_SAMPLES = 64
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_INNER = re.compile(r"^(?:lance error: |LanceError\([^)]*\): |Generic \w+ error: )+|,?\s*\S*/\S+")


def schema(model: StoreModel) -> pa.Schema:
    """Columns of a store of ``model``.

    ``memory`` is both the stored memory and the search vector: the search vector is the flattened memory at unit
    length, the cosine does not depend on length, and a second column would double a store that is 98 % memories
    (73.7 kB a passage at 4x of SmolLM2-135M). ``norm`` is the flattened memory's length, so that a scan divides
    instead of measuring; ``lexical`` holds title and text, since a text index covers one column.
    """
    memory = pa.list_(pa.field("item", pa.float16(), nullable=False), model.values)
    text = ("id", "document", "title", "text", "lexical", "content_hash", "metadata", "fingerprint")
    return pa.schema(
        [pa.field(name, pa.string(), nullable=False) for name in text]
        + [pa.field(name, pa.int64(), nullable=False) for name in ("start", "end", "token_count")]
        + [pa.field("norm", pa.float32(), nullable=False), pa.field("memory", memory, nullable=False)]
    )


@contextmanager
def _lance_errors(action: str) -> Iterator[None]:
    """Turn what LanceDB raises (it has no tree of its own) into a store error."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        raise StoreError(
            f"{action} failed: {_reason(error)}; if the disk is full, make room and run the same command again, if its "
            "files are damaged, index the documents again into another --store"
        ) from error


def _reason(error: BaseException) -> str:
    """LanceDB's words without its files and the lines of its source, which say nothing to a user."""
    line = str(error).partition("\n")[0]
    numbered = _SYSTEM_ERROR.search(line)
    return os.strerror(int(numbered[1])) if numbered else _INNER.sub("", line).strip(" ,:;")


class PassageTable:
    """One open LanceDB table.

    Args:
        folder: the store's folder.
        model: the model whose memories it holds.
    """

    def __init__(self, folder: Path, model: StoreModel) -> None:
        self._model = model
        self._folder = folder / f"{TABLE}.lance"
        self._schema = schema(model)
        with _lance_errors(f"opening the store {folder}"):
            self._database: Any = lancedb.connect(str(folder))
            self._opened: Any = self._database.open_table(TABLE)

    @property
    def _table(self) -> Any:  # noqa: ANN401 - LanceDB is untyped here
        if self._opened is None:
            raise StoreError("the store is closed; open it again")
        return self._opened

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether the table has been made; what a creation leaves that was cut short does not count."""
        with _lance_errors(f"opening the store {folder}"):
            database: Any = lancedb.connect(str(folder))
            if TABLE not in database.list_tables().tables:
                return False
            try:
                database.open_table(TABLE)
            except ValueError:
                # A folder without a first version: LanceDB says "not found" and can create into it.
                return False
        return True

    @staticmethod
    def create(folder: Path, model: StoreModel) -> None:
        """Make the empty table; nothing happens if it is there."""
        with _lance_errors(f"creating the store {folder}"):
            lancedb.connect(str(folder)).create_table(TABLE, schema=schema(model), exist_ok=True)

    def refresh(self) -> int:
        """Go to the newest version, as written by any process, and return its number."""
        with _lance_errors("reading the store"):
            self._table.checkout_latest()
            return int(self._table.version)

    def count(self) -> int:
        """Number of rows."""
        with _lance_errors("reading the store"):
            return int(self._table.count_rows())

    def fragments(self) -> int:
        """Number of data files, about one a commit."""
        with _lance_errors("reading the store"):
            return int(self._table.stats()["fragment_stats"]["num_fragments"])

    def bytes_on_disk(self) -> int:
        """Size of the table's folder: rows, deleted rows, old versions and what killed processes left."""
        total = 0
        for path in self._folder.rglob("*"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue  # deleted by a writer meanwhile
        return total

    def upsert(self, rows: Sequence[IndexRow]) -> None:
        """Add rows, replacing those with the same id; each part of 1,024 rows is atomic."""
        for start in range(0, len(rows), _COMMIT_ROWS):
            batch = self._batch(rows[start : start + _COMMIT_ROWS])
            with _lance_errors("writing to the store"):
                merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(batch)

    def delete(self, passage_ids: Sequence[str]) -> None:
        """Delete rows by id."""
        for start in range(0, len(passage_ids), _FETCH_ROWS):
            with _lance_errors("deleting from the store"):
                self._table.delete(col("id").isin(passage_ids[start : start + _FETCH_ROWS]))

    def places(self) -> Iterator[tuple[str, Place]]:
        """Id and place of every row."""
        for batch in self._scan(["id", "document", "content_hash"], 8192):
            columns = (batch.column(name).to_pylist() for name in ("id", "document", "content_hash"))
            for passage_id, document, content_hash in zip(*columns, strict=True):
                yield passage_id, Place(document, content_hash)

    def memories(self) -> Iterator[tuple[list[str], FloatArray, codec.HalfArray]]:
        """All memories in parts of R rows: ids [R], norms float32 [R], stored memories fp16 [R, N * H]."""
        for batch in self._scan(["id", "norm", "memory"], _SCAN_ROWS):
            norms = batch.column("norm").to_numpy(zero_copy_only=False)
            yield batch.column("id").to_pylist(), norms, self._stored(batch)

    def stored(self, passage_ids: Sequence[str]) -> Iterator[tuple[str, codec.HalfArray]]:
        """Stored memories, fp16 [N * H], of the given ids, in no particular order; unknown ids are passed over."""
        for batch in self._by_id(passage_ids, ["id", "memory"]):
            yield from zip(batch.column("id").to_pylist(), self._stored(batch), strict=True)

    def rows(self, passage_ids: Sequence[str]) -> dict[str, IndexRow]:
        """Whole rows by id; unknown ids are missing from the result."""
        found: dict[str, IndexRow] = {}
        columns = [name for name in self._schema.names if name not in {"lexical", "norm"}]
        for batch in self._by_id(passage_ids, columns):
            plain = batch.drop_columns(["memory"]).to_pylist()
            for record, stored in zip(plain, self._stored(batch), strict=True):
                found[record["id"]] = self._row(record, stored)
        return found

    def search_text(self, query: str, limit: int) -> list[Ranked]:
        """BM25 over ``lexical``: at most ``limit`` passages, best first, ties in no particular order.

        The query is handed over as words to match, never as a query expression. Rows that are not in the text index
        yet are searched too (LanceDB reads them one by one).
        """
        # Half a surrogate pair cannot be written as UTF-8, and no stored word contains one.
        plain = query.encode("utf-8", "replace").decode("utf-8")
        words = MatchQuery(plain, "lexical")  # type: ignore[call-arg] # the defaults are pydantic's, unseen by mypy
        with _lance_errors("searching the store"):
            search = self._table.search(words, query_type="fts").select(["id", "_score"]).limit(limit)
            found = search.to_arrow().to_pylist()
        return [Ranked(record["id"], float(record["_score"])) for record in found]

    def nearest(self, vector: FloatArray, limit: int) -> list[str]:
        """Ids of about the nearest passages by cosine, through the approximate index."""
        with _lance_errors("searching the store"):
            search = self._table.search(vector, vector_column_name="memory").distance_type("cosine")
            search = search.nprobes(_CELLS).refine_factor(_REFINE).select(["id", "_distance"]).limit(limit)
            return [str(passage_id) for passage_id in search.to_arrow().column("id").to_pylist()]

    def unindexed(self, column: str) -> int | None:
        """Rows that the index on a column does not cover, ``None`` if there is no such index."""
        with _lance_errors("reading the store"):
            found = [index for index in self._table.list_indices() if list(index.columns) == [column]]
            if not found:
                return None
            return int(self._table.index_stats(found[0].name).num_unindexed_rows)

    def build_text_index(self) -> None:
        """Build the text index anew over all rows: its scores then depend on the rows alone, not on their history.

        English stemming, lower case, accents folded, stop words left out; no word positions (no phrase queries).
        """
        config = FTS(language="English", stem=True, lower_case=True, ascii_folding=True, remove_stop_words=True)
        with _lance_errors("building the text index"):
            self._table.create_index("lexical", config=config, replace=True)

    def build_vector_index(self) -> None:
        """Build the approximate index on the memories anew.

        IVF with RaBitQ, one bit a value: of LanceDB's kinds the one that is built in minutes at tens of thousands of
        values (product quantisation took fifty times as long and found less).
        """
        config = IvfRq(distance_type="cosine", num_partitions=_CELLS, sample_rate=_CELL_SAMPLES)
        with _lance_errors("building the vector index"):
            self._table.create_index("memory", config=config, replace=True)

    def compact(self) -> None:
        """Rewrite all rows into one file and delete old versions and leftovers; the caller holds the write lock."""
        with _lance_errors("compacting the store"):
            # Unverified files are those of writers that died: with the lock held there is no other writer.
            self._table.optimize(cleanup_older_than=_KEEP_VERSIONS, delete_unverified=True)

    def close(self) -> None:
        """Let LanceDB give its caches and files back; the table is not used afterwards."""
        # LanceDB's own handles have no close; they end with the last reference.
        self._opened = self._database = None

    def _scan(self, columns: list[str], batch_rows: int) -> Iterator[Any]:
        """Record batches of all rows."""
        with _lance_errors("reading the store"):
            yield from self._table.search().select(columns).to_batches(batch_rows)

    def _by_id(self, passage_ids: Sequence[str], columns: list[str]) -> Iterator[Any]:
        """Tables of the rows with the given ids."""
        for start in range(0, len(passage_ids), _FETCH_ROWS):
            part = list(passage_ids[start : start + _FETCH_ROWS])
            with _lance_errors("reading the store"):
                yield self._table.search().where(col("id").isin(part)).select(columns).to_arrow()

    def _stored(self, batch: Any) -> codec.HalfArray:  # noqa: ANN401 - a pyarrow batch or table; pyarrow is untyped
        """The memory column of a batch or table: fp16 [R, N * H]."""
        column = batch.column("memory")
        flat = column.combine_chunks().flatten() if isinstance(column, pa.ChunkedArray) else column.flatten()
        values: codec.HalfArray = flat.to_numpy(zero_copy_only=True)
        return values.reshape(-1, self._model.values)

    def _row(self, record: dict[str, Any], stored: codec.HalfArray) -> IndexRow:
        """A stored record as it was added, the memory rounded to fp16."""
        model = self._model
        passage = Passage(
            id=record["id"],
            document=record["document"],
            title=record["title"],
            text=record["text"],
            start=record["start"],
            end=record["end"],
        )
        values = codec.decode(stored, (model.memory_tokens, model.width))
        memory = Memory(values, record["fingerprint"], model.rate, record["token_count"])
        return IndexRow(passage, memory, record["content_hash"], json.loads(record["metadata"]))

    def _batch(self, rows: Sequence[IndexRow]) -> Any:  # noqa: ANN401 - a pyarrow table; pyarrow is untyped
        """Rows as an Arrow table."""
        stored = np.stack([codec.encode(row.memory.values, name=f"passage {row.passage.id}") for row in rows])
        columns: dict[str, Any] = {
            "id": [row.passage.id for row in rows],
            "document": [row.passage.document for row in rows],
            "title": [row.passage.title for row in rows],
            "text": [row.passage.text for row in rows],
            "lexical": [lexical_text(row.passage) for row in rows],
            "content_hash": [row.content_hash for row in rows],
            "metadata": [json.dumps(dict(row.metadata), sort_keys=True, ensure_ascii=False) for row in rows],
            "fingerprint": [row.memory.fingerprint for row in rows],
            "start": [row.passage.start for row in rows],
            "end": [row.passage.end for row in rows],
            "token_count": [row.memory.token_count for row in rows],
            "norm": codec.norms(stored),
            "memory": pa.FixedSizeListArray.from_arrays(
                pa.array(stored.reshape(-1)), type=self._schema.field("memory").type
            ),
        }
        try:
            return pa.table(columns, schema=self._schema)
        except UnicodeEncodeError as error:
            raise StoreError(f"a passage holds text that is not Unicode ({error.reason}); read it again") from error
