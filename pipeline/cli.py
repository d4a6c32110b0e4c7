"""`clipmill VERB`: parses the arguments, runs the verb, and turns errors into exit codes.

Errors in arguments have the form of all errors: what was found, where, and what to do.

Exit codes: 0 done, 1 a stage failed or nothing was kept, 2 the recipe or the arguments are wrong,
130 and 143 stopped by Ctrl-C and by `kill`.
"""

import argparse
import atexit
import errno
import functools
import gc
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, cast

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.keys import redacted
from clipmill.pipeline import own_code
from clipmill.pipeline.errors import ClipmillError, RecipeError, did_you_mean
from clipmill.pipeline.extras import hide_pandas, install, missing
from clipmill.pipeline.terminal import guard
from clipmill.pipeline.verbs import DONE, FAILED, WRONG, Verb
from clipmill.pipeline.verbs._options import add_kind, fork_workers
from clipmill.pipeline.verbs._own_data import one_data
from clipmill.pipeline.verbs._signals import exit_code

atexit.register(gc.freeze)  # a last garbage collection over all imports would take a while
BAD_PATH: dict[type[OSError], tuple[str, str]] = {
    FileNotFoundError: ("no such file or folder", "check the path and the folder that it is in"),
    NotADirectoryError: ("a file, where a folder is meant", "name a folder"),
    IsADirectoryError: ("a folder, where a file is meant", "name a file or delete that folder"),
    PermissionError: ("a place that may not be read or written", "name another, or get its rights"),
}
GROUPS = {  # headings of the help, and the verbs below, each a file of verbs/
    "start": ("init", "curate", "recipes", "stages"),
    "run a recipe": ("plan", "run", "submit", "status", "verify"),
    "ask what came out": (
        "funnel",
        "why",
        "show",
        "sweep",
        "explore",
        "diff",
        "report",
        "evaluate",
    ),
    "take it out": ("export", "bench"),
    "a pool to try it on, and tools": ("pool", "concepts", "doctor"),
}
VERBS: dict[str, Verb] = {
    name: cast(Verb, import_module(f"clipmill.pipeline.verbs.{name}"))
    for names in GROUPS.values()
    for name in names
}
MESSAGES = (  # argparse's message, and ours
    ("the following arguments are required: (.*)", "missing: {}"),
    ("unrecognized arguments: (.*)", "more than it takes: {}"),
    ("argument (.*): expected .*", "{} without a value"),
    ("argument (.*): invalid int value: (.*)", "{} is {}, and takes a whole number"),
    ("argument (.*): invalid float value: (.*)", "{} is {}, and takes a number"),
)
OPTION = re.compile(r"--?[A-Za-z][\w-]*")
CHOICE = r"argument (.+?): invalid choice: '?(.*?)'? \(choose from (.*)\)"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command, by default that of sys.argv; returns its exit code."""
    if arguments is not None:
        return _run(arguments)
    code = _run(sys.argv[1:], is_alone=True)
    looks = sys.modules.get("clipmill.pipeline.planning.looks")
    if looks is not None and looks.are_late():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Arrow would wait minutes for a silent store
    return code


def _run(arguments: list[str], is_alone: bool = False) -> int:
    guard()
    try:
        try:
            "".join(arguments).encode()
        except UnicodeEncodeError:
            do = "rename that file"
            raise RecipeError("bytes that are no UTF-8", "the arguments", do) from None
        parser = _parser()
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            if options.verb in ("init", "curate"):
                one_data(options.data, unknown, options.parser.prog)
            options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        if options.version:
            from importlib.metadata import version

            print(f"clipmill {version('clipmill')}")
            return DONE
        if options.completion:
            print(_completion(options.completion))
            return DONE
        if options.verb is None:
            print(parser.format_help(), end="")
            return DONE
        if getattr(options, "out", None) == "":
            raise RecipeError("an empty path", "--out", "name a folder or a file")
        for folder in map(Path, getattr(options, "own_stages", ())):
            if not folder.is_dir():
                raise RecipeError("no such folder", f"--stages {folder}", "check the path")
            own_code.add(folder)
        if is_alone:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # workers have limits of their own
            if options.verb in ("run", "curate"):
                fork_workers(options)
            hide_pandas()
        code = VERBS[options.verb].run(options)
        sys.stdout.flush()  # here a closed pipe is no error
        return code
    except RecipeError as error:
        return _say(error, WRONG)
    except DamagedError as damage:
        place = shlex.quote(redacted(damage.folder).rpartition("/stages/")[0] or "RUN")
        do = f"clipmill verify --run {place} --repair makes it again"
        return _say(f"{damage}\n  do:    {do}", FAILED)
    except ClipmillError as error:
        return _say(error, FAILED)
    except KeyboardInterrupt as stop:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return exit_code(stop)
    except ModuleNotFoundError as error:
        if not install(error.name or ""):
            raise
        return _say(missing(error.name, shlex.join(["clipmill", *arguments[:1]])), WRONG)
    except OSError as error:  # of the run folder; stages raise errors of their own
        from clipmill.metadata.elsewhere import UriError
        from clipmill.metadata.storage import KEYS, wants_keys

        if isinstance(error, UriError):
            do = "write a path, or a URI such as s3://bucket/folder"
            return _say(RecipeError(str(error), "the arguments", do), WRONG)
        what = error.strerror or f"{type(error).__name__}: {error}"
        what, do = BAD_PATH.get(type(error), (what, "check that it is there and can be written"))
        do = KEYS if wants_keys(error) else f"{do}, and run again"
        named = re.search("'(.+?)'", str(error))  # by Arrow, in its message alone
        place = error.filename2 or error.filename or (named[1] if named else "the storage")
        shown = ClipmillError(what, str(place), do)
        is_wrong = type(error) in BAD_PATH or error.errno == errno.ENAMETOOLONG
        return _say(shown, WRONG if is_wrong else FAILED)


class _Parser(argparse.ArgumentParser):
    """The parser of the command and each verb; help ends in examples, errors say what to do."""

    def __init__(self, **keys: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=raw, allow_abbrev=False, **keys)
        self.set_defaults(parser=self)  # the innermost one wins
        self.given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = args
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        every = (line for verb in VERBS.values() for line in verb.EXAMPLES.splitlines())
        examples = [line for line in every if line.startswith(f"{self.prog} ")]
        if " " in self.prog and examples:
            self.epilog = "\n  ".join(["examples:", *examples])
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raises RecipeError; mistyped options first, as they may be what is missing."""
        more = f"{self.prog} --help shows its arguments, and examples"
        if choice := re.fullmatch(CHOICE, message, re.DOTALL):
            name, word, words = choice.groups()
            what = f"no verb '{word}'" if name == "VERB" else f"'{word}' as {name}"
            do = did_you_mean(word, [known.strip("'") for known in words.split(", ")])
            if name == "VERB" and os.path.exists(word):
                do = f"for data of your own: clipmill curate {shlex.quote(word)} --out run"
                do = f"clipmill run {shlex.quote(word)} --out run" if word.endswith(".yaml") else do
            raise RecipeError(what, self.prog, f"{do}  {more}")
        known = self._option_string_actions  # argparse has no public list
        for option in (word.partition("=")[0] for word in self.given):
            if OPTION.fullmatch(option) and option not in known:
                shown = [name for name in known if known[name].help != argparse.SUPPRESS]
                do = f"{did_you_mean(option, shown, 'its options are')}  {more}"
                raise RecipeError(f"unknown option '{option}'", self.prog, do)
        for pattern, words in MESSAGES:
            if match := re.fullmatch(pattern, message, re.DOTALL):
                message = words.format(*match.groups())
        raise RecipeError(message, self.prog, more)


