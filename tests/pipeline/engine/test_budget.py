"""A budget: never more than its limit for all workers and runs together, and none of it is lost."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import budget
from clipmill.pipeline.engine.budget import Account, SharedBudget, close_accounts, spent_in
from clipmill.pipeline.ledger.work import work
from clipmill.pipeline.run_folder.state import latest

ASKER = "  asked: {uses: toy.asker, from: numbers, log: %s, tokens: %d}\n"
SPEND = Path(__file__).parents[2] / "engine_stages" / "spend.py"


@pytest.fixture
def folder(tmp_path) -> Storage:
    return Storage(str(tmp_path / "budget"))


@pytest.fixture(autouse=True)
def kill(monkeypatch):
    """Stops the clock of an account: its worker is no more. All of them stop with the test."""
    accounts: list[SharedBudget] = []
    begin = SharedBudget._later

    def noted(self: SharedBudget) -> None:
        accounts.append(self)
        begin(self)

    def stop(account: SharedBudget) -> None:
        with account._lock:
            if account._timer is not None:
                account._timer.cancel()
            account._later = lambda: None

    monkeypatch.setattr(SharedBudget, "_later", noted)
    yield stop
    for account in set(accounts):
        stop(account)


def of(worker: str, folder: Storage) -> Account:
    return folder.read_json(f"{worker}.json", Account)


def spend(account: SharedBudget, tokens: float = 1) -> bool:
    if account.reserve({"tokens": tokens}):
        account.settle({"tokens": tokens}, {"tokens": tokens})
        return True
    return False


def test_a_worker_spends_all_of_it_and_no_more(folder):
    account = SharedBudget(folder, "one", {"tokens": 100})
    assert sum(spend(account, 3) for _ in range(50)) == 33
    assert account.spent() == {"tokens": 99}


def test_what_is_reserved_counts_until_it_is_settled(folder):
    account = SharedBudget(folder, "one", {"tokens": 10})
    assert account.reserve({"tokens": 8})
    assert not account.reserve({"tokens": 3})
    account.settle({"tokens": 8}, {"tokens": 1})
    assert account.spent() == {"tokens": 1}
    assert account.reserve({"tokens": 9})


def test_a_budget_of_nothing_grants_nothing(folder):
    account = SharedBudget(folder, "one", {"tokens": 0, "usd": 5})
    assert not account.reserve({"tokens": 1, "usd": 0})
    assert account.reserve({"usd": 1})
    assert SharedBudget(folder, "two", {}).reserve({"tokens": 1})


def test_each_unit_has_its_own_limit(folder):
    account = SharedBudget(folder, "one", {"tokens": 1000, "usd": 0.3})
    request = {"tokens": 1, "usd": 0.1}
    assert [account.reserve(request) for _ in range(4)] == [True, True, True, False]


def test_two_workers_share_it_and_see_what_both_have_spent(folder):
    one, two = (SharedBudget(folder, name, {"tokens": 20}) for name in ("one", "two"))
    taken = [spend(account) for _ in range(15) for account in (one, two)]
    assert sum(taken) == 20
    one.flush()
    two.flush()
    assert one.spent() == two.spent() == spent_in(folder) == {"tokens": 20}


def test_what_a_shard_has_not_spent_is_free_for_the_others(folder):
    one, two = (SharedBudget(folder, name, {"tokens": 640}) for name in ("one", "two"))
    for _ in range(5):
        assert spend(one)
    one.flush()
    assert two.reserve({"tokens": 635})


def test_what_a_killed_worker_had_set_aside_counts_in_the_next_run(folder, kill):
    dead = SharedBudget(folder, "dead", {"tokens": 10})
    assert spend(dead, 4)
    dead.flush()
    assert dead.reserve({"tokens": 3})
    kill(dead)
    close_accounts(folder)
    again = SharedBudget(folder, "again", {"tokens": 10})
    assert again.spent() == spent_in(folder)
    assert 7 <= spent_in(folder)["tokens"] <= 7 + 10 * budget.MAX_UNSPENT
    assert not again.reserve({"tokens": 4})
    assert again.reserve({"tokens": 2})


def test_a_request_that_is_under_way_as_a_shard_ends_was_given_up_and_counts(folder):
    account = SharedBudget(folder, "one", {"tokens": 10})
    assert account.reserve({"tokens": 3})
    account.flush()
    assert account.spent() == spent_in(folder) == {"tokens": 3}
    account.settle({"tokens": 3}, {"tokens": 1})  # it was not
    account.flush()
    assert account.spent() == spent_in(folder) == {"tokens": 1}


def test_what_another_holds_may_return_while_it_lives(folder, kill, monkeypatch):
    monkeypatch.setattr(budget, "REFUSED_S", 0.0)
    monkeypatch.setattr(budget, "STORE_S", 0.05)
    monkeypatch.setattr(budget, "SILENT_S", 0.5)
    one, two = (SharedBudget(folder, name, {"tokens": 10}) for name in ("one", "two"))
    assert one.reserve({"tokens": 8})
    start = time.monotonic()
    while time.monotonic() < start + 0.8:
        assert not two.reserve({"tokens": 3})
        assert two.may_return()
    one.settle({"tokens": 8}, {"tokens": 7})
    while not two.reserve({"tokens": 3}):
        assert two.may_return()
    assert not one.reserve({"tokens": 1})
    assert one.may_return()
    kill(two)
    while one.may_return():
        assert not one.reserve({"tokens": 1})
    assert one.spent() == {"tokens": 10}


def test_what_is_spent_may_not_return(folder):
    one, two = (SharedBudget(folder, name, {"tokens": 10}) for name in ("one", "two"))
    assert spend(one, 8)
    one.flush()
    assert not two.reserve({"tokens": 3})
    assert not two.may_return()


def test_a_refusal_holds_no_longer_than_the_accounts_that_it_was_read_from(folder):
    one, two = (SharedBudget(folder, name, {"tokens": 20}) for name in ("one", "two"))
    assert one.reserve({"tokens": 8})
    assert not two.reserve({"tokens": 13})
    one.settle({"tokens": 8}, {"tokens": 1})
    one.flush()
    assert spend(two, 1)  # reads the accounts again, of which none has a reservation
    assert two.reserve({"tokens": 13})


def test_a_worker_that_asks_nothing_for_a_while_gives_back_what_it_need_not(folder, monkeypatch):
    monkeypatch.setattr(budget, "STORE_S", 0.05)
    one, two = (SharedBudget(folder, name, {"tokens": 640}) for name in ("one", "two"))
    for _ in range(5):
        assert spend(one)
    start = time.monotonic()
    while not two.reserve({"tokens": 635}):
        assert time.monotonic() < start + 5


def test_an_answer_is_stored_before_it_is_counted(folder):
    counted: list[float] = []
    account = SharedBudget(
        folder, "one", {"tokens": 10}, lambda: counted.append(of("one", folder).spent["tokens"])
    )
    assert spend(account, 4)
    account.flush()
    assert counted == [0]
    assert of("one", folder).spent == {"tokens": 4}


def test_what_storage_did_not_take_is_not_granted(folder, monkeypatch):
    account = SharedBudget(folder, "one", {"tokens": 640})
    put = folder.put
    stored = []

    def second_fails(*given: object) -> None:
        stored.append(given)
        if len(stored) == 2:
            raise OSError("no")
        put(*given)

    monkeypatch.setattr(folder, "put", second_fails)
    with pytest.raises(OSError, match="no"):
        account.reserve({"tokens": 1})
    assert account.reserve({"tokens": 1})
    assert of("one", folder).claimed["tokens"] >= 1


def test_a_driver_that_dies_as_it_adds_up_counts_nothing_twice(folder, monkeypatch):
    for name in ("one", "two"):
        account = SharedBudget(folder, name, {"tokens": 10})
        assert spend(account, 2)
        account.flush()

    def killed(name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(folder, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            close_accounts(folder)
    assert spent_in(folder) == {"tokens": 4}
    close_accounts(folder)
    assert spent_in(folder) == {"tokens": 4}
    assert [entry.name for entry in folder.entries()] == [budget.EARLIER]


def test_most_requests_touch_no_storage(folder, monkeypatch):
    account = SharedBudget(folder, "one", {"tokens": 64_000})
    stored = []
    put = folder.put
    monkeypatch.setattr(folder, "put", lambda *given: (stored.append(given), put(*given)))
    for _ in range(10_000):
        assert spend(account)
    assert len(stored) < 100


def test_threads_of_a_worker_spend_no_more_than_there_is(folder):
    account = SharedBudget(folder, "one", {"tokens": 500})
    granted: list[bool] = []

    def work() -> None:
        while spend(account):
            granted.append(True)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 500


@pytest.mark.chaos
@pytest.mark.parametrize("limit", [37, 5_000])
def test_processes_that_hammer_it_spend_all_of_it_and_no_more(limit, folder):
    """Each spends up to 7 tokens a request, of 7 that it reserves, until it is refused."""
    command = [sys.executable, str(SPEND), folder.path, str(limit)]
    started = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(6)
    ]
    spent = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert sum(spent) == spent_in(folder)["tokens"]
    assert sum(spent) <= limit
    assert sum(spent) > limit - max(2 * 7, limit * budget.MAX_UNSPENT)


# In a run


def test_a_run_stops_asking_at_its_budget_and_a_larger_one_goes_on(engine):
    log = engine.folder / "asked.log"
    log.touch()

    def asked(tokens: int, *retry: str) -> tuple[int, int]:
        """How many were asked in this run, and how many rows have an answer."""
        before = len(log.read_text().splitlines())
        ran = engine.run(ASKER % (log, tokens), retry=retry, keep_going=True)
        answers = ran.column("asked", "answer")
        return len(log.read_text().splitlines()) - before, 31 - answers.count(None)

    assert asked(0) == (0, 0)
    assert asked(21, "over_budget") == (10, 10)  # 2 a request, of 3 that are set aside
    assert asked(21, "over_budget") == (0, 10)
    assert asked(41, "over_budget") == (10, 20)
    assert asked(1000, "over_budget") == (11, 31)
    [told] = [of for of in work(latest(str(engine.folder / "run"))) if of.stage == "asked"]
    assert told.spent == {"tokens": 62}
    numbers = list(map(int, log.read_text().split()))
    assert sorted(numbers) == list(range(31))
