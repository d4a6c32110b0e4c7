"""`clipmill`: plan, run, submit, status, verify, funnel, why, sweep, report, export, pool,
concepts, doctor.

Exit codes: 0 done, 1 a stage failed, 2 the recipe or the arguments are wrong, 130 and 143 stopped
by Ctrl-C and by `kill`.
Everything heavy is imported by the verb that needs it: `--help` is instant.
"""

import argparse
import atexit
import contextlib
import errno
import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metadata.damage import DamagedError
from pipeline.concepts import add_verbs as add_concepts_verbs
from pipeline.errors import ClipmillError, RecipeError
from pipeline.terminal import guard

if TYPE_CHECKING:
    from pipeline.executors import Executor
    from pipeline.plan import Plan
    from pipeline.state import RunState

atexit.register(gc.freeze)  # a last search for garbage in all that was imported takes a while
DONE, FAILED, WRONG = 0, 1, 2
STOPS = (signal.SIGINT, signal.SIGTERM)
BAD_PATH = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    guard()
    sys.path.insert(0, os.getcwd())  # a `stages/` folder here adds stages
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check_text(arguments or sys.argv[1:])
        code = int(options.verb(options))
        sys.stdout.flush()  # at exit nobody could answer a pipe that is gone
        return code
    except RecipeError as error:
        return _say(error, WRONG)
    except DamagedError as found:
        return _say(f"{found}\n  do:    clipmill verify --run … --repair makes it again", FAILED)
    except ClipmillError as error:
        return _say(error, FAILED)
    except KeyboardInterrupt as stop:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return _code_of(stop)
    except BrokenPipeError:  # `clipmill funnel | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:  # of the run folder; what a stage meets there is its own error
        from metadata.storage import KEYS, wants_keys

        what = f"{type(error).__name__}: {error.strerror or error}"
        place = str(error.filename2 or error.filename or "the storage of the run")
        is_in_the_way = isinstance(error, IsADirectoryError)
        do = "delete that folder" if is_in_the_way else "check that it is there and can be written"
        do = KEYS if wants_keys(error) else f"{do}, and run again"
        said = ClipmillError(what, place, do)
        is_wrong = isinstance(error, BAD_PATH) or error.errno == errno.ENAMETOOLONG
        return _say(said, WRONG if is_wrong else FAILED)


def _check_text(arguments: list[str]) -> None:
    try:
        "".join(arguments).encode()
    except UnicodeEncodeError:
        raise RecipeError("bytes that are no UTF-8", "the arguments", "rename that file") from None


