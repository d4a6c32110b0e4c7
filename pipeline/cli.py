"""`clipmill VERB`: parses the arguments, runs the verb, and turns errors into exit codes.

Exit codes: 0 done, 1 a stage failed, 2 the recipe or the arguments are wrong, 130 and 143 stopped
by Ctrl-C and by `kill`.
"""

import argparse
import atexit
import errno
import gc
import os
import sys
from typing import Any

from metadata.damage import DamagedError
from pipeline.errors import ClipmillError, RecipeError
from pipeline.terminal import guard
from pipeline.verbs import (
    FAILED,
    WRONG,
    Verb,
    concepts,
    doctor,
    export,
    funnel,
    plan,
    pool,
    report,
    run,
    status,
    submit,
    sweep,
    verify,
    why,
)
from pipeline.verbs._signals import exit_code

atexit.register(gc.freeze)  # a last search for garbage in all that was imported takes a while
BAD_PATH = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
VERBS: tuple[Verb, ...] = (
    *(plan, run, submit, status, verify),
    *(funnel, why, sweep, report, export),
    *(pool, concepts, doctor),
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    guard()
    sys.path.insert(0, os.getcwd())  # a `stages/` folder here adds stages
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check_text(arguments or sys.argv[1:])
        code = int(options.verb.run(options))
        sys.stdout.flush()  # here, where a pipe that is gone is no error
        return code
    except RecipeError as error:
        return _say(error, WRONG)
    except DamagedError as found:
        return _say(f"{found}\n  do:    clipmill verify --run … --repair makes it again", FAILED)
    except ClipmillError as error:
        return _say(error, FAILED)
    except KeyboardInterrupt as stop:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return exit_code(stop)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clipmill",
        description="From a raw pool of image-text pairs to a training set for CLIP.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        added = verbs.add_parser(verb.__name__.rpartition(".")[2], help=verb.HELP)
        verb.add(added)
        added.set_defaults(verb=verb)
    return parser


def _say(error: Any, code: int) -> int:
    print(f"clipmill: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
