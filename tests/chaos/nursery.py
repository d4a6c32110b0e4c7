"""`clipmill run` in forked children of a process that has imported all and started nothing.

A fresh interpreter costs a second of imports, and the kill matrix runs hundreds. Fork is sound
here as no thread pool (Arrow, Polars) has been touched before it. Reads one JSON object a line:
arguments, environment, output file. Answers each with the exit code, as subprocess counts it.

    python -m tests.chaos.nursery RECIPE [MODULE ...]
"""

import json
import os
import sys
import threading
from importlib import import_module

from clipmill.pipeline.cli import main
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.planning.settings import stage_class


def born(task: dict) -> int:
    """The child's life: a group of its own, so that a kill hits nobody else."""
    os.setsid()
    os.environ.update(task["environment"])
    output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        return main(task["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve(recipe: str, *modules: str) -> None:
    for keys in load_recipe(recipe).stages.values():  # not planned: that starts Polars' threads
        stage_class(keys["uses"], recipe)
    ours = (
        "polars",
        "pyarrow.parquet",
        "clipmill.pipeline.engine.run",
        "clipmill.pipeline.executors.local",
    )
    for name in (*ours, *modules):
        import_module(name)
    assert threading.active_count() == 1, "a fork would lose a thread"
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(born(json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
