"""A bit that flips on disk is told; a copy that ``fork`` made is refused; words of every language are found."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from index_rows import MODEL, digest, document, plain, question, row, values

from clara.errors import StoreError
from clara.index import DocumentEntry, LanceStore
from clara.index.rows import GROUPS, checksums, damaged, is_lexical_text, lexical_text

DOCUMENTS = 12


def fill(folder: Path) -> None:
    with LanceStore.create(folder, MODEL) as store:
        for number in range(DOCUMENTS):
            rows = document(f"d{number}", "v1", 3)
            store.add(rows)
            store.finish_documents([DocumentEntry(f"d{number}", digest(f"d{number}", "v1"), 3)])
        store.optimize()


def everything(folder: Path) -> object:
    """All that a store says: documents, rows in order of the searches, scores."""
    with LanceStore.open(folder, None) as store:
        found = [
            *store.search_latent(question(values("question")), 100),
            *store.search_text("karst loam amber", 100),
            *store.search_hybrid(question(values("question")), "karst loam", 100),
        ]
        ids = sorted({hit.passage.id for hit in found})
        facts = sorted(entry.uri for entry in store.documents().values())
        hits = [(hit.passage.id, hit.score) for hit in found]
        return facts, sorted(store.unfinished()), hits, plain(store.get(ids))


def test_a_flipped_bit_never_changes_an_answer_silently(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    wanted = everything(tmp_path / "whole")
    moments = random.Random(4)
    told = 0
    for number in range(40):
        folder = tmp_path / "flipped"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        files = sorted((folder / "passages.lance" / "data").glob("*.lance"))
        file = files[number % len(files)]
        content = bytearray(file.read_bytes())
        content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
        file.write_bytes(content)
        try:
            found = everything(folder)
        except StoreError:
            told += 1
            continue
        if found != wanted:
            facts, unfinished = found[:2]  # type: ignore[index]
            assert unfinished, "a row that is left out makes its document unfinished"
            assert set(facts) < {f"d{i}" for i in range(DOCUMENTS)}
            told += 1
    assert told >= 20, "most bytes of a store are of rows"


def test_a_damaged_key_is_healed_by_indexing_again_and_a_damaged_row_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    with LanceStore.open(tmp_path / "store", None) as store:
        store.begin()
        table = store._table._table
        table.update(where=f"id = '{document('d1', 'v1', 1)[0].passage.id}'", values={"document": "d0"})
        table.update(where=f"id = '{document('d2', 'v1', 1)[0].passage.id}'", values={"text": "Another text"})
        store.release()
    with LanceStore.open(tmp_path / "store", None) as store:
        assert store.unfinished() == {"d1"}
        assert {document for _, document in store.damaged()} == {"d0", "d2"}
        with pytest.raises(StoreError, match=r"of d[02] is damaged on disk: .*clara doctor .*clara remove"):
            store.search_latent(question(values("question")), 100)
        store.begin()
        assert len(store.passage_ids("d1")) == 2
        store.add([one for one in document("d1", "v1", 3) if one.passage.id not in store.passage_ids("d1")])
        store.finish_documents([DocumentEntry("d1", digest("d1", "v1"), 3)])
        store.remove(["d2"])
        store.add(document("d2", "v1", 3))
        store.finish_documents([DocumentEntry("d2", digest("d2", "v1"), 3)])
        store.optimize()
        assert (store.damaged(), store.unfinished(), store.count()) == ([], set(), 3 * DOCUMENTS)


def test_a_passage_found_by_words_that_are_not_its_own_is_damaged(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    with LanceStore.open(tmp_path / "store", None) as store:
        store.begin()
        store._table._table.update(where="document = 'd1'", values={"lexical": "Quartz"})
        store.release()
        for search in (store.search_text, partial(store.search_hybrid, question(values("question")))):
            with pytest.raises(StoreError, match=r"passage \w+ .* is damaged on disk; see clara doctor"):
                search("quartz", 3)
        assert {document for _, document in store.damaged()} == {"d1"}


def test_checksums_cover_every_column_that_is_read() -> None:
    covered = set().union(*GROUPS.values())
    assert covered == {
        *("id", "document", "content_hash", "search", "memory"),
        *("title", "text", "metadata", "start", "end", "token_count"),
    }
    columns = {"id": ["a", "ab"], "document": ["bc", "c"], "content_hash": ["h", "h"]}
    sums = checksums(columns, "key_crc")
    assert sums[0] != sums[1], "what ends where counts"
    assert not damaged({**columns, "key_crc": sums}, "key_crc").any()
    assert damaged({**columns, "id": ["a", "aB"], "key_crc": sums}, "key_crc").tolist() == [False, True]


def search_in_child(store: LanceStore, folder: str, answers: multiprocessing.Queue[str]) -> None:
    """What a forked process gets from the store that it inherited, and from one that it opens itself."""
    for use in (
        lambda: store.search_text("karst", 1),
        lambda: store.add(document("new", "v1", 1)),
        lambda: LanceStore.open(Path(folder), None),
    ):
        try:
            use()
            answers.put("worked")
        except StoreError as error:
            answers.put(str(error))
    store.close()
    answers.put("closed")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_forked_process_is_refused_with_the_remedy(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    with LanceStore.open(tmp_path / "store", None) as store:
        store.begin()
        context = multiprocessing.get_context("fork")
        answers: multiprocessing.Queue[str] = context.Queue()
        child = context.Process(target=search_in_child, args=(store, str(tmp_path / "store"), answers))
        child.start()
        said = [answers.get(timeout=30) for _ in range(4)]
        child.join(30)
        assert child.exitcode == 0
        assert all('get_context("spawn")' in line for line in said[:3])
        assert said[3] == "closed"
        assert store._lock.is_locked, "the child's copy does not give the parent's lock back"
        with pytest.raises(StoreError, match="another process is writing"):
            LanceStore.open(tmp_path / "store", None).begin()


def test_words_of_every_language_are_found(tmp_path: Path) -> None:
    number = "3f2a" * 16
    texts = {
        "german": "Das Unter\u00adnehmen Donau\u200bdampf wurde 1871 gegr\u00fcndet.",
        "decomposed": "Zu\u0308rich liegt an der Limmat.",
        "digest": f"The file has the digest {number} and no other.",
        "chinese": "中国的长城始建于公元前七世纪,全长超过两万公里。北京的故宫建于1420年。",
        "japanese": "東京は日本の首都です。",
        "thai": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
        "korean": "서울의 남산타워는 1969년에 완공되었다.",
        "arabic": "القاهِرة هي عاصمة مصر.",
        "hebrew": "ברוכים הבאים, שָׁלוֹם לכולם",
        "greek": "Η Αθήνα και ο Ὀδυσσεύς.",
        "russian": "Зелёный чай.",
        "turkish": "DİYARBAKIR ve Isparta",
        "persian": "کتاب می‌خواهم",
        "street": "Hauptstraße 5",
        "code": "Call read_index() of package.module in e-mail.example.org.",
        "animals": "A dog and a cat.",
    }
    queries = {
        "Unternehmen": "german",
        "Donaudampf": "german",
        "gegründet": "german",
        "Zürich": "decomposed",
        "Zu\u0308rich": "decomposed",
        "zurich": "decomposed",
        number: "digest",
        "长城": "chinese",
        "故宫": "chinese",
        "東京": "japanese",
        "เมืองหลวง": "thai",
        "กรุงเทพ": "thai",
        "ﾆﾎﾝ 東京": "japanese",
        "서울": "korean",
        "남산타워": "korean",
        "القاهرة": "arabic",
        "שלום": "hebrew",
        "ΑΘΗΝΑ": "greek",
        "Οδυσσευς": "greek",
        "зеленый": "russian",
        "diyarbakır": "turkish",
        "كتاب": "persian",
        "HAUPTSTRASSE": "street",
        "index": "code",
        "example": "code",
        "dog": "animals",
    }
    with LanceStore.create(tmp_path / "store", MODEL) as store:
        store.add([row(name, "v1", 0, text=text) for name, text in texts.items()])
        for _ in range(2):
            found = {query: [hit.passage.document for hit in store.search_text(query, 3)] for query in queries}
            assert found == {query: [name] for query, name in queries.items()}
            store.optimize()


def test_words_of_older_stores_are_undamaged() -> None:
    assert is_lexical_text("서울의", "서울의", "")
    assert is_lexical_text(lexical_text("서울의"), "서울의", "")
    assert not is_lexical_text("서울", "서울의", "")
    assert lexical_text("Zürich’s café… 10² “Bee”", "A") == "A\nZürich’s café… 10² “Bee”", (
        "the index folds Latin itself"
    )


def test_no_warning_of_the_engine_reaches_the_terminal(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    program = (
        "import sys, json; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from index_rows import question, values; from clara.index import LanceStore\n"
        "store = LanceStore.open(Path(sys.argv[1]), None, exact_bytes=0)\n"
        "store.begin(); store._build_indexes(anew=True); store.release()\n"
        "print(json.dumps(len(store.search_hybrid(question(values('question')), 'karst', 5))))"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "store"), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert (json.loads(done.stdout), done.stderr) == (5, "")
