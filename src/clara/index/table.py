"""The LanceDB table of a store: its columns, and every call to LanceDB.

Knows rows, filters and index kinds; in what order things happen so that a kill does no harm is ``store``'s business.
LanceDB starts threads of its own, which do not survive ``fork``: a process that was forked is refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.expr import col
from lancedb.index import FTS
from lancedb.query import MatchQuery

from clara.errors import StoreError
from clara.index.codecs import Codec, make_codec
from clara.index.ranking import STOP_WORDS, Ranked, SearchColumn, search_column
from clara.index.rows import GROUPS, IndexRow, StoreModel, checksums, damaged, is_lexical_text, lexical_text
from clara.records import DocumentSize, FloatArray, Memory, Passage, StoredText

_TABLE = "passages"
TABLE_FOLDER = f"{_TABLE}.lance"

# Bytes of one commit. Larger ones need more memory, smaller ones leave more files.
_COMMIT_BYTES = 64 << 20
# Bytes read at a time when all rows are read. LanceDB's own default of 8,192 rows would be 600 MB at 4x.
_SCAN_BYTES = 8 << 20
# Age of versions that compacting keeps: none but the newest. LanceDB warns of 0.
_KEEP_VERSIONS = timedelta(milliseconds=1)
# Ids in one filter or one fetch.
_FETCH_ROWS = 1024
# Search vectors in one fetch: some MiB.
_TAKE_ROWS = 8192
# Memories decoded at a time: what is compared with them then is still in a core's cache at 16x.
_DECODED_ROWS = 32
_SEARCH_COLUMNS = ("id", "search", "search_crc")
# A row's text twice, ids and numbers, and its share of the text index; only for estimates.
_TEXT_BYTES = 4096
# LanceDB keeps what it has read of indexes up to this size; its own default is 6 GB.
_INDEX_CACHE_BYTES = 1 << 30
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_INNER = re.compile(r"^(?:lance error: |LanceError\([^)]*\): |Generic \w+ error: )+|,?\s*\S*/\S+")

_TEXT_COLUMNS = ("id", "document", "title", "text", "lexical", "content_hash", "metadata")
_NUMBER_COLUMNS = ("start", "end", "token_count")
_PASSAGE_COLUMNS = ("id", "document", "title", "text", "start", "end")
_FORMAT_1_ROWS = 256
# Where a message of LanceDB's says which line of its source it comes from.
_SOURCE_LINE = re.compile(r",? ?\S+\.rs:\d+(:\d+)?")
_PROCESS = os.getpid()


@dataclass(frozen=True, slots=True)
class Format:
    """Form of a store's rows: model, codec and search column."""

    model: StoreModel
    codec: Codec
    column: SearchColumn

    @classmethod
    def of(cls, folder: Path, model: StoreModel, codec: str) -> Format:
        """That of a store's folder, by the name of its codec."""
        made = make_codec(codec, (model.memory_tokens, model.width), folder)
        return cls(model, made, search_column(model))

    @property
    def row_bytes(self) -> int:
        """About what a row takes."""
        return self.codec.memory_bytes + 2 * self.column.width + _TEXT_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class Scanned:
    """R rows of the search column: where they lie [R], ids [R], and vectors fp16 [R, S]."""

    places: npt.NDArray[np.uint64]
    ids: list[str]
    vectors: npt.NDArray[np.float16]

    @classmethod
    def joined(cls, parts: Iterable[Scanned]) -> Scanned:
        """Parts of a search column as one."""
        parts = list(parts)
        if not parts:
            return cls(np.empty(0, dtype=np.uint64), [], np.empty((0, 1), dtype=np.float16))
        places = np.concatenate([part.places for part in parts])
        ids = [passage_id for part in parts for passage_id in part.ids]
        return cls(places, ids, np.concatenate([part.vectors for part in parts]))


