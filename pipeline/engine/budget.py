"""A stage's budget, shared by its workers through accounts on the run's storage.

budget/<worker>.json    in the stage's folder: amounts that a worker claims, asks for and has spent
budget/earlier.json     amounts spent by workers of earlier runs

To claim more, a worker first writes down the amount it asks for, then reads all other accounts. Of
two workers that ask at once, the one that writes last reads what the other asked for, so the sum of
claims never exceeds the limit. If too little is left, the worker withdraws and tries again; the
others' claims tell whether that may help. A claim covers several requests, so most requests touch
no storage; claims get smaller as the budget runs out. A worker gives back unspent amounts when its
shard ends, when no request is under way and when nothing is left.

A claim counts as spent until it is given back, in later runs too: a killed worker may have sent
requests that no account shows. A live worker changes its account every second while a request is
under way, so others know whether to wait for it. An account counts an answer only once that answer
is stored.

The driver does not hand out shares: it hears from workers but cannot answer them, least of all on a
cluster, while every worker reaches the run's storage. That storage must show a new object to the
next reader, as local disks and S3 do.
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
TRIES = 8  # attempts at a claim while others ask too
PAUSE_MS = 50  # before the second attempt, at most; eight times as long before the last
QUICK_S = 2.0  # a claim sooner after the last is twice as large: a kill loses about so many s
SILENT_S = 20.0  # an account unchanged for this long is a dead worker's
MAX_REQUESTS = 2.0**20  # most that a claim is, in multiples of one request's need
MAX_UNSPENT = 1 / 64  # share of a limit that a worker may hold unspent
NEAR_S = 10.0  # this long after a refusal others may wait for us: accounts are stored sooner …
AT_ONCE_S = 0.1  # … after this long
REFUSED_S = 0.5  # this long after a refusal the accounts last read decide, unless a request fits
ROUNDING = 1e-9  # share of a limit that sums of prices may be off by
READERS = 8  # accounts read in parallel

Amounts = Mapping[str, float]


@dataclass(frozen=True)
class Account:
    """The content of `<worker>.json`, amounts by unit; `asked` includes `claimed`."""

    claimed: dict[str, float] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    beat: int = 0  # heartbeat: changes while requests are under way
    closed: tuple[str, ...] = ()  # in earlier.json: accounts it includes, even if not yet deleted


class SharedBudget:
    """One worker's account in a stage's budget: implements `Budget`. Threads may share it.

    `store` stores the answers received by now; it is called before their cost is published.
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
        self._requests = 1.0  # size of the next claim, in multiples of the request
        self._claimed_s = self._refused_s = -math.inf
        self._others_then: dict[str, Account] = {}  # as last read to claim
        self._changed_s: dict[str, tuple[Account, float]] = {}  # others, and since when unchanged
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
                unspent = {u: amount - spent.get(u, 0) for u, amount in account.asked.items()}
                is_awaited |= self._is_any(unspent) and now - since < SILENT_S
            return is_awaited

    def flush(self) -> None:
        """Stores the amounts spent, and gives back the rest of the claim.

        No request may be under way: amounts still reserved were abandoned, and count as spent.
        """
        with self._lock:
            self._spent = self._needed()
            self._reserved = dict.fromkeys(self._limits, 0.0)
            self._give_back()

    def _give_back(self) -> None:
        self._claimed = self._needed()
        self._publish()

    def _later(self) -> None:
        """Schedules storing the account within a second, and again while requests are under way."""
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
        """Returns whether any unit's amount exceeds the rounding of sums."""
        return any(amounts.get(u, 0) > ROUNDING * limit for u, limit in self._limits.items())

    def _fits(self, needed: Amounts, limits: Amounts) -> bool:
        """Returns whether a request, on top of the needs so far, stays within `limits`."""
        mine = self._needed()
        return all(
            mine[unit] + amount <= limits[unit] + ROUNDING * self._limits[unit]
            for unit, amount in needed.items()
        )

    def _claim(self, needed: Amounts) -> bool:
        """Returns whether enough could be claimed; if too little is left, gives back the rest."""
        now = time.monotonic()
        if now - self._refused_s < REFUSED_S and not self._fits(needed, self._unclaimed()):
            return False
        quick = now - self._claimed_s < QUICK_S
        self._requests = (
            min(2 * self._requests, MAX_REQUESTS) if quick else max(1.0, self._requests / 2)
        )
        for number in range(TRIES):
            self._others_then = self._others()
            left = self._unclaimed()
            if not self._fits(needed, left):
                self._refused_s = now
                self._give_back()
                return False
            claim = self._next_claim(needed, left, len(self._others_then) + 1)
            self._publish(claim)
            self._others_then = self._others()
            left = self._left(account.asked for account in self._others_then.values())
            if self._fits(needed, left):
                before = self._claimed
                self._claimed = {unit: min(claim[unit], left[unit]) for unit in claim}
                self._claimed_s = now
                try:
                    self._publish()
                except BaseException:
                    self._claimed = before  # spend only what a stored account claims
                    raise
                return True
            self._publish()
            pause_ms = zlib.crc32(f"{self._name}{number}".encode()) % (PAUSE_MS * (number + 1))
            time.sleep(pause_ms / 1000)  # longer each time: on a busy machine a claim takes longer
        return False

    def _next_claim(self, needed: Amounts, left: Amounts, workers: int) -> dict[str, float]:
        """Returns the whole claim to ask for: needs so far, the request and a share of the rest."""
        mine = self._needed()
        claim = {}
        for unit, amount in needed.items():
            rest = max(0.0, left[unit] - mine[unit] - amount) / (2 * workers)
            more = min(amount * (self._requests - 1), rest, self._limits[unit] * MAX_UNSPENT)
            claim[unit] = mine[unit] + amount + more
        return claim

    def _unclaimed(self) -> dict[str, float]:
        """Returns what the others' claims leave, by the same accounts that `may_return` judges."""
        return self._left(account.claimed for account in self._others_then.values())

    def _left(self, theirs: Iterable[Amounts]) -> dict[str, float]:
        """Returns what the others' amounts leave of each limit."""
        taken = _sum(theirs)
        return {unit: limit - taken.get(unit, 0) for unit, limit in self._limits.items()}

    def _others(self) -> dict[str, Account]:
        return _accounts(self._folder, self._name)

    def _publish(self, claim: Amounts | None = None) -> None:
        """Stores the account if it has changed; `claim` is asked for, not yet granted."""
        claimed = {unit: max(self._claimed[unit], need) for unit, need in self._needed().items()}
        asking = {u: max(claim[u], amount) for u, amount in claimed.items()} if claim else claimed
        spent = dict(self._spent)
        if spent != self._published.spent:
            self._store()
        account = Account(claimed, asking, spent, self._beat)
        if account != self._published and (any(asking.values()) or self._published.claimed):
            self._folder.put(self._name, _text(account), "budget")
            self._published = account


