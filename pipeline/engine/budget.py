"""What the workers of a stage may spend together, shared out by accounts on the run's storage.

budget/<worker>.json    in the stage's folder: what a worker has claimed, asks for and has spent
budget/earlier.json     what those of earlier runs spent

A worker that wants more writes down what it asks for, and then reads what all others have claimed
and ask for. Of two that ask at once the later reads the earlier, so what is granted is never more
than the limit. Who finds too little takes it back and tries again; the others' claims say whether
that may help. It claims more than a request needs, so most requests touch no storage, and less the
less is left: when its shard ends, when no request is under way or nothing is left, it gives back
what it has not spent.

What is claimed counts as spent until it is given back, in later runs too: a worker that is killed
leaves no word of the requests that were under way. One that lives changes its account every second
while a request is, so others tell whether to wait for it. An account counts an answer only once
that answer is stored.

The driver shares nothing out: it hears of workers but cannot answer them, on a cluster least of
all, while all of them reach the run's storage. That must show a new object to whoever reads next,
as local disks and S3 do.
"""

import json
import math
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.answers import STORE_S, after

FOLDER, EARLIER = "budget", "earlier.json"
TRIES = 8  # to claim what others ask for too
PAUSE_MS = 50  # between two of them, at most
QUICK_S = 2.0  # a worker that asks again within it gets twice as much: what a kill may take
SILENT_S = 20.0  # an account that has not changed for so long is of a dead worker
MOST_TIMES = 2.0**20  # what a request needs
MOST = 1 / 64  # of a limit that a worker claims and has not spent
NEAR_S = 10.0  # after a refusal others may wait for what is settled: it is stored at once
AT_ONCE_S = 0.1
REFUSED_S = 0.5  # for which nobody looks again what others have left
ROUNDING = 1e-9  # of a limit: sums of prices
READERS = 8  # accounts read at once

Amounts = Mapping[str, float]


@dataclass(frozen=True)
class Account:
    """What `<worker>.json` holds, by unit; `asked` is what is claimed and what is asked for."""

    claimed: dict[str, float] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    beat: int = 0  # another number while requests are under way
    closed: tuple[str, ...] = ()  # of earlier.json: accounts that are in it, if they lie there yet


