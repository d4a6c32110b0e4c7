"""Runs a plan: row stages of one root together, and dataset stages that are ready, side by side."""

import queue
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import attempts
from clipmill.pipeline.engine.answers import FOLDER as ANSWERS
from clipmill.pipeline.engine.answers import pack
from clipmill.pipeline.engine.budget import FOLDER as BUDGET
from clipmill.pipeline.engine.budget import close_accounts
from clipmill.pipeline.engine.dataset_job import DatasetJob
from clipmill.pipeline.engine.manifests import seal
from clipmill.pipeline.engine.repair import is_asked, refusal, take_away
from clipmill.pipeline.engine.row_job import RowJob
from clipmill.pipeline.engine.running import Running
from clipmill.pipeline.errors import ClipmillError, LostLockError
from clipmill.pipeline.executors import Executor
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.claim import claim, refuse_foreign
from clipmill.pipeline.run_folder.live import Telling, Watcher
from clipmill.pipeline.run_folder.origin import refuse_another_pool, remember_pools
from clipmill.pipeline.run_folder.state import RunState

Job = RowJob | DatasetJob
LOOK_UP_S = 0.5  # Python sees a signal late that another thread was given


@dataclass
class Outcome:
    """How a run ended: the state of every stage, and why those that are not complete are not."""

    state: RunState
    stopped: dict[str, ClipmillError | None]  # stage to its error; None: waits for another

    @property
    def complete(self) -> bool:
        done = all(stage.complete for stage in self.state.stages.values())
        return done and not any(self.stopped.values())


def run_plan(
    plan: Plan,
    run: Storage,
    executor: Executor,
    watcher: Watcher,
    retry: tuple[str, ...] = (),
    keep_going: bool = False,
) -> Outcome:
    """Runs what is not done. Finished shards of a stage that fails stay.

    A stage whose first shards fail for one reason stops, also where they were stored before, unless
    it is to keep going.
    """
    refuse_foreign(run)
    with lock.held(run) as owned:
        refuse_another_pool(plan, owned)
        claim(plan, owned)
        remember_pools(plan, owned)
        state = RunState(plan, owned)
        telling = Telling(state, owned, watcher)
        running = Running(
            plan=plan,
            state=state,
            executor=executor,
            watcher=telling,
            run_id=uuid.uuid4().hex,
            retry=tuple(reason for reason in retry if reason != "crashed"),
            crash_ok="crashed" in retry,
            keep_going=keep_going,
        )
        owned.sweep()
        if recorded := [p for p in plan.stages.values() if p.stage.determinism == "recorded"]:
            pack(owned.child(ANSWERS))
        for planned in recorded:
            close_accounts(state.stored[planned.name].folder.child(BUDGET))
        try:
            with telling.kept(executor):
                return _Schedule(running).run()
        except BaseException:
            executor.close()  # while the folder is ours
            raise


