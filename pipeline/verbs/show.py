"""`clipmill show`: shows rows of a stage on the screen, or on a page with pictures."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.terminal import aligned, one_line, plural
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import (
    add_json,
    add_show_unsafe,
    add_variant,
    answered,
    names,
    opened,
)

if TYPE_CHECKING:
    from clipmill.pipeline.ledger.selection.show import Lines, Show

HELP = "rows of one stage: a sample, the best, the dropped, those near a cut"
EXAMPLES = """\
clipmill show best --run run
clipmill show best --run run --near-cut --html near.html
clipmill show best --run run --dropped "clip_score >= 0.3" -n 50
clipmill show pool --run run --where "text LIKE '%cat%'" --sort sharpness
"""
WIDTH = 120  # columns if the output is no terminal
HEAD = 16  # most characters of a column's name


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "stage",
        metavar="STAGE",
        help="a select stage: the rows it keeps; another: those it was given",
    )
    add_variant(parser)
    parser.add_argument("--where", metavar="SQL", help="a condition, as `select.where` has it")
    parser.add_argument(
        "--dropped",
        nargs="?",
        const=True,
        metavar="REASON",
        help="rows that it dropped or has no value for, for this reason or for any",
    )
    parser.add_argument(
        "--near-cut",
        action="store_true",
        help="rows nearest to each threshold of a select stage, on both sides",
    )
    parser.add_argument(
        "--sort", metavar="COLUMN", help="the least of a column first; default: a sample by hash"
    )
    parser.add_argument("--desc", action="store_true", help="with --sort: the greatest first")
    parser.add_argument(
        "--columns",
        type=names,
        default=(),
        metavar="A,B,…",
        help="of any stage over these rows: `column` or `stage.column`",
    )
    parser.add_argument(
        "-n", type=int, default=20, dest="most", metavar="N", help="rows (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another number is another sample"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with their pictures, too"
    )
    add_show_unsafe(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the rows; with `--html` writes a page, too."""
    from clipmill.pipeline.ledger.selection.show import ShowQuery, show

    query = ShowQuery(
        stage=options.stage,
        where=options.where,
        dropped=options.dropped,
        near_cut=options.near_cut,
        sort=options.sort,
        is_descending=options.desc,
        columns=options.columns,
        most=options.most,
        seed=options.seed,
    )
    state = opened(options)
    answer = show(state, query)
    if options.html:
        from clipmill.pipeline.report.show_page import show_page

        page, line = show_page(state, answer, what(answer))
        options.html.write_text(page, encoding="utf-8")
    answered(answer, options, text)
    if options.html and not options.json:
        print(f"\n{line} in {options.html}")
    return DONE


def text(answer: "Show") -> str:
    """Returns what the rows are, then a table of them, or two for each threshold."""
    from clipmill.pipeline.ledger.rows.table import unfinished_note

    lines = [f"{answer.run}: {what(answer)}"]
    if answer.unfinished:
        lines.append(f"not complete: {unfinished_note(answer.unfinished)}")
    for group in answer.groups:
        if group.cut:
            which = f"{'kept' if group.kept else 'dropped'} at {one_line(group.cut.text)}"
            lines += ["", f"{which}: {_count_of(group)}"]
        lines += ["", *_table(group)] if group.lines else []
    return "\n".join(lines)


def what(answer: "Show") -> str:
    """Describes the rows: `320 rows that 'best' keeps; 20 of them, sampled by a hash …`."""
    from clipmill.pipeline.run_folder.words import in_words

    whose = f"that '{answer.stage}' {'keeps' if answer.is_select else 'was given'}"
    if answer.dropped is not None:
        for_ = "" if answer.dropped is True else f" for '{one_line(in_words(str(answer.dropped)))}'"
        whose = f"that '{answer.stage}' {'dropped' if answer.is_select else 'lost'}{for_}"
    where = f" where {one_line(answer.where)}" if answer.where else ""
    if any(group.cut for group in answer.groups):
        return f"rows of '{answer.stage}'{where} nearest to its thresholds"
    (group,) = answer.groups
    shown, rows = len(group.lines), plural(group.rows, "row")
    how = [f"{shown:,} of them"] if shown < group.rows else []
    if answer.sort:
        how.append(f"the {'greatest' if answer.is_descending else 'least'} {answer.sort} first")
    elif how:
        how.append("sampled by a hash of their uids")
    return "; ".join([f"{rows} {whose}{where}", *([", ".join(how)] if how else [])])


def _count_of(group: "Lines") -> str:
    """Returns how many rows are on this side of the threshold, and how many are shown."""
    if not group.lines:
        return "no row"
    rows = plural(group.rows, "row")
    return rows if len(group.lines) == group.rows else f"the nearest {len(group.lines):,} of {rows}"


def _table(group: "Lines") -> list[str]:
    """Returns a line a row, as wide as the terminal; texts share the space that numbers leave."""
    rows = [[line.uid[:8], *map(_cell, line.values.values())] for line in group.lines]
    heads = ["uid"]
    for place, name in enumerate(group.columns, 1):
        most = max(HEAD, *(len(row[place]) for row in rows))
        heads.append(name if len(name) <= most else f"{name[: most - 1]}…")
    numbers = {
        place
        for place, name in enumerate(group.columns, 1)
        if all(isinstance(line.values[name], int | float | None) for line in group.lines)
    }
    return aligned([heads, *rows], numbers, shutil.get_terminal_size((WIDTH, 24)).columns)


def _cell(value: Any) -> str:
    """Returns a value in one line; empty for null."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else one_line(value)