def _code_of(stop: KeyboardInterrupt) -> int:
    """As a shell counts a signal."""
    return 128 + int(stop.args[0] if stop.args else signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clipmill",
        description="From a raw pool of image-text pairs to a training set for CLIP.",
    )
    verbs = parser.add_subparsers(dest="name", required=True, metavar="VERB")

    plan = verbs.add_parser("plan", help="check a recipe and show what would run")
    _recipe_arguments(plan)
    plan.add_argument("--out", metavar="URI", help="run folder: shows what is done there")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(verb=_plan)

    run = verbs.add_parser("run", help="run a recipe; run it again to go on where it stopped")
    _recipe_arguments(run)
    run.add_argument("--out", metavar="URI", required=True, help="run folder: a path or s3://…")
    _where_arguments(run)
    _retry_argument(run)
    run.add_argument("--json", action="store_true", help="print the outcome as JSON")
    run.set_defaults(verb=_run)

    submit = verbs.add_parser(
        "submit", help="run a recipe on a Ray cluster, and follow it from here"
    )
    _recipe_arguments(submit)
    submit.add_argument("--address", metavar="URL", required=True, help="http://HOST:8265")
    submit.add_argument("--out", metavar="URI", required=True, help="run folder, seen from there")
    _retry_argument(submit)
    submit.add_argument("--workers", type=int, metavar="N", help="at most, of one kind")
    submit.add_argument("--no-wait", action="store_true", help="do not follow the run")
    submit.set_defaults(verb=_submit)

    status = verbs.add_parser("status", help="what of a run is done, and what failed")
    _run_argument(status)
    status.set_defaults(verb=_status)

    verify = verbs.add_parser("verify", help="check every stored file of a run against its record")
    _run_argument(verify)
    verify.add_argument(
        "--repair",
        action="store_true",
        help="make damaged files again; only this asks anew for answers of the web",
    )
    _where_arguments(verify)
    verify.set_defaults(verb=_verify)

    funnel = verbs.add_parser("funnel", help="where the pool's rows went, by stage and reason")
    _run_argument(funnel)
    funnel.set_defaults(verb=_funnel)

    why = verbs.add_parser("why", help="what every stage said of one sample, and why it went")
    why.add_argument("uid", help="32 hex digits, or the first 8 or more of them")
    _run_argument(why)
    why.set_defaults(verb=_why)

    sweep = verbs.add_parser("sweep", help="what a select stage would keep at other thresholds")
    _run_argument(sweep)
    sweep.add_argument("--stage", required=True, help="a select stage")
    sweep.add_argument(
        "--vary", required=True, metavar="NAME=START:STOP:STEP", help="clip_score=0.10:0.40:0.02"
    )
    sweep.add_argument("--html", type=Path, metavar="FILE", help="write plots and pictures too")
    sweep.set_defaults(verb=_sweep)

    report = verbs.add_parser("report", help="a run on one HTML page")
    report.add_argument("--run", required=True, metavar="URI", help="run folder")
    report.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE")
    report.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        metavar="NAME",
        help="arm that results are compared with: an export, a training, a stage on its way",
    )
    report.set_defaults(verb=_report)

    export = verbs.add_parser("export", help="write the rows a stage of a run keeps to a folder")
    export.add_argument("path", metavar="PATH", help="folder to write to: a path or s3://…")
    _run_argument(export)
    export.add_argument("--stage", required=True, help="stage whose rows go out")
    export.add_argument("--to", required=True, choices=("parquet", "webdataset", "uid_list"))
    _where_arguments(export)
    export.set_defaults(verb=_export)

    pool = verbs.add_parser("pool", help="build a raw pool with known truth, or serve it")
    kinds = pool.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, text in (
        ("demo", "19,000 real pairs from npm packages, with planted faults"),
        ("full", "76,000 pairs, from npm and Debian packages"),
        ("generated", "a tiny drawn pool: no network, no package"),
    ):
        build = kinds.add_parser(kind, help=text)
        build.add_argument("--out", required=True, type=Path, metavar="DIR")
        build.add_argument("--seed", type=int, default=0)
        build.add_argument("--workers", type=int, metavar="N")
        build.add_argument("--port", type=int, default=8765, help="port its URLs name")
        if kind == "generated":
            build.add_argument("--rows", type=int, help="about how many rows")
        build.set_defaults(verb=_pool)
    serve = kinds.add_parser("serve", help="serve a pool's images over loopback HTTP")
    serve.add_argument("directory", type=Path, metavar="DIR")
    serve.add_argument("--port", type=int, default=8765)
    serve.set_defaults(verb=_serve)
    score = kinds.add_parser("score", help="what a run caught of the faults planted in a pool")
    score.add_argument("directory", type=Path, metavar="DIR")
    _run_argument(score)
    score.set_defaults(verb=_score)

    concepts = verbs.add_parser("concepts", help="a list of concepts to match captions with")
    add_concepts_verbs(concepts)

    doctor = verbs.add_parser("doctor", help="check this machine, and whether a model loads")
    doctor.add_argument(
        "subject", nargs="*", metavar="tasks DIR", help="check a folder of evaluation tasks instead"
    )
    doctor.add_argument("--model", action="append", default=[], metavar="SCHEME")
    doctor.add_argument("--out", metavar="URI", help="run folder: its disk is checked")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(verb=_doctor)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe's name (`quickstart`) or a path (`mine.yaml`)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="STAGE.KEY=VALUE",
        help="override one key of the recipe; may be repeated",
    )
    parser.add_argument("--until", metavar="STAGE", help="only this stage and what it needs")


def _retry_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--retry",
        action="append",
        default=[],
        metavar="REASON",
        help="try again the rows that failed for this passing reason, or `crashed` shards",
    )


