"""`clipmill status`: what is done in a run, and what failed."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from pipeline.verbs import DONE
from pipeline.verbs._options import add_json, add_run

if TYPE_CHECKING:
    from metadata.record import Failure
    from pipeline.run_folder.state import RunState, StageState

HELP = "what is done in a run, and what failed"
EXAMPLES = """\
clipmill status --run run
clipmill status --run s3://bucket/run --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_run(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints a line a stage, and what failed."""
    from pipeline.run_folder.state import latest

    state = latest(options.run)
    print(json.dumps(as_json(state), indent=1) if options.json else text(state))
    return DONE


def as_json(state: "RunState") -> dict[str, Any]:
    """Every stage: shards and rows done, seconds, rows by reason, failures."""
    return {
        "run": str(state.run),
        "recipe": state.plan.recipe.path,
        "stages": [_status_of(name, stage) for name, stage in state.stages.items()],
    }


def _status_of(name: str, stage: "StageState") -> dict[str, Any]:
    return {
        "name": name,
        "uses": stage.planned.uses,
        "data": stage.planned.data,
        "rows_of": stage.planned.kept_by,
        "complete": stage.complete,
        "shards": len(stage.shards),
        "total": stage.total,
        "rows": sum(shard.rows for shard in stage.shards.values()),
        "seconds": round(stage.seconds, 1),
        "reasons": {code: n for code, n in sorted(stage.counts.items()) if code},
        "failures": [_failure_json(f) for f in stage.failures.values() if f is not None],
    }


def _failure_json(failure: "Failure") -> dict[str, Any]:
    return {
        "shard": failure.shard,
        "crashed": failure.crashed,
        "found": failure.found,
        "where": failure.where,
        "do": failure.do,
    }


def text(state: "RunState") -> str:
    """A line a stage; its failures below."""
    from pipeline.run_folder.state import summary

    lines = [f"{state.run}: {state.plan.recipe.path}", ""]
    width = max(map(len, state.stages))
    for name, stage in state.stages.items():
        made = _status_of(name, stage)
        if stage.planned.gives_rows:
            missing = sum(made["reasons"].values())
            stored = f"{made['rows']:>10,} rows  {missing:>9,} without a value"
        else:
            stored = f"{len(stage.outputs):>10,} files{'':>26}"
        planned = stage.planned
        subset = f"  rows of '{planned.kept_by}' in '{planned.data}'" if planned.kept_by else ""
        seconds = f"{made['seconds']:>8,.1f} s"
        lines.append(f"{name:<{width}}  {summary(stage):<24} {stored}  {seconds}{subset}")
    lines += failures(state)
    return "\n".join(lines)


def failures(state: "RunState") -> list[str]:
    """Lines on every shard that failed: what, where, and what to do."""
    lines = []
    for name, stage in state.stages.items():
        for failure in stage.failures.values():
            if failure is not None:
                lines += [
                    "",
                    f"{name}, shard {failure.shard}: {failure.found}",
                    f"  where: {failure.where}",
                    f"  do:    {failure.do}",
                ]
    return lines
