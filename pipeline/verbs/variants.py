"""`clipmill variants`: the recipes that a run folder has seen, and what each of them keeps."""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.terminal import aligned, cut, one_line
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_json, add_run

if TYPE_CHECKING:
    from clipmill.pipeline.ledger.selection.variants import RunVariants, Tried
    from clipmill.pipeline.run_folder.variants import Changes

HELP = "the recipes that a run folder has seen, and what each keeps"
EXAMPLES = """\
clipmill variants --run run
clipmill variants --run run --json
"""
MOST = 240  # characters of a setting's value


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_run(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the variants, the first first."""
    from clipmill.pipeline.ledger.answer import as_json
    from clipmill.pipeline.ledger.selection.variants import tried

    answer = tried(options.run)
    print(json.dumps(as_json(answer), indent=1) if options.json else text(answer))
    return DONE


def text(answer: "RunVariants") -> str:
    """A line a variant, what it changed below, and how one is looked at."""
    count = len(answer.variants)
    lines = [f"{answer.run}: {count} variant{'' if count == 1 else 's'}; * ran last"]
    if answer.working:
        lines.append(f"{answer.working} works there: counts are of what is stored by now")
    lines += [f"recipes/{name} cannot be read" for name in answer.unreadable]
    heads = aligned(
        [
            (
                f"{'*' if one.is_last else ' '}{one.number:>3}",
                *(one_line(one.recipe), one.last_ran, _kept(one)),
            )
            for one in answer.variants
        ]
    )
    for one, head in zip(answer.variants, heads, strict=True):
        lines += ["", head, *(f"        {line}" for line in _below(one))]
    return "\n".join(lines)


def _kept(one: "Tried") -> str:
    """`320 of 600 rows kept by 'unique'`, of each end; what is done where nothing ends yet."""
    if one.refused:
        return f"makes no plan today: {one_line(one.refused)}"
    kept = "; ".join(f"{end.kept:,} of {end.rows:,} rows kept by '{end.stage}'" for end in one.ends)
    if not one.left:
        return kept or "all done; no select stage"
    done = f"{one.stages - len(one.left)} of {one.stages} stages done"
    return f"{kept}; {done}" if kept else done


def _below(one: "Tried") -> Iterator[str]:
    """What differs from the variant before, and what is not done."""
    yield from change_lines(one.changes)
    by: dict[str, list[str]] = {}
    for stage, how in one.left.items():
        by.setdefault(how, []).append(stage)
    if by:
        said = "; ".join(f"{', '.join(stages)}: {how}" for how, stages in by.items())
        yield f"not done: {said}"


def change_lines(changes: "Changes") -> Iterator[str]:
    """A line a setting that differs, and a line each for stages that one of two has alone."""
    from clipmill.pipeline.run_folder.words import apart

    for change in changes.settings:
        both = change.before, change.after
        parts = apart(*both) if all(isinstance(value, str) for value in both) else None
        if parts:
            yield from (f"{change.key} without {_value(parts[0])}",) if parts[0] else ()
            yield from (f"{change.key} with {_value(parts[1])}",) if parts[1] else ()
        else:
            yield f"{change.key}: {_value(change.before)} -> {_value(change.after)}"
    if changes.added:
        yield f"added: {', '.join(changes.added)}"
    if changes.removed:
        yield f"removed: {', '.join(changes.removed)}"


def _value(value: Any) -> str:
    """A setting as one writes it, in few characters."""
    if value is None:
        return "(not set)"
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return cut(" ".join(said.split()), MOST) or '""'