class _Schedule:
    """Which job starts when. A job runs in a thread of its own; all else happens in this one."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.state, self.plan, self.watcher = running.state, running.plan, running.watcher
        self.stopped: dict[str, ClipmillError | None] = {}
        self.ended: set[str] = set()
        self.held: set[str] = set()  # a stage that is to blame, and all that is made of it
        self.jobs: list[Job] = []  # that run
        self.answers: queue.SimpleQueue[tuple[Job, list[DamagedError], BaseException | None]] = (
            queue.SimpleQueue()
        )
        self.damaged: list[tuple[Job, list[DamagedError]]] = []  # to be made again
        self.healed: set[tuple[str, str]] = set()  # damaged files that were taken away
        if running.crash_ok:
            for stage in self.state.stages.values():
                attempts.forget(stage.folder)

    def run(self) -> Outcome:
        """Starts all that can start, until nothing runs and nothing can."""
        while True:
            self._heal()
            ready = self._ready()
            if not self.running.executor.side_by_side:
                ready = ready[:1]
            for job in ready:
                self._start(job)
            if not self.jobs:
                break
            self._end(*self._next_answer())
        for name in self.plan.stages:
            if name not in self.ended:
                self.stopped.setdefault(name, None)
        self.state.run.sweep()  # of workers that died
        return Outcome(self.state, self.stopped)

    def _ready(self) -> list[Job]:
        """What can start: for each root the row stages whose other needs have ended; each dataset
        stage whose needs are complete."""
        together: dict[str, list[PlannedStage]] = {}
        dataset: list[Job] = []
        begun = {*self.ended, *self.stopped, *self.held, *self._names(self.jobs)}
        for job, damaged in self.damaged:
            begun |= self._after(self._names([job]) | self._blamed(damaged))
        for planned in self.plan.stages.values():
            if planned.name in begun:
                continue
            if not planned.is_row:
                needs = [self.state.stages[need] for need in planned.needs]
                over = {*self.ended, *self.stopped}
                if all(n.planned.name in over and n.complete for n in needs):
                    dataset.append(DatasetJob(self.running, planned))
                continue
            stages = together.setdefault(planned.root, [])
            inside = {other.name for other in stages}
            if all(need in self.ended or need in inside for need in planned.needs):
                stages.append(planned)
        return [*(RowJob(self.running, stages) for stages in together.values() if stages), *dataset]

    def _start(self, job: Job) -> None:
        def work() -> None:
            try:
                self.answers.put((job, job.run(), None))
            except BaseException as error:
                self.answers.put((job, [], error))

        self.jobs.append(job)
        if self.running.executor.side_by_side:
            threading.Thread(target=work, daemon=True).start()
        else:
            work()

    def _next_answer(self) -> tuple[Job, list[DamagedError], BaseException | None]:
        while True:
            try:
                return self.answers.get(timeout=LOOK_UP_S)
            except queue.Empty:
                continue

    def _end(self, job: Job, damaged: list[DamagedError], error: BaseException | None) -> None:
        """What becomes of the stages of a job that has run."""
        self.jobs.remove(job)
        if damaged:
            self.damaged.append((job, damaged))
        elif error is None:
            for planned in job.stages:
                self._finish(planned)
        elif isinstance(error, ClipmillError) and not isinstance(error, LostLockError):
            self.held |= self._after([job.blamed] if job.blamed else [])
            for planned in job.stages:
                self.state.rescan(planned.name)
            to_blame = self._to_blame(job)
            for planned in job.stages:
                name = planned.name
                self.stopped[name] = error if name in to_blame else None
                if name in to_blame:
                    self.watcher.stopped(name, error)
                else:
                    self.watcher.finished(name, self.state.stages[name])
        else:
            raise error

    def _to_blame(self, job: Job) -> list[str]:
        """The stage that a job blames; else those that its error kept from their end."""
        names = [planned.name for planned in job.stages]
        if job.blamed:
            return [job.blamed]
        return [name for name in names if not self.state.stages[name].complete] or names

    def _finish(self, planned: PlannedStage) -> None:
        stage = self.state.stages[planned.name]
        self.ended.add(planned.name)
        if stage.complete:
            seal(stage)
        else:
            self.stopped.setdefault(planned.name, None)
        self.watcher.finished(planned.name, stage)

    # Damage

    def _heal(self) -> None:
        """Takes damaged files away, so that the next jobs make them again. Each once a run.

        Not while a job runs that reads what is after them: it may meet them too.
        """
        everything = [found for _, damaged in self.damaged for found in damaged]
        if self._after(self._blamed(everything)) & self._names(self.jobs):
            return
        gone: dict[tuple[str, str], bool] = {}  # several jobs may have met the same file
        for job, damaged in self.damaged:
            for found in damaged:
                if (found.folder, found.name) not in gone:
                    gone[found.folder, found.name] = self._take_away(found, job)
            if all(gone[found.folder, found.name] for found in damaged):
                continue
            for planned in job.stages:  # what can't be read is not read again
                if planned.is_row:
                    self._finish(planned)
                else:
                    self.stopped.setdefault(planned.name, None)
        self.damaged.clear()

    def _take_away(self, found: DamagedError, job: Job) -> bool:
        """Whether the file goes, so that its stage and all after it are looked at again."""
        place = (found.folder, found.name)
        planned = next((self.plan.stages[name] for name in self._blamed([found])), None)
        if planned is None or is_asked(planned.stage) or place in self.healed:
            stopped = planned or job.stages[0]
            error = self.stopped[stopped.name] = refusal(found, planned, self.state.run)
            self.watcher.stopped(stopped.name, error)
            return False
        self.watcher.damaged(planned.name, found)
        self.healed.add(place)
        take_away(self.state.stages[planned.name].folder, found.name)
        after = self._after([planned.name])
        self.state.rescan(planned.name)
        for name in self.plan.stages:
            if name in after and name != planned.name:
                self.state.resolve(name)
        self.ended -= after
        return True

    def _after(self, names: Iterable[str]) -> set[str]:
        """The stages and all that are made of them."""
        after = set(names)
        for planned in self.plan.stages.values():
            if after & set(planned.needs):
                after.add(planned.name)
        return after

    def _blamed(self, damaged: Iterable[DamagedError]) -> set[str]:
        """The stages of this run that the files belong to."""
        folders = {found.folder for found in damaged}
        return {name for name, it in self.state.stored.items() if it.folder.uri in folders}

    def _names(self, jobs: Iterable[Job]) -> set[str]:
        return {planned.name for job in jobs for planned in job.stages}
