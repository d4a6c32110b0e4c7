"""Runs a plan's jobs as their inputs become ready, and has damaged files made again."""

import queue
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import attempts
from clipmill.pipeline.engine.answers import FOLDER as ANSWERS
from clipmill.pipeline.engine.answers import pack
from clipmill.pipeline.engine.budget import FOLDER as BUDGET
from clipmill.pipeline.engine.budget import close_accounts
from clipmill.pipeline.engine.dataset_job import DatasetJob
from clipmill.pipeline.engine.machines import refuse_blind
from clipmill.pipeline.engine.manifests import seal
from clipmill.pipeline.engine.repair import is_recorded, refusal, take_away
from clipmill.pipeline.engine.row_job import RowJob
from clipmill.pipeline.engine.running import Running
from clipmill.pipeline.errors import ClipmillError, LostLockError
from clipmill.pipeline.executors import Executor
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.claim import claim, refuse_foreign
from clipmill.pipeline.run_folder.live import LiveReporter, Watcher
from clipmill.pipeline.run_folder.origin import refuse_another_pool, remember_pools
from clipmill.pipeline.run_folder.spent import Spent
from clipmill.pipeline.run_folder.state import RunState

Job = RowJob | DatasetJob
LOOK_UP_S = 0.5  # the calling thread wakes this often, so that it can handle signals


@dataclass
class Outcome:
    """The end of a run: the state of every stage, and the errors that stopped some."""

    state: RunState
    stopped: dict[str, ClipmillError | None]  # stage to its error; None: another held it back
    spent: dict[str, Spent] = field(default_factory=dict)  # work of this run, by stage's folder

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
    most_shards: int | None = None,
    profile: str | None = None,
) -> Outcome:
    """Runs the stages that are not done. Finished shards of a stage that fails stay.

    Unless `keep_going`, a stage stops if its first shards fail for one reason, even if these were
    stored by an earlier run. With `most_shards` a root has its first shards only.
    """
    refuse_foreign(run)
    with lock.held(run) as owned:
        refuse_another_pool(plan, owned)
        claim(plan, owned)
        refuse_blind(plan, owned, executor)
        remember_pools(plan, owned)
        state = RunState(plan, owned)
        reporter = LiveReporter(state, owned, watcher)
        running = Running(
            plan=plan,
            state=state,
            executor=executor,
            watcher=reporter,
            run_id=uuid.uuid4().hex,
            retry=tuple(reason for reason in retry if reason != "crashed"),
            crash_ok="crashed" in retry,
            keep_going=keep_going,
            most_shards=most_shards,
            profile=profile,
        )
        owned.sweep(state.sealed)
        recorded = [p for p in plan.stages.values() if p.stage.determinism == "recorded"]
        if recorded:
            pack(owned.child(ANSWERS))
        for planned in recorded:
            close_accounts(state.stored[planned.name].folder.child(BUDGET))
        try:
            with reporter.kept(executor):
                return _Schedule(running).run()
        except BaseException:
            executor.close()  # while we still hold the folder's lock
            raise