class SharedBudget:
    """One worker's account in a stage's budget: implements `Budget`. Threads may share it.

    `store` stores the answers that were got by now: it is called before they are counted.
    """

    def __init__(
        self,
        folder: Storage,
        worker: str,
        limits: Amounts,
        store: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._name, self._limits = folder, f"{worker}.json", dict(limits)
        self._store = store
        self._lock = threading.RLock()
        self._claimed, self._reserved, self._spent = (dict.fromkeys(limits, 0.0) for _ in range(3))
        self._published = Account(spent=dict(self._spent))
        self._timer: threading.Timer | None = None
        self._times = 1.0  # what a request needs: how much is claimed
        self._claimed_s = self._refused_s = -math.inf
        self._left_then: dict[str, float] = {}  # by the others, when it was refused
        self._others_then: dict[str, Account] = {}  # the same
        self._changed_s: dict[str, tuple[Account, float]] = {}  # others, and since when they are so
        self._beat = 0

    def reserve(self, amounts: Amounts) -> bool:
        needed = {unit: float(amounts.get(unit, 0)) for unit in self._limits}
        with self._lock:
            if not self._fits(needed, self._claimed) and not self._claim(needed):
                return False
            self._reserved = _sum([self._reserved, needed])
            self._later()
            return True

    def settle(self, reserved: Amounts, spent: Amounts) -> None:
        with self._lock:
            for unit in self._limits:
                self._reserved[unit] -= reserved.get(unit, 0)
                self._spent[unit] += spent.get(unit, 0)
            self._later()

    def spent(self) -> dict[str, float]:
        with self._lock:
            claimed = (account.claimed for account in self._others().values())
            everybody = _sum([self._spent, *claimed])
            return {unit: everybody[unit] for unit in self._limits}

    def may_return(self) -> bool:
        with self._lock:
            now = time.monotonic()
            is_awaited = False
            for name, account in self._others_then.items():
                before, since = self._changed_s.get(name, (None, now))
                if account != before:
                    since = now
                self._changed_s[name] = account, since
                spent = account.spent
                held = {u: amount - spent.get(u, 0) for u, amount in account.asked.items()}
                is_awaited |= self._is_any(held) and now - since < SILENT_S
            return is_awaited

    def flush(self) -> None:
        """Stores what was spent, and gives back what is claimed and not needed.

        No request is under way: what is set aside still was given up, and counts as spent.
        """
        with self._lock:
            self._spent = self._needed()
            self._reserved = dict.fromkeys(self._limits, 0.0)
            self._give_back()

    def _give_back(self) -> None:
        self._claimed = self._needed()
        self._publish()

    def _later(self) -> None:
        """Has the account stored within a second, and again while requests are under way."""
        if self._timer is None:
            is_near = time.monotonic() < self._refused_s + NEAR_S
            self._timer = after(min(STORE_S, AT_ONCE_S) if is_near else STORE_S, self._late)

    def _late(self) -> None:
        with self._lock:
            self._timer = None
            if not self._is_any(self._reserved):
                self._give_back()
                return
            self._beat += 1
            self._later()
            self._publish()

    def _needed(self) -> dict[str, float]:
        return _sum([self._spent, self._reserved])

    def _is_any(self, amounts: Amounts) -> bool:
        """Whether there is more of a unit than sums are rounded by."""
        return any(amounts.get(u, 0) > ROUNDING * limit for u, limit in self._limits.items())

    def _fits(self, needed: Amounts, limits: Amounts) -> bool:
        """Whether a request stays within some limits."""
        mine = self._needed()
        return all(
            mine[unit] + amount <= limits[unit] + ROUNDING * self._limits[unit]
            for unit, amount in needed.items()
        )

    def _claim(self, needed: Amounts) -> bool:
        """Whether the request fits now: more was claimed. Else all that is not needed is given."""
        now = time.monotonic()
        if now - self._refused_s < REFUSED_S and not self._fits(needed, self._left_then):
            return False
        quick = now - self._claimed_s < QUICK_S
        self._times = min(2 * self._times, MOST_TIMES) if quick else max(1.0, self._times / 2)
        for number in range(TRIES):
            others = self._others_then = self._others()
            left = self._left(account.claimed for account in others.values())
            if not self._fits(needed, left):
                self._left_then, self._refused_s = left, now
                self._give_back()
                return False
            asked = self._ask(needed, left, len(others) + 1)
            self._publish(asked)
            self._others_then = self._others()
            left = self._left(account.asked for account in self._others_then.values())
            if self._fits(needed, left):
                before = self._claimed
                self._claimed = {unit: min(asked[unit], left[unit]) for unit in asked}
                self._claimed_s = now
                try:
                    self._publish()
                except BaseException:
                    self._claimed = before  # nothing is spent that no account holds
                    raise
                return True
            self._publish()
            time.sleep(zlib.crc32(f"{self._name}{number}".encode()) % PAUSE_MS / 1000)
        return False

    def _ask(self, needed: Amounts, left: Amounts, workers: int) -> dict[str, float]:
        """What it claims in all: the request, and a share of what is left then."""
        mine = self._needed()
        asked = {}
        for unit, amount in needed.items():
            rest = max(0.0, left[unit] - mine[unit] - amount) / (2 * workers)
            more = min(amount * (self._times - 1), rest, self._limits[unit] * MOST)
            asked[unit] = mine[unit] + amount + more
        return asked

    def _left(self, theirs: Iterable[Amounts]) -> dict[str, float]:
        """What others leave of each limit."""
        taken = _sum(theirs)
        return {unit: limit - taken.get(unit, 0) for unit, limit in self._limits.items()}

    def _others(self) -> dict[str, Account]:
        return _accounts(self._folder, self._name)

    def _publish(self, asked: Amounts | None = None) -> None:
        """Stores the account, where it is not stored like that."""
        claimed = {unit: max(self._claimed[unit], need) for unit, need in self._needed().items()}
        asking = {u: max(asked[u], amount) for u, amount in claimed.items()} if asked else claimed
        spent = dict(self._spent)
        if spent != self._published.spent:
            self._store()
        account = Account(claimed, asking, spent, self._beat)
        if account != self._published and (any(asking.values()) or self._published.claimed):
            self._folder.put(self._name, _text(account), "budget")
            self._published = account


def close_accounts(folder: Storage) -> None:
    """Adds up what workers of earlier runs spent, or may have: nobody spends now."""
    names = [entry.name for entry in folder.entries() if entry.name != EARLIER]
    if not names:
        return
    spent = spent_in(folder)
    folder.put(EARLIER, _text(Account(spent, spent, spent, closed=tuple(names))), "budget")
    for name in names:
        folder.delete(name)


def spent_in(folder: Storage) -> dict[str, float]:
    """What a stage has spent by now, or may have, by unit: all that is set aside."""
    return _sum(account.claimed for account in _accounts(folder, "").values())


def _accounts(folder: Storage, but: str) -> dict[str, Account]:
    """All accounts that count, but one's own, by name."""
    names = [entry.name for entry in folder.entries() if entry.name != but]
    if not names:
        return {}
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda name: folder.read_json(name, Account), names)
        found = {name: account for name, account in zip(names, read, strict=True) if account}
    closed = found[EARLIER].closed if EARLIER in found else ()
    return {name: account for name, account in found.items() if name not in closed}


def _sum(amounts: Iterable[Amounts]) -> dict[str, float]:
    total: dict[str, float] = {}
    for some in amounts:
        for unit, amount in some.items():
            total[unit] = total.get(unit, 0.0) + amount
    return total


def _text(account: Account) -> bytes:
    return json.dumps(asdict(account)).encode()
