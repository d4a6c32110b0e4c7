"""Stored answers: none is asked for again, whichever worker, shard, recipe or run got it."""

import hashlib
import time
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import answers
from clipmill.pipeline.engine.answers import StoredAnswers, pack

ASKER = "  asked: {uses: toy.asker, from: numbers, log: %s%s}\n"


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


@pytest.fixture
def folder(tmp_path) -> Storage:
    return Storage(str(tmp_path / "answers"))


def put(store: StoredAnswers, numbers, text: str = "answer") -> None:
    for number in numbers:
        store.put(key(number), f"{text} {number}".encode())


def got(store: StoredAnswers, numbers, text: str = "answer") -> bool:
    expected = [f"{text} {number}".encode() for number in numbers]
    return store.get([key(number) for number in numbers]) == expected


def names(folder: Storage, below: str) -> list[str]:
    return [entry.name for entry in folder.entries(below)]


def test_what_a_file_manager_leaves_among_the_answers_is_passed_over(folder, capsys):
    store = StoredAnswers(folder)
    put(store, range(3))
    store.flush()
    pack(folder)
    put(store, range(3, 6))
    store.flush()
    for below in ("new", "packed"):
        folder.put(f"{below}/.DS_Store", b"\0\0\0\1Bud1", "rename")
    assert got(StoredAnswers(folder), range(6))
    assert not capsys.readouterr().err


def test_an_answer_is_there_at_once_for_its_worker_and_after_a_flush_for_all(folder):
    mine, other = StoredAnswers(folder), StoredAnswers(folder)
    put(mine, range(9))
    assert got(mine, range(9))
    assert other.get([key(3)]) == [None]
    mine.flush()
    assert got(StoredAnswers(folder), range(9))
    assert got(mine, range(9))


def test_an_answer_is_stored_within_two_seconds_without_a_flush(folder, monkeypatch):
    monkeypatch.setattr(answers, "STORE_S", 0.05)
    put(StoredAnswers(folder), range(9))
    limit = time.monotonic() + 2
    while not names(folder, "new") and time.monotonic() < limit:
        time.sleep(0.01)
    assert got(StoredAnswers(folder), range(9))


def test_a_worker_that_goes_on_with_anothers_shard_has_its_answers(folder):
    living, dead = StoredAnswers(folder), StoredAnswers(folder)
    living.begin(1)
    assert living.get([key(0)]) == [None]
    dead.begin(2)
    put(dead, range(9))
    dead.flush()
    living.begin(2)
    assert got(living, range(9))


def test_files_of_a_shard_are_merged_into_one(folder, monkeypatch):
    monkeypatch.setattr(answers, "MOST_SMALL", 4)
    store = StoredAnswers(folder)
    store.begin(7)
    for number in range(10):
        put(store, [number])
        store.store()
    assert len(names(folder, "new")) == 4  # of four, of four, and two
    store.flush()
    assert len(names(folder, "new")) == 3
    assert got(store, range(10))
    assert got(StoredAnswers(folder), range(10))


def test_many_shards_leave_few_files_open(folder):
    store = StoredAnswers(folder)
    for shard in range(40):
        store.begin(shard)
        put(store, range(5 * shard, 5 * shard + 5))
        store.flush()
    assert len(store._copies) < 8
    assert got(store, range(200))


def test_packed_answers_are_in_one_file_and_all_of_them_are_there(folder, monkeypatch):
    monkeypatch.setattr(answers, "AT_ONCE", 3)
    for shard in range(10):
        store = StoredAnswers(folder)
        store.begin(shard)
        put(store, range(20 * shard, 20 * shard + 25))
        store.flush()
    pack(folder)
    assert not names(folder, "new")
    assert len(names(folder, "packed")) == 1
    assert got(StoredAnswers(folder), range(205))
    before = names(folder, "packed")
    pack(folder)
    assert names(folder, "packed") == before
    put(store, [999])
    store.flush()
    pack(folder)
    assert len(names(folder, "packed")) == 2  # the large one was left as it is
    assert got(StoredAnswers(folder), [*range(205), 999])


def test_of_two_workers_answers_every_reader_takes_the_same(folder):
    one, other = StoredAnswers(folder), StoredAnswers(folder)
    put(one, range(5), "b")
    put(other, range(5), "a")
    other.flush()
    one.flush()
    assert got(StoredAnswers(folder), range(5), "a")
    pack(folder)
    assert got(StoredAnswers(folder), range(5), "a")
    put(one, range(5), "b")  # of one that did not know
    assert got(one, range(5), "a")
    one.flush()
    assert got(StoredAnswers(folder), range(5), "a")


def test_a_store_that_fails_keeps_answers_for_the_next_try(folder, monkeypatch):
    store = StoredAnswers(folder)
    put(store, range(5))

    def full(*_):
        raise OSError("no space")

    with monkeypatch.context() as broken:
        broken.setattr(folder, "put", full)
        with pytest.raises(OSError, match="no space"):
            store.flush()
    assert got(store, range(5))
    store.flush()
    assert got(StoredAnswers(folder), range(5))


def test_a_damaged_file_is_said_and_the_others_stay(folder, capsys):
    for shard in range(2):
        store = StoredAnswers(folder)
        store.begin(shard)
        put(store, range(3 * shard, 3 * shard + 3))
        store.flush()
    first, _ = sorted(Path(folder.path, "new").iterdir())
    first.write_bytes(first.read_bytes()[:20])
    store = StoredAnswers(folder)
    assert store.get([key(0), key(4)]) == [None, b"answer 4"]
    assert f"{first}: its index is damaged" in capsys.readouterr().err
    pack(folder)
    assert got(StoredAnswers(folder), [3, 4, 5])


# In a run


@pytest.fixture
def asker(engine):
    """Runs a recipe with a toy.asker; the numbers that it then asked for."""
    log = engine.folder / "asked.log"

    def run(more: str = "", shard_rows: int = 12) -> list[int]:
        log.write_text("")
        assert engine.run(ASKER % (log, more), f"numbers.shard_rows={shard_rows}").complete
        return [int(line) for line in log.read_text().split()]

    return run


def test_neither_another_recipe_nor_other_shards_ask_again(asker):
    assert sorted(asker()) == list(range(31))
    assert asker() == []
    assert asker(shard_rows=5) == []
    assert sorted(asker(", question: '!'")) == list(range(31))
    assert asker(", question: '!'", shard_rows=5) == []
