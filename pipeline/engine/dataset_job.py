"""Runs a dataset stage: its own code over all shards, then its manifest."""

import time
from dataclasses import dataclass

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.outputs import NOTES, OUT, noted_outputs
from clipmill.metadata.record import MANIFEST, Manifest
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.engine.context import RunContext
from clipmill.pipeline.engine.failures import raised, storage_error
from clipmill.pipeline.engine.journal import StageRun
from clipmill.pipeline.engine.manifests import put_dataset_manifest
from clipmill.pipeline.engine.running import Running
from clipmill.pipeline.engine.uid_indexes import index_uids
from clipmill.pipeline.errors import ClipmillError, LostLockError, StageError
from clipmill.pipeline.planning.elsewhere import digest_of, is_gone
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.rows import PoolShards
from clipmill.pipeline.stage import DatasetStage


def outside_of(planned: PlannedStage, manifest: Manifest | None) -> str:
    """Returns the digest of inputs from outside the run, followed by that of an export.

    A finished stage no longer needs the export: if it is gone, its stored digest counts.
    """
    assert isinstance(planned.stage, DatasetStage)
    outside = planned.stage.outside()
    if planned.elsewhere is None:
        return outside
    if manifest and is_gone(planned.elsewhere):
        return f"{outside} {manifest.outside.rpartition(' ')[2]}"
    where = f"stage '{planned.name}', key `data`"
    return f"{outside} {digest_of(planned.elsewhere, where)}"


@dataclass
class DatasetJob:
    """The job of one dataset stage; nobody else changes the stage's state while it runs."""

    running: Running
    planned: PlannedStage

    @property
    def stages(self) -> list[PlannedStage]:
        return [self.planned]

    @property
    def blamed(self) -> str:
        """The stage whose error ends this job."""
        return self.planned.name

    def run(self) -> list[DamagedError]:
        """Runs the stage unless it is done; returns the damaged file it met, to be recomputed."""
        planned, state, watcher = self.planned, self.running.state, self.running.watcher
        assert isinstance(planned.stage, DatasetStage)
        state.resolve(planned.name)
        try:
            outside = outside_of(planned, state.stages[planned.name].manifest)
        except OSError as error:
            raise storage_error(error, planned.where, state.run) from error
        stage = state.stages[planned.name]
        if stage.complete and not planned.is_root:
            if stage.manifest and stage.manifest.outside == outside:
                return []
            stage.folder.delete(MANIFEST)
            state.rescan(planned.name)
        if not planned.is_root:
            state.stages[planned.name].unseal()
        watcher.stage(planned.name, state.stages[planned.name].total, 0)
        read = state.inputs_digest(planned)
        assert read is not None
        made_of = {"inputs": read, **({"outside": outside} if outside else {})}
        rows = state.inputs(planned)
        context = self._context(made_of, rows if isinstance(rows, PoolShards) else None)

        def uri(name: str | None) -> str | None:
            return state.stored[name].folder.uri if name else None

        began, began_ns = time.monotonic(), time.time_ns()
        try:
            if not planned.is_root and context.calls.name not in stage.folder.folders():
                for name in (OUT, NOTES):  # their files were made from other inputs
                    stage.folder.delete_folder(name)
                stage.folder.put(f"{context.calls.name}/begun.json", b"{}", point="journal")
            mask, plan = state.mask(planned), self.running.plan
            place = stage.folder, f"{context.calls.name}/rows"
            inputs = Inputs(
                rows=rows.by_reference(*place),
                data=uri(planned.data) or planned.elsewhere or "",
                mask=mask and mask.by_reference(*place),
                model=uri(planned.model),
                start=uri(planned.start),
                centroids=uri(planned.centroids),
                targets=uri(planned.targets),
                model_of=plan.models_of(planned.name),
                target_model_of=plan.models_of(planned.targets),
                own_model=plan.model_named(planned.name),
                steps=plan.steps_to(planned.name),
            )
            planned.stage.run(inputs, context)
            if planned.is_root and not context.failures:
                index_uids(context)
            stored = noted_outputs(stage.folder, began_ns)
        except DamagedError as damage:
            return [damage]
        except LostLockError:
            raise
        except ClipmillError as error:
            raise StageError(*error.args) from error
        except OSError as error:
            raise storage_error(error, planned.where, state.run) from error
        except Exception as error:
            raise StageError(*raised(error, planned.where), "mend the stage") from error
        finally:
            context.close()
        for failure in context.failures.values():
            watcher.failed(planned.name, failure)
        stage, seconds = state.stages[planned.name], time.monotonic() - began
        put_dataset_manifest(stage, context, made_of, stored, seconds)
        state.rescan(planned.name)
        if self.running.spent[planned.name].busy_s and planned.root:
            self.running.spent[planned.name].rows = state.stages[planned.root].rows
        if planned.is_root:
            stage = state.stages[planned.name]
            stage.total = context.shards
            stage.failures.update(context.failures)
        elif not context.failures and not state.stages[planned.name].complete:
            raise StageError(
                "files of it are gone or changed, just after they were stored",
                f"stage '{planned.name}', {stage.folder}",
                "look for what else writes or deletes there, then run again",
            )
        return []

    def _context(self, made_of: dict[str, str], home: PoolShards | None) -> RunContext:
        stage = self.running.state.stages[self.planned.name]
        before = stage.scan.manifest
        is_remade = before is not None and before.made_of == made_of
        return RunContext(
            StageRun(
                running=self.running,
                planned=self.planned,
                folder=stage.folder,
                made_of=made_of,
                known=stage.scan,
                home=home,
                page_checksums=before.page_checksums if before and is_remade else True,
            )
        )
