"""What stages left as files: exports, trained models, results of evaluations."""

import json
from dataclasses import dataclass

from clipmill.metadata.datacard import SUMMARY
from clipmill.metadata.outputs import Outputs
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.run_folder.state import RunState


@dataclass(frozen=True, kw_only=True)
class Export:
    """The files of one complete stage; `rows` = `exported` + those left out, by reason.

    `rows` and `exported` are null for files that are no rows, as a model's.
    """

    stage: str
    rows: int | None
    exported: int | None
    left: dict[str, int]
    folder: str
    files: int
    bytes: int


def exports(state: RunState) -> tuple[Export, ...]:
    """Every complete stage that gives files, in the recipe's order; StageError where the counts of
    an export don't add up."""
    return tuple(
        _export(state, name)
        for name, stage in state.stages.items()
        if stage.complete and stage.planned.gives_data
    )


def _export(state: RunState, name: str) -> Export:
    stage = state.stages[name]
    outputs = Outputs(stage.folder)
    summary = json.loads(outputs.read(SUMMARY)) if SUMMARY in outputs.names else {}
    counts = dict(summary.get("counts", {}))
    rows, exported = counts.pop("rows", None), counts.pop("exported", None)
    if rows is not None and rows != exported + sum(counts.values()):
        raise StageError(
            f"{exported} of {rows} rows exported, {counts}",
            f"stage '{name}'",
            "the export is damaged: delete its folder and run again",
        )
    return Export(
        stage=name,
        rows=rows,
        exported=exported,
        left={reason: count for reason, count in counts.items() if count},
        folder=f"{stage.folder}/out",
        files=len(stage.outputs),
        bytes=sum(size for _, size in stage.outputs),
    )