def close_accounts(folder: Storage) -> None:
    """Merges all accounts into earlier.json, claims counted as spent; nobody may spend now."""
    names = [entry.name for entry in folder.entries() if entry.name != EARLIER]
    if not names:
        return
    spent = spent_in(folder)
    folder.put(EARLIER, _text(Account(spent, spent, spent, closed=tuple(names))), "budget")
    for name in names:
        folder.delete(name)


def spent_in(folder: Storage) -> dict[str, float]:
    """Returns the amounts that a stage has spent, by unit, open claims included."""
    return _sum(account.claimed for account in _accounts(folder, "").values())


def _accounts(folder: Storage, own: str) -> dict[str, Account]:
    """Reads all accounts but one's own, by file name; those within earlier.json are left out."""
    names = [entry.name for entry in folder.entries() if entry.name != own]
    if not names:
        return {}
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda name: folder.read_json(name, Account), names)
        accounts = {name: account for name, account in zip(names, read, strict=True) if account}
    closed = accounts[EARLIER].closed if EARLIER in accounts else ()
    return {name: account for name, account in accounts.items() if name not in closed}


def _sum(amounts: Iterable[Amounts]) -> dict[str, float]:
    total: dict[str, float] = {}
    for some in amounts:
        for unit, amount in some.items():
            total[unit] = total.get(unit, 0.0) + amount
    return total


def _text(account: Account) -> bytes:
    return json.dumps(asdict(account)).encode()