class _Schedule:
    """The scheduler: each job runs in a thread of its own, all else in the calling thread."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.state, self.plan, self.watcher = running.state, running.plan, running.watcher
        self.stopped: dict[str, ClipmillError | None] = {}
        self.ended: set[str] = set()
        self.blocked: set[str] = set()  # blamed stages, and all stages downstream
        self.jobs: list[Job] = []  # running
        self.results: queue.SimpleQueue[tuple[Job, list[DamagedError], BaseException | None]] = (
            queue.SimpleQueue()
        )
        self.damaged: list[tuple[Job, list[DamagedError]]] = []  # to be made again
        self.healed: set[tuple[str, str]] = set()  # damaged files deleted in this run
        if running.crash_ok:
            for stage in self.state.stages.values():
                attempts.forget(stage.folder)

    def run(self) -> Outcome:
        """Starts jobs as they become ready, until none runs and none can start."""
        while True:
            self._heal()
            ready = self._ready()
            if not self.running.executor.side_by_side:
                ready = ready[:1]
            for job in ready:
                self._start(job)
            if not self.jobs:
                break
            self._end(*self._next_result())
        for name in self.plan.stages:
            if name not in self.ended:
                self.stopped.setdefault(name, None)
        self.state.run.sweep(self.state.sealed)  # leftovers of workers that died
        folders = {name: planned.folder for name, planned in self.plan.stages.items()}
        spent = {folders[name]: spent for name, spent in self.running.spent.items()}
        return Outcome(self.state, self.stopped, spent)

    def _ready(self) -> list[Job]:
        """Returns the jobs that can start.

        A row stage waits for stages outside its job to end; a dataset stage, for all to complete.
        """
        together: dict[str, list[PlannedStage]] = {}
        dataset: list[Job] = []
        barred = {*self.ended, *self.stopped, *self.blocked, *self._names(self.jobs)}
        for job, damaged in self.damaged:
            barred |= self._after(self._names([job]) | self._owners(damaged))
        for planned in self.plan.stages.values():
            if planned.name in barred:
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
                self.results.put((job, job.run(), None))
            except BaseException as error:
                self.results.put((job, [], error))

        self.jobs.append(job)
        if self.running.executor.side_by_side:
            threading.Thread(target=work, daemon=True).start()
        else:
            work()

    def _next_result(self) -> tuple[Job, list[DamagedError], BaseException | None]:
        while True:
            try:
                return self.results.get(timeout=LOOK_UP_S)
            except queue.Empty:
                continue

    def _end(self, job: Job, damaged: list[DamagedError], error: BaseException | None) -> None:
        """Finishes or stops the stages of a job that has ended; damaged files are queued."""
        self.jobs.remove(job)
        if damaged:
            self.damaged.append((job, damaged))
        elif error is None:
            for planned in job.stages:
                self._finish(planned)
        elif isinstance(error, ClipmillError) and not isinstance(error, LostLockError):
            self.blocked |= self._after([job.blamed] if job.blamed else [])
            for planned in job.stages:
                self.state.rescan(planned.name)
            names = [planned.name for planned in job.stages]
            incomplete = [name for name in names if not self.state.stages[name].complete]
            to_blame = [job.blamed] if job.blamed else incomplete or names
            for planned in job.stages:
                if planned.name in to_blame:
                    self.stopped[planned.name] = error
                    self.watcher.stopped(planned.name, error)
                elif self.state.stages[planned.name].complete:
                    self._finish(planned)
                else:
                    self.stopped[planned.name] = None
                    self.watcher.finished(planned.name, self.state.stages[planned.name])
        else:
            raise error

    def _finish(self, planned: PlannedStage) -> None:
        stage = self.state.stages[planned.name]
        self.ended.add(planned.name)
        if stage.complete:
            seal(self.state, planned.name)
        else:
            self.stopped.setdefault(planned.name, None)
        self.watcher.finished(planned.name, stage)

    # Damage

    def _heal(self) -> None:
        """Deletes damaged files, each once a run, so that the next jobs make them again.

        Returns early while a job of their stages or downstream runs: it may read the same files.
        """
        everything = [file for _, damaged in self.damaged for file in damaged]
        if self._after(self._owners(everything)) & self._names(self.jobs):
            return
        deleted: dict[tuple[str, str], bool] = {}  # several jobs may have met the same file
        for job, damaged in self.damaged:
            for file in damaged:
                if (file.folder, file.name) not in deleted:
                    deleted[file.folder, file.name] = self._delete(file, job)
            if all(deleted[file.folder, file.name] for file in damaged):
                continue
            for planned in job.stages:  # the file stays damaged: its readers do not run again
                if planned.is_row:
                    self._finish(planned)
                else:
                    self.stopped.setdefault(planned.name, None)
        self.damaged.clear()

    def _delete(self, file: DamagedError, job: Job) -> bool:
        """Deletes a damaged file and reopens its stage and all downstream; False if refused."""
        place = (file.folder, file.name)
        planned = next((self.plan.stages[name] for name in self._owners([file])), None)
        if planned is None or is_recorded(planned.stage) or place in self.healed:
            blamed = planned or job.stages[0]
            error = refusal(file, planned, self.state.run)
            self.stopped[blamed.name] = error
            self.watcher.stopped(blamed.name, error)
            return False
        self.watcher.damaged(planned.name, file)
        self.healed.add(place)
        take_away(self.state.stages[planned.name].folder, [file.name])
        after = self._after([planned.name])
        self.state.rescan(planned.name)
        for name in self.plan.stages:
            if name in after and name != planned.name:
                self.state.resolve(name)
        self.ended -= after
        return True

    def _after(self, names: Iterable[str]) -> set[str]:
        """Returns the stages and all downstream of them."""
        after = set(names)
        for planned in self.plan.stages.values():
            if after & set(planned.needs):
                after.add(planned.name)
        return after

    def _owners(self, files: Iterable[DamagedError]) -> set[str]:
        """Returns the stages of this run that the files belong to."""
        folders = {file.folder for file in files}
        stored = self.state.stored.items()
        return {name for name, columns in stored if columns.folder.uri in folders}

    def _names(self, jobs: Iterable[Job]) -> set[str]:
        return {planned.name for job in jobs for planned in job.stages}