def _where_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
    parser.add_argument("--address", metavar="A", help="Ray cluster; without it a local Ray")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes; 0 runs in this one, for a debugger"
    )


def _run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, metavar="URI", help="run folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _plan(options: argparse.Namespace) -> int:
    plan = _planned(options)
    from pipeline import show

    state = _state(plan, options.out) if options.out else None
    if options.json:
        print(json.dumps(show.plan_json(plan, state), indent=1))
    else:
        print(show.plan_text(plan, state))
    return DONE


def _run(options: argparse.Namespace) -> int:
    plan = _planned(options)
    from metadata.storage import Storage
    from pipeline import show
    from pipeline.progress import watcher
    from pipeline.run import run_plan

    _check_retry(plan, options.retry)
    for note in show.notes(plan):
        print(f"clipmill: note: {note}", file=sys.stderr)
    with _executor(options) as executor, watcher() as watch:
        outcome = run_plan(plan, Storage(options.out), executor, watch, tuple(options.retry))
    if options.json:
        print(json.dumps(show.outcome_json(outcome), indent=1))
    else:
        print(show.outcome_text(outcome))
    return DONE if outcome.complete else FAILED


def _submit(options: argparse.Namespace) -> int:
    plan = _planned(options)
    _check_retry(plan, options.retry)
    _check_workers(options.workers)
    from pipeline.submit import follow, send

    job = send(
        plan,
        address=options.address,
        out=options.out,
        until=options.until,
        retry=options.retry,
        workers=options.workers,
    )
    print(f"{job}\n{job.how_to}", file=sys.stderr)
    if options.no_wait:
        return DONE
    try:
        return follow(job)
    except KeyboardInterrupt as stop:
        print(f"\nnot followed any more; the job goes on\n{job.how_to}", file=sys.stderr)
        return _code_of(stop)


def _status(options: argparse.Namespace) -> int:
    from pipeline import show

    state = _latest(options.run)
    if options.json:
        print(json.dumps(show.status_json(state), indent=1))
    else:
        print(show.status_text(state))
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from pipeline import show, verify
    from pipeline.plan import make_plan
    from pipeline.progress import reading, watcher
    from pipeline.run import run_plan

    state = _latest(options.run)
    plan, run = state.plan, state.run
    with reading() as on_bytes:
        found = verify.verify(run, on_bytes)
    print(json.dumps(verify.as_json(found), indent=1) if options.json else verify.text(found))
    if not any(checked.damaged for checked in found):
        return DONE
    if not options.repair:
        return FAILED
    with _executor(options) as executor, watcher() as watch:

        def run_until(stage: str) -> None:
            run_plan(make_plan(plan.recipe, stage), run, executor, watch)

        asked = verify.repair(plan, run, found, run_until)
        print(f"at most {asked} rows are asked for again", file=sys.stderr)
        outcome = run_plan(plan, run, executor, watch)
    print(show.outcome_text(outcome), file=sys.stderr)
    left = verify.others(plan, found)
    if left:
        print(f"left to the recipes that made them: {', '.join(left)}", file=sys.stderr)
    return DONE if outcome.complete and not left else FAILED


def _funnel(options: argparse.Namespace) -> int:
    from pipeline import funnel

    found = funnel.funnel(_latest(options.run))
    print(json.dumps(found, indent=1) if options.json else funnel.text(found))
    return DONE


def _why(options: argparse.Namespace) -> int:
    from pipeline import why

    found = why.why(_latest(options.run), options.uid)
    print(json.dumps(found, indent=1) if options.json else why.text(found))
    return DONE


def _sweep(options: argparse.Namespace) -> int:
    from pipeline.report.sweep_page import sweep_page
    from pipeline.sweep import sweep, text

    state = _latest(options.run)
    found = sweep(state, options.stage, options.vary)
    if options.html:
        options.html.write_text(sweep_page(state, found), encoding="utf-8")
    print(json.dumps(found, indent=1) if options.json else text(found))
    return DONE


def _report(options: argparse.Namespace) -> int:
    from pipeline.report.build import report
    from pipeline.report.results import headline, results

    state = _latest(options.run)
    options.out.write_text(report(state, options.baseline), encoding="utf-8")
    if found := results(state, options.baseline):
        print(f"{headline(found)}\n")
    print(options.out)
    return DONE