@functools.cache  # for a process that runs several commands
def _parser() -> _Parser:
    lines = ["From a raw pool of image-text pairs to a training set for CLIP."]
    for title, names in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<9} {VERBS[name].HELP}" for name in names)]
    parser = _Parser(
        prog="clipmill",
        usage="clipmill VERB …",
        description="\n".join(lines),
        epilog="clipmill VERB --help shows what a verb takes, and examples",
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument(
        "--completion",
        choices=("bash", "zsh"),
        help='show what completes its arguments: eval "$(clipmill --completion bash)"',
    )
    verbs = parser.add_subparsers(metavar="VERB", prog="clipmill", help=argparse.SUPPRESS)
    parser.set_defaults(verb=None)
    for name, verb in VERBS.items():
        subparser = add_kind(verbs, name, verb.HELP)
        verb.add(subparser)
        subparser.set_defaults(verb=name)
    return parser


def _completion(shell: str) -> str:
    """Returns a script for the shell; stages, runs and recipes it completes as files."""
    import shtab

    parser = _parser.__wrapped__()  # a fresh one, as it is changed
    for action in parser._actions:  # the help lists verbs by itself, and hides argparse's list
        action.help = "verb" if isinstance(action, argparse._SubParsersAction) else action.help
    return str(shtab.complete(parser, shell))


def _say(error: Any, code: int) -> int:
    print(f"clipmill: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