def _schema_of(form: Format) -> pa.Schema:
    """Columns of a store: ``lexical`` is what a text index covers, ``*_crc`` are checksums."""
    search = pa.list_(pa.field("item", pa.float16(), nullable=False), form.column.width)
    types = {
        **dict.fromkeys(_TEXT_COLUMNS, pa.string()),
        **dict.fromkeys(_NUMBER_COLUMNS, pa.int64()),
        "search": search,
        "memory": pa.binary(form.codec.memory_bytes),
        **dict.fromkeys(GROUPS, pa.uint32()),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


@contextmanager
def _lance_errors(action: str) -> Iterator[None]:
    """Around every call to LanceDB: what it raises (it has no tree of its own) becomes a store error."""
    if os.getpid() != _PROCESS:
        raise StoreError(
            f"{action} failed: this process was forked from one that had loaded the store's engine, whose threads do "
            'not survive that; start it with multiprocessing.get_context("spawn") and open the store in it'
        )
    try:
        yield
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        raise _store_error(action, error) from error
    except BaseException as error:
        # A panic in LanceDB's own code, as on damaged files; its classes cannot be imported, and one is no Exception.
        if type(error).__name__ not in {"PanicException", "RustPanic"}:
            raise
        raise _store_error(action, error) from error


def _store_error(action: str, error: BaseException) -> StoreError:
    return StoreError(
        f"{action} failed: {_reason(error)}; if the disk is full, make room and run the same command again, if its "
        "files are damaged, index the documents again into another --store"
    )


def _reason(error: BaseException) -> str:
    """LanceDB's words without its files and the lines of its source, which say nothing to a user."""
    line = _SOURCE_LINE.sub("", str(error).partition("\n")[0])
    numbered = _SYSTEM_ERROR.search(line)
    return os.strerror(int(numbered[1])) if numbered else _INNER.sub("", line).strip(" ,:;")


class PassageTable:
    """An open LanceDB table. Whatever reads rows raises a ``StoreError`` where one is damaged.

    Args:
        folder: the store's folder.
        form: how its rows are written.
    """

    def __init__(self, folder: Path, form: Format) -> None:
        self._form = form
        self._folder = folder / TABLE_FOLDER
        self._schema = _schema_of(form)
        with _lance_errors(f"opening the store {folder}"):
            self._database, self._opened = self._open()

    def _open(self) -> tuple[Any, Any]:
        """LanceDB's connection with caches of its own, and the table."""
        session = lancedb.Session(index_cache_size_bytes=_INDEX_CACHE_BYTES)
        database: Any = lancedb.connect(str(self._folder.parent), session=session)
        return database, database.open_table(_TABLE)

    @property
    def _table(self) -> Any:  # noqa: ANN401 - LanceDB is untyped here
        if self._opened is None:
            raise StoreError("the store is closed; open it again")
        return self._opened

    @staticmethod
    def exists(folder: Path) -> bool:
        """True if the table has been made; what a creation leaves that was cut short does not count."""
        with _lance_errors(f"opening the store {folder}"):
            database: Any = lancedb.connect(str(folder))
            if _TABLE not in database.list_tables().tables:
                return False
            try:
                database.open_table(_TABLE)
            except ValueError:
                # A folder without a first version: LanceDB says "not found" and can create into it.
                return False
        return True

    @staticmethod
    def create(folder: Path, form: Format) -> None:
        """Make the empty table; nothing happens if it is there."""
        with _lance_errors(f"creating the store {folder}"):
            lancedb.connect(str(folder)).create_table(_TABLE, schema=_schema_of(form), exist_ok=True)

    def refresh(self) -> int:
        """Go to the newest version, as written by any process, and return its number."""
        with _lance_errors("reading the store"):
            self._table.checkout_latest()
            return int(self._table.version)

    def count(self) -> int:
        """Number of rows."""
        with _lance_errors("reading the store"):
            return int(self._table.count_rows())

    def count_after(self, place: int) -> int:
        """Number of rows that lie behind a place."""
        return (
            self.count()
            if place < 0
            else sum(batch.num_rows for batch in self._scan(["key_crc"], 1 << 16, only=col("_rowid") > place))
        )

    def fragments(self) -> int:
        """Number of data files, about one a commit."""
        with _lance_errors("reading the store"):
            return int(self._table.stats()["fragment_stats"]["num_fragments"])

    def live_bytes(self) -> int:
        """Size of the files that the newest version reads, deleted rows in them included."""
        with _lance_errors("reading the store"):
            return int(self._table.stats()["total_bytes"])

    def bytes_on_disk(self) -> int:
        """Size of the table's folder: rows, deleted rows, old versions and what killed processes left."""
        total = 0
        for path in self._folder.rglob("*"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue  # deleted by a writer meanwhile
        return total

    def append(self, rows: Sequence[IndexRow]) -> None:
        """Add rows whose ids are not in the table; each part of some MiB is atomic."""
        for batch in self._batches(rows):
            with _lance_errors("writing to the store"):
                self._table.add(batch)

    def replace(self, rows: Sequence[IndexRow]) -> None:
        """Put rows in the place of those with the same ids; reads the ids of all rows."""
        for batch in self._batches(rows):
            with _lance_errors("writing to the store"):
                merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(batch)

    def delete(self, keys: Sequence[str] | Sequence[int], *, by: str = "id") -> None:
        """Delete rows by id, or by the checksum ``key_crc`` that stands in rows whose keys are damaged."""
        for start in range(0, len(keys), _FETCH_ROWS):
            with _lance_errors("deleting from the store"):
                self._table.delete(col(by).isin(list(keys[start : start + _FETCH_ROWS])))

    def keys(self) -> Iterator[tuple[str, str, str] | int]:
        """Id, document and content hash of every row that is whole, and of those that are not the key checksum."""
        for batch in self._scan([*GROUPS["key_crc"], "key_crc"], 8192):
            columns = _columns(batch)
            names = zip(columns["id"], columns["document"], columns["content_hash"], columns["key_crc"], strict=True)
            for (*key, checksum), bad in zip(names, damaged(columns, "key_crc"), strict=True):
                yield checksum if bad else (key[0], key[1], key[2])

    def search_vectors(self, *, after: int = -1, within: Collection[str] | None = None) -> Iterator[Scanned]:
        """The search column, in parts.

        Args:
            after: of rows that lie behind this place: that were added since the row there was.
            within: of passages of these documents alone.
        """
        rows = max(1, _SCAN_BYTES // (2 * self._form.column.width))
        only = col("_rowid") > after if after >= 0 else None
        for batch in self._scan([*_SEARCH_COLUMNS], rows, places=True, only=only, within=within):
            yield self._scanned(_columns(batch))

    def search_vectors_at(self, places: Sequence[int]) -> Iterator[Scanned]:
        """The search column of the rows at the given places, in no particular order; none for rows that are gone."""
        for start in range(0, len(places), _TAKE_ROWS):
            yield self._scanned(self._take(places[start : start + _TAKE_ROWS], [*_SEARCH_COLUMNS]))

    def places(self) -> npt.NDArray[np.uint64]:
        """Where the rows lie: uint64 [R], rising."""
        batches = self._scan(["key_crc"], 1 << 16, places=True)  # LanceDB reads all columns where none is named
        parts = [np.asarray(batch.column("_rowid"), dtype=np.uint64) for batch in batches]
        return np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.uint64)

    def memories(self, places: Sequence[int]) -> Iterator[tuple[dict[str, int], FloatArray]]:
        """Ids with their places [R], and memories float32 [R, N, H], of the given rows, in no particular order.

        In parts; rows that are gone are left out.
        """
        rows = max(1, _SCAN_BYTES // (4 * self._form.model.values))
        for start in range(0, len(places), rows):
            columns = self._take(places[start : start + rows], ["id", "memory", "memory_crc"])
            _check(columns, ("memory_crc",))
            found = dict(zip(columns["id"], columns["_rowid"], strict=True))
            for first in range(0, len(found), _DECODED_ROWS):
                part = slice(first, first + _DECODED_ROWS)
                yield dict(list(found.items())[part]), self._form.codec.decode(columns["memory"][part])

    def rows(self, places: Sequence[int]) -> dict[str, IndexRow]:
        """Whole rows by id."""
        found: dict[str, IndexRow] = {}
        for start in range(0, len(places), _FETCH_ROWS):
            found.update(self._whole(self._take(places[start : start + _FETCH_ROWS], self._row_columns())))
        return found

    def rows_by_id(self, passage_ids: Sequence[str]) -> dict[str, IndexRow]:
        """As :meth:`rows`, found by reading the ids of all rows; unknown ids are missing from the result."""
        found: dict[str, IndexRow] = {}
        for start in range(0, len(passage_ids), _FETCH_ROWS):
            part = list(passage_ids[start : start + _FETCH_ROWS])
            with _lance_errors("reading the store"):
                table = self._table.search().where(col("id").isin(part)).select(self._row_columns()).to_arrow()
            found.update(self._whole(_columns(table)))
        return found

    def texts(self, document: str, content_hash: str) -> list[StoredText]:
        """A version of a document without its memories, in order."""
        columns = [name for name in self._row_columns() if name not in {"memory", "memory_crc"}]
        wanted = (col("document") == document) & (col("content_hash") == content_hash)
        with _lance_errors("reading the store"):
            read = _columns(self._table.search().where(wanted).select(columns).to_arrow())
        _check(read, ("key_crc", "text_crc"))
        return [
            StoredText(_passage(record), record["token_count"], json.loads(record["metadata"]))
            for record in sorted(_records(read), key=lambda record: record["start"])
        ]

    def sizes(self) -> dict[tuple[str, str], DocumentSize]:
        """Size of each document by uri and version; read without its texts, so checksums are not compared."""
        with _lance_errors("reading the store"):
            rows = self._table.search().select(["document", "content_hash", "end", "token_count"]).to_arrow()
            grouped = rows.group_by(["document", "content_hash"])
            sums = grouped.aggregate([("end", "max"), ("token_count", "sum")]).to_pylist()
        # Passages follow each other without a gap, so the last one's end is the length of the text.
        return {
            (each["document"], each["content_hash"]): DocumentSize(each["end_max"], each["token_count_sum"])
            for each in sums
        }

    def all_rows(self) -> Iterator[IndexRow]:
        """Every row."""
        for batch in self._scan(self._row_columns(), max(1, _SCAN_BYTES // self._form.row_bytes)):
            yield from self._whole(_columns(batch)).values()

    def damaged_rows(self) -> Iterator[tuple[str, str]]:
        """Id and document, as far as they can be read, of each row that is not what was written."""
        for batch in self._scan(self._schema.names, max(1, _SCAN_BYTES // self._form.row_bytes)):
            read = _columns(batch)
            bad = np.logical_or.reduce([damaged(read, group) for group in GROUPS])
            rows = zip(read["title"], read["text"], read["lexical"], strict=True)
            bad |= np.array([not is_lexical_text(lexical, text, title) for title, text, lexical in rows], dtype=bool)
            yield from ((read["id"][i], read["document"][i]) for i in np.flatnonzero(bad))

    def search_text(self, question: str, limit: int, *, within: Collection[str] | None = None) -> list[Ranked]:
        """BM25 of stems: at most ``limit`` passages with their words, ties in no particular order.

        ``within`` names documents whose passages alone are found; scores are those among all passages.

        The words of ``question``, as ``lexical_text`` makes it, are handed over to be matched, never as a query
        expression. Rows that are not in the text index yet are searched too (LanceDB reads them one by one).

        No checksum covers words, so whoever reads a passage compares them with its text. All that a text's checksum
        covers would take a third of the time of a search.
        """
        query = MatchQuery(question, "lexical")  # type: ignore[call-arg] # pydantic's defaults, unseen by mypy
        with _lance_errors("searching the store"):
            search = self._table.search(query, query_type="fts").select(["id", "lexical", "_score"])
            if within is not None:
                search = search.where(_of_documents(within), prefilter=True)
            found = _columns(search.with_row_id(with_row_id=True).limit(limit).to_arrow())
        return list(map(Ranked, found["id"], found["_score"], found["_rowid"], found["lexical"]))

    def unindexed(self, column: str) -> int | None:
        """Rows that the index on a column does not cover, ``None`` if there is no such index."""
        with _lance_errors("reading the store"):
            found = [index for index in self._table.list_indices() if list(index.columns) == [column]]
            if not found:
                return None
            return int(self._table.index_stats(found[0].name).num_unindexed_rows)

    def build_text_index(self) -> None:
        """Build the text index anew over all rows: its scores then depend on the rows alone, not on their history.

        Words as Unicode parts them in any script, also within what punctuation joins (``icu/split``); English stemming,
        lower case, accents folded, stop words left out; no word positions (no phrase queries).
        """
        config = FTS(
            base_tokenizer="icu/split",
            max_token_length=200,
            language="English",
            stem=True,
            lower_case=True,
            ascii_folding=True,
            remove_stop_words=True,
            custom_stop_words=sorted(STOP_WORDS),
        )
        with _lance_errors("building the text index"):
            self._table.create_index("lexical", config=config, replace=True)

    def drop_old_indexes(self) -> None:
        """Delete the files of indexes that the newest version does not use; the caller holds the write lock."""
        with _lance_errors("reading the store"):
            used = {index.index_uuid for index in self._table.list_indices()}
        old = [folder for folder in (self._folder / "_indices").glob("*") if folder.name not in used]
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)  # what cannot be deleted now is found again
        if old:
            with _lance_errors("reading the store"):
                self._database, self._opened = self._open()  # caches hold the deleted files open

    def compact(self) -> None:
        """Rewrite rows into few files and delete all that the newest version does not read.

        The caller holds the write lock. What another process reads of an older version fails, and is read again.
        """
        with _lance_errors("compacting the store"):
            # Unverified files are those of writers that died: with the lock held there is no other writer.
            self._table.optimize(cleanup_older_than=_KEEP_VERSIONS, delete_unverified=True)

    def close(self) -> None:
        """Let LanceDB give its caches and files back; the table is not used afterwards."""
        # LanceDB's own handles have no close; they end with the last reference.
        self._opened = self._database = None

    def _row_columns(self) -> list[str]:
        return [name for name in self._schema.names if name not in {"lexical", "search", "search_crc"}]

    def _scan(
        self,
        columns: list[str],
        batch_rows: int,
        *,
        places: bool = False,
        only: Any = None,  # noqa: ANN401 - an expression of LanceDB's
        within: Collection[str] | None = None,
    ) -> Iterator[Any]:
        """Record batches of all rows, or of those that fit."""
        with _lance_errors("reading the store"):
            search = self._table.search().select(columns).with_row_id(places)
            if within is not None:
                only = _of_documents(within) if only is None else only & _of_documents(within)
            yield from (search if only is None else search.where(only)).to_batches(batch_rows)

    def _take(self, places: Sequence[int], columns: list[str]) -> dict[str, Any]:
        """Columns of the rows at the given places of the version at which the table stands, and ``_rowid``."""
        with _lance_errors("reading the store"):
            taken = self._table.take_row_ids([int(place) for place in places]).select(columns)
            return _columns(taken.with_row_id().to_arrow())

    def _scanned(self, columns: dict[str, Any]) -> Scanned:
        _check(columns, ("search_crc",))
        return Scanned(np.asarray(columns["_rowid"], dtype=np.uint64), columns["id"], columns["search"])

    def _whole(self, columns: dict[str, Any]) -> dict[str, IndexRow]:
        """Rows by id, their checksums compared and their memories decoded."""
        _check(columns, ("key_crc", "memory_crc", "text_crc"))
        if not columns["id"]:
            return {}
        memories = self._form.codec.decode(columns["memory"])
        records = _records(columns)
        rows = (_row(record, values.copy(), self._form.model) for record, values in zip(records, memories, strict=True))
        return {row.passage.id: row for row in rows}

    def _batches(self, rows: Sequence[IndexRow]) -> Iterator[Any]:
        """Rows as Arrow tables, one a commit."""
        size = max(1, _COMMIT_BYTES // self._form.row_bytes)
        for start in range(0, len(rows), size):
            yield self._batch(rows[start : start + size])

    def _batch(self, rows: Sequence[IndexRow]) -> Any:  # noqa: ANN401 - a pyarrow table; pyarrow is untyped
        """Rows as an Arrow table."""
        values = np.stack([row.memory.values for row in rows])
        columns: dict[str, Any] = {
            **{name: [getattr(row.passage, name) for row in rows] for name in _PASSAGE_COLUMNS},
            "content_hash": [row.content_hash for row in rows],
            "metadata": [json.dumps(dict(row.metadata), sort_keys=True, ensure_ascii=False) for row in rows],
            "token_count": [row.memory.token_count for row in rows],
            "search": self._form.column.passages(values),
            "memory": self._form.codec.encode(values),
        }
        columns |= {group: checksums(columns, group) for group in GROUPS}
        columns["lexical"] = [lexical_text(row.passage.text, row.passage.title) for row in rows]
        columns["search"] = pa.FixedSizeListArray.from_arrays(
            pa.array(columns["search"].reshape(-1)), type=self._schema.field("search").type
        )
        columns["memory"] = _binary(columns["memory"])
        try:
            return pa.table({name: columns[name] for name in self._schema.names}, schema=self._schema)
        except UnicodeEncodeError as error:
            raise StoreError(f"a passage holds text that is not Unicode ({error.reason}); read it again") from error


def rows_of_format_1(folder: Path, model: StoreModel) -> Iterator[IndexRow]:
    """Every row of a store of format 1: memories are lists of fp16, and nothing tells whether they are damaged."""
    columns = [*_PASSAGE_COLUMNS, "content_hash", "metadata", "token_count", "memory"]
    with _lance_errors(f"reading the store {folder}"):
        table: Any = lancedb.connect(str(folder)).open_table(_TABLE)
        for batch in table.search().select(columns).to_batches(_FORMAT_1_ROWS):
            flat = batch.column("memory").flatten().to_numpy(zero_copy_only=True)
            memories = flat.reshape(-1, model.memory_tokens, model.width).astype(np.float32)
            for record, values in zip(batch.drop_columns(["memory"]).to_pylist(), memories, strict=True):
                yield _row(record, values.copy(), model)


def _row(record: dict[str, Any], values: FloatArray, model: StoreModel) -> IndexRow:
    """A stored record as it was added, the memory as its codec keeps it."""
    memory = Memory(values, model.fingerprint, model.rate, record["token_count"])
    return IndexRow(_passage(record), memory, record["content_hash"], json.loads(record["metadata"]))


def _passage(record: dict[str, Any]) -> Passage:
    return Passage(**{name: record[name] for name in _PASSAGE_COLUMNS})


def _of_documents(documents: Collection[str]) -> Any:  # noqa: ANN401 - an expression of LanceDB's
    """The filter that passes passages of some documents."""
    return col("document").isin(sorted(documents))


def _binary(stored: npt.NDArray[np.uint8]) -> Any:  # noqa: ANN401 - a pyarrow array; pyarrow is untyped
    """Bytes [R, B] as a pyarrow array of R values."""
    rows, width = stored.shape
    buffer = pa.py_buffer(np.ascontiguousarray(stored))
    return pa.Array.from_buffers(pa.binary(width), rows, [None, buffer])


def _columns(batch: Any) -> dict[str, Any]:  # noqa: ANN401 - a pyarrow batch or table; pyarrow is untyped
    """A batch's columns: lists, but ``search`` as fp16 [R, S] and ``memory`` as bytes [R, B]."""
    columns: dict[str, Any] = {}
    for name in batch.schema.names:
        column = batch.column(name)
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if name == "search":
            flat = whole.flatten().to_numpy(zero_copy_only=True)
            columns[name] = flat.reshape(len(whole), whole.type.list_size)
        elif name == "memory":
            width = whole.type.byte_width
            buffer = whole.buffers()[1]
            stored = np.frombuffer(buffer, dtype=np.uint8) if buffer is not None else np.empty(0, dtype=np.uint8)
            columns[name] = stored[whole.offset * width : (whole.offset + len(whole)) * width].reshape(-1, width)
        else:
            columns[name] = whole.to_pylist()
    return columns


def _records(columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of columns, one dictionary each."""
    return ({name: column[i] for name, column in columns.items()} for i in range(len(columns["id"])))


def _check(columns: dict[str, Any], groups: Sequence[str]) -> None:
    """Refuse rows that are not what was written (StoreError: names the first)."""
    for group in groups:
        bad = np.flatnonzero(damaged(columns, group))
        if bad.size:
            where = f" of {columns['document'][bad[0]]}" if "document" in columns else ""
            raise StoreError(
                f"passage {columns['id'][bad[0]]}{where} is damaged on disk: its bytes are not what was written; "
                "clara doctor names all that are, clara remove and clara index put them right"
            )
