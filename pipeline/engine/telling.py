"""Keeps the run as it stands from what jobs and workers say, for watchers and in `live.json`."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import Failure, Record
from clipmill.pipeline.engine.told import Told
from clipmill.pipeline.errors import ClipmillError, LostLockError
from clipmill.pipeline.executors import Executor
from clipmill.pipeline.run_folder.live import (
    MOST_CAUSES,
    Cause,
    Live,
    LiveRun,
    Phase,
    Piece,
    live_run,
    live_stage,
    put_live,
    read_live,
)
from clipmill.pipeline.run_folder.lock import Owned
from clipmill.pipeline.run_folder.state import RunState, StageState

STORE_S = 3.0  # between two of `live.json`


class Look(Protocol):
    """The run as it stands; a copy, so that it stays as it is."""

    def __call__(self) -> LiveRun: ...


class Watcher(Protocol):
    """Whom a run shows itself to: bars, or a log.

    Stages run side by side, so the calls come from several threads: of one stage one at a time.
    """

    def begin(self, look: Look) -> None: ...

    def stage(self, name: str, total: int | None, done: int) -> None: ...

    def shard(self, name: str, record: Record, total: int | None) -> None: ...

    def unit(self, name: str, call: str, done: int, total: int) -> None: ...

    def failed(self, name: str, failure: Failure) -> None: ...

    def damaged(self, name: str, found: DamagedError) -> None: ...

    def stopped(self, name: str, error: ClipmillError) -> None: ...

    def finished(self, name: str, state: StageState) -> None: ...


class Telling:
    """Keeps the run's `LiveRun` as its jobs go on, and hands each event to a watcher."""

    def __init__(self, state: RunState, folder: Owned, watcher: Watcher) -> None:
        self.state, self.folder, self.watcher = state, folder, watcher
        self.live = live_run(state, "running", read_live(folder))
        self.live.owner, self.live.host = folder.hold.owner, socket.gethostname()
        self.live.pid = os.getpid()
        self.live.began = self.live.updated = time.time()
        for stage in self.live.stages.values():
            stage.began, stage.ended, stage.computed = None, None, 0
            if stage.status == "done":
                stage.status = "found"
            elif stage.status == "stopped":
                stage.status = "waiting"
            stage.pieces, stage.call, stage.units, stage.all_units = {}, "", 0, 0
        self._lock = threading.Lock()

    def look(self) -> LiveRun:
        """What jobs change in place is copied, all else shared."""
        with self._lock:
            stages = {
                name: replace(stage, reasons={**stage.reasons}, pieces={**stage.pieces})
                for name, stage in self.live.stages.items()
            }
            return replace(self.live, stages=stages)

    def show_only(self, name: str, executor: Executor) -> None:
        """Shows one stage to the watcher, and stores nothing: its work is no run of the recipe."""
        self.live.stages = {name: self.live.stages[name]}
        executor.on_told = self.told
        self.watcher.begin(self.look)

    @contextlib.contextmanager
    def kept(self, executor: Executor) -> Iterator[None]:
        """Inside it `live.json` is stored every few seconds; last, it says how the run ended."""
        executor.on_told = self.told
        over = threading.Event()
        thread = threading.Thread(target=self._keep, args=(over, executor), daemon=True)
        self.watcher.begin(self.look)
        self._store()
        thread.start()
        phase: Phase = "stopped"
        try:
            yield
            is_whole = all(s.status in ("done", "found") for s in self.live.stages.values())
            phase = "complete" if is_whole else "failed"
        finally:
            over.set()
            thread.join()
            with self._lock:
                self.live.phase, self.live.ended, self.live.halted = phase, time.time(), []
                for stage in self.live.stages.values():
                    if stage.status == "running":
                        stage.status, stage.ended = "stopped", self.live.ended
            self._store()

    def _keep(self, over: threading.Event, executor: Executor) -> None:
        while not over.wait(STORE_S):
            halted = executor.halted()
            with self._lock:
                self.live.halted = halted
            self._store()

    def _store(self) -> None:
        """What is told must not stop what is done: a store that fails now is asked again later."""
        live = self.look()
        live.updated = self.live.updated = time.time()
        with contextlib.suppress(OSError, LostLockError):
            put_live(self.folder, live)

    # What the jobs say

    def stage(self, name: str, total: int | None, done: int) -> None:
        fresh = live_stage(self.state, name)  # it may open files: nobody waits for that
        with self._lock:
            stage = self.live.stages[name]
            stage.total, stage.shards, stage.found = total, done, done
            if stage.status == "failed":  # before: it is tried again
                stage.status = "waiting"
            if stage.is_row:
                stage.rows, stage.reasons, stage.seconds = fresh.rows, fresh.reasons, fresh.seconds
                stage.causes = []
            else:
                if stage.began is None:
                    stage.rows, stage.reasons, stage.causes = 0, {}, []
                self._begin(stage)
        self.watcher.stage(name, total, done)

    def shard(self, name: str, record: Record, total: int | None) -> None:
        with self._lock:
            stage = self.live.stages[name]
            self._begin(stage, record.seconds)
            stage.pieces.pop(str(record.shard), None)
            stage.total = total
            stage.shards = stage.shards + 1 if total is None else min(total, stage.shards + 1)
            stage.rows += record.rows
            stage.computed += record.computed
            stage.seconds += record.seconds
            if record.number == 0:  # of a later pass the file tells, once the stage is done
                for code, rows in record.counts.items():
                    stage.reasons[code] = stage.reasons.get(code, 0) + rows
            if stage.is_row and stage.shards == total and stage.found < total:
                stage.status, stage.ended = "done", time.time()  # its wave may go on
        self.watcher.shard(name, record, total)

    def unit(self, name: str, call: str, done: int, total: int, words: str = "") -> None:
        with self._lock:
            stage = self.live.stages[name]
            self._begin(stage)
            if stage.call != words or not done:
                stage.call_began = time.time()
            if stage.call != words or done in (0, total):
                stage.pieces = {}
            stage.call, stage.units, stage.all_units = words, done, total
        if done:
            self.watcher.unit(name, call, done, total)

    def told(self, said: Told) -> None:
        """A worker's word on the piece in its hand."""
        with self._lock:
            for name in said.stages:
                stage = self.live.stages[name]
                if not said.all:
                    stage.pieces.pop(said.key, None)
                elif stage.status not in ("done", "found", "failed"):  # a word may come late
                    self._begin(stage)
                    stage.pieces[said.key] = Piece(said.done, said.all, said.what, said.values)

    def failed(self, name: str, failure: Failure) -> None:
        with self._lock:
            stage = self.live.stages[name]
            stage.pieces.pop(str(failure.shard), None)
            stage.causes = [*stage.causes, Cause.of_shard(failure)][-MOST_CAUSES:]
        self.watcher.failed(name, failure)

    def damaged(self, name: str, found: DamagedError) -> None:
        self.watcher.damaged(name, found)

    def stopped(self, name: str, error: ClipmillError) -> None:
        with self._lock:
            stage = self.live.stages[name]
            stage.status, stage.ended, stage.pieces = "failed", time.time(), {}
            stage.causes = [Cause.of_error(error), *stage.causes][:MOST_CAUSES]
        self.watcher.stopped(name, error)

    def finished(self, name: str, state: StageState) -> None:
        fresh = live_stage(self.state, name)
        with self._lock:
            stage = self.live.stages[name]
            fresh.began, fresh.computed = stage.began, stage.computed
            if state.complete and not (stage.computed or stage.call):
                fresh.status, fresh.began = "found", None
            elif stage.began is not None:
                fresh.ended = stage.ended or time.time()
            if not state.complete and not fresh.causes:
                fresh.status = "stopped" if stage.began is not None else "waiting"
            self.live.stages[name] = fresh
        self.watcher.finished(name, state)

    def _begin(self, stage: Live, ago_s: float = 0.0) -> None:
        if stage.began is None:
            stage.began = time.time() - ago_s
        stage.status = "running"
