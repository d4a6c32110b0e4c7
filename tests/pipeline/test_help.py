"""What the help says: every argument in words, every default, examples that can be typed."""

import argparse
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from clipmill.pipeline.cli import GROUPS, VERBS, _parser

ROOT = Path(__file__).parents[2]
TOP = _parser()


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """This one and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


EXAMPLES = [example for verb in VERBS.values() for example in verb.EXAMPLES.splitlines()]
PARSERS = list(parsers(TOP))[1:]


def test_every_example_of_the_help_can_be_typed():
    for example in EXAMPLES:
        command, *arguments = shlex.split(example.partition(" > ")[0], comments=True)
        assert command == "clipmill"
        options, unknown = TOP.parse_known_args(arguments)
        assert not unknown, example
        assert example in options.parser.format_help()
        assert len(example) <= 78, example  # and two before it: as wide as a terminal


def test_every_verb_has_two_to_four_examples():
    lengths = {name: len(verb.EXAMPLES.splitlines()) for name, verb in VERBS.items()}
    assert {name: count for name, count in lengths.items() if not 2 <= count <= 4} == {}


def test_every_argument_has_a_text_and_says_its_default():
    for parser in PARSERS:
        assert parser.description, parser.prog
        said = " ".join(parser.format_help().split())
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert action.help, f"{parser.prog} {action.dest}"
            if action.default not in (None, False, [], (), argparse.SUPPRESS):
                assert f"(default: {action.default})" in said, f"{parser.prog} {action.dest}"


def test_alone_it_lists_the_verbs_in_groups(clipmill):
    said = clipmill()
    assert said.code == 0
    assert said.out == clipmill("--help").out
    lines = said.out.splitlines()
    for title, verbs in GROUPS.items():
        first = lines.index(f"{title}:") + 1
        assert [line.split()[0] for line in lines[first : first + len(verbs)]] == [*verbs]
    assert len(lines) <= 44
    assert max(map(len, lines)) <= 80


def test_its_version_is_that_of_the_package(clipmill):
    assert clipmill("--version").out == f"clipmill {version('clipmill')}\n"


def test_the_help_and_the_docs_say_one_number_of_pairs(clipmill):
    table = (ROOT / "docs/pools.md").read_text(encoding="utf-8")
    for kind, rows in (("demo", "17,950"), ("full", "66,974"), ("docs", "26,529")):
        assert f"| {rows} |" in next(line for line in table.splitlines() if f"`{kind}`" in line)
        assert f"{rows} " in clipmill("pool", "--help").out