def _export(options: argparse.Namespace) -> int:
    from pipeline.export import export
    from pipeline.progress import watcher

    state = _latest(options.run)
    with _executor(options) as executor, watcher() as watch:
        files = export(state, options.stage, options.to, options.path, executor, watch)
    print(json.dumps(files) if options.json else f"{len(files)} files in {options.path}")
    return DONE


def _pool(options: argparse.Namespace) -> int:
    from pipeline.pools.build import build_pool

    build_pool(
        options.kind,
        options.out,
        seed=options.seed,
        workers=options.workers,
        port=options.port,
        rows=getattr(options, "rows", None),
    )
    return DONE


def _serve(options: argparse.Namespace) -> int:
    from pipeline.pools.server import serve

    serve(options.directory, options.port)
    return DONE


def _score(options: argparse.Namespace) -> int:
    from pipeline.pools import score

    found = score.score(_latest(options.run), options.directory)
    print(json.dumps(found, indent=1) if options.json else score.text(found))
    return DONE


def _doctor(options: argparse.Namespace) -> int:
    from pipeline.doctor import examine, examine_tasks, text

    match options.subject:
        case []:
            findings = examine(options.model, options.out)
        case ["tasks", folder]:
            findings = examine_tasks(folder)
        case other:
            raise RecipeError(
                f"doctor {' '.join(other)}", "the arguments", "write `doctor` or `doctor tasks DIR`"
            )
    print(json.dumps(findings, indent=1) if options.json else text(findings))
    return FAILED if any(finding["verdict"] == "bad" for finding in findings) else DONE


def _planned(options: argparse.Namespace) -> "Plan":
    gc.disable()  # what is imported here is no garbage, and to look for some takes a tenth longer
    try:
        from pipeline.plan import make_plan
        from pipeline.recipe import load_recipe

        return make_plan(load_recipe(options.recipe, options.overrides), options.until)
    finally:
        gc.enable()


def _state(plan: "Plan", uri: str) -> "RunState":
    from metadata.storage import Storage
    from pipeline.origin import refuse_another_pool
    from pipeline.state import RunState

    run = Storage(uri)
    refuse_another_pool(plan, run)
    return RunState(plan, run)


def _latest(uri: str) -> "RunState":
    """The run folder seen through the recipe that ran there last."""
    from pipeline.state import latest

    return latest(uri)


@contextlib.contextmanager
def _executor(options: argparse.Namespace) -> Iterator["Executor"]:
    """Its workers end with the command, and so they do when it is told to stop."""
    executor = _chosen(options)
    try:
        with _stopped_by_signals():
            yield executor
    finally:
        executor.close()


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Inside, the first Ctrl-C or `kill` is a KeyboardInterrupt; the next ends us at once."""
    before = {
        number: signal.signal(number, _stop)
        for number in STOPS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _stop:
                signal.signal(number, handler)


def _stop(number: int, _frame: object) -> None:
    for it in STOPS:
        if signal.getsignal(it) is _stop:
            signal.signal(it, _end)
    raise KeyboardInterrupt(number)


def _end(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _chosen(options: argparse.Namespace) -> "Executor":
    _check_workers(options.workers)
    if options.executor == "ray":
        from pipeline.executors.ray import RayExecutor

        return RayExecutor(address=options.address, workers=options.workers)
    if options.address:
        raise RecipeError("--address without Ray", "the arguments", "add --executor ray")
    from pipeline.executors.local import LocalExecutor

    return LocalExecutor(options.workers)


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 0:
        raise RecipeError(f"--workers {workers}", "the arguments", "give 0 or more")


def _check_retry(plan: "Plan", reasons: list[str]) -> None:
    from pipeline.recipe import nearest

    known = {"crashed"}.union(*(stage.stage.transient for stage in plan.stages.values()))
    for reason in reasons:
        if reason not in known:
            raise RecipeError(
                f"no stage here has '{reason}' as a reason that passes",
                "--retry",
                f"did you mean '{nearest(reason, sorted(known))}'?"
                f"  Known: {', '.join(sorted(known))}",
            )


def _say(error: Any, code: int) -> int:
    print(f"clipmill: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
