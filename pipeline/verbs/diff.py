"""`clipmill diff`: what one selection of a pool gained and lost against another, by cause."""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.terminal import aligned, one_line
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_json, add_stages

if TYPE_CHECKING:
    from clipmill.pipeline.ledger.selection.diff import Diff, Fate, Selection

HELP = "rows that another variant, stage or run gained and lost, by cause"
EXAMPLES = """\
clipmill diff 1 2 --run run              # two variants of `clipmill variants`
clipmill diff good unique --run run      # two stages
clipmill diff run@1:good other:good      # two runs of one pool
clipmill diff 1 2 --run run --html diff.html
"""
CAUSES, GROUPS = 12, 6  # of each kind that are printed


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument(
        "before",
        metavar="A",
        help="RUN, RUN@2, RUN:STAGE or RUN@2:STAGE; with --run: 2, STAGE or 2:STAGE",
    )
    parser.add_argument("after", metavar="B", help="as A: what is compared with it")
    parser.add_argument("--run", metavar="URI", help="the run folder of both: a path or s3://…")
    add_stages(parser)
    add_json(parser)
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with pictures of both ways too"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the moves; with `--html` writes a page of them."""
    from clipmill.pipeline.ledger.answer import as_json
    from clipmill.pipeline.ledger.selection.diff import diff
    from clipmill.pipeline.ledger.selection.sides import side_of

    before, after = (side_of(text, options.run) for text in (options.before, options.after))
    answer = diff(before, after)
    if options.html:
        from clipmill.pipeline.report.diff_page import diff_page

        options.html.write_text(diff_page(before, after, answer), encoding="utf-8")
    print(json.dumps(as_json(answer), indent=1) if options.json else text(answer))
    return DONE


def text(answer: "Diff") -> str:
    """Both sides, what differs between them, the counts, the moves by cause, and the groups."""
    from clipmill.pipeline.verbs.variants import change_lines

    before, after = answer.before, answer.after
    lines = [f"A  {_side(before)}", f"B  {_side(after)}"]
    lines += [f"   {line}" for line in change_lines(answer.changes)]
    for name, side in (("A", before), ("B", after)):
        if side.left:
            lines.append(f"   of {name} not complete: {', '.join(side.left)}")
        if side.working:
            lines.append(f"   {side.working} works at {name} now")
    if answer.joined == "uid":
        lines.append("   rows are joined by uid: the pools do not hold them in one order")
    lines += [
        "",
        f"{answer.both:>10,}  kept by both",
        f"{_signed('+', answer.gained)}  gained: B alone keeps them",
        f"{_signed('-', answer.lost)}  lost: A alone keeps them",
        f"{answer.moved:>10,}  kept by neither, for another cause each",
        f"{answer.stayed:>10,}  kept by neither, for the same cause",
    ]
    lines += [*_moves(answer), *_groups(answer)]
    return "\n".join(lines)


def _signed(sign: str, rows: int) -> str:
    return f"{f'{sign}{rows:,}' if rows else '0':>10}"


def _side(side: "Selection") -> str:
    share = f" ({side.kept / side.rows:.1%})" if side.rows else ""
    return (
        f"{side.run}, variant {side.variant} ({one_line(side.recipe)}): '{side.stage}' keeps"
        f" {side.kept:,} of {side.rows:,} rows{share}"
    )


def _moves(answer: "Diff") -> Iterator[str]:
    """Rows gained by what had lost them, rows lost by what does, and those lost otherwise."""
    for kind, title in (
        ("gained", "gained, by what lost them in A"),
        ("lost", "lost, by what loses them in B"),
        ("moved", "kept by neither, A's cause -> B's"),
    ):
        moves = [move for move in answer.moves if move.kind == kind]
        yield from ("", title) if moves else ()
        for move in moves[:CAUSES]:
            said = {
                "gained": fate_words(move.before),
                "lost": fate_words(move.after),
                "moved": f"{fate_words(move.before)} -> {fate_words(move.after)}",
            }[kind]
            yield f"{move.rows:>10,}  {said}  (why {move.examples[0].uid[:8]})"
        if rest := sum(move.rows for move in moves[CAUSES:]):
            yield f"{rest:>10,}  for {len(moves) - CAUSES} others: --json has them"


def fate_words(fate: "Fate") -> str:
    """`first: c > 3`, `kept`, `not in its pool`."""
    from clipmill.pipeline.run_folder.words import in_words

    if fate.what == "lost":
        return f"{fate.stage}: {one_line(in_words(fate.reason))}"
    return "kept" if fate.what == "kept" else "not in its pool"


def _groups(answer: "Diff") -> Iterator[str]:
    """A table a grouping, the groups that changed most first; then the concepts."""
    for name, groups in answer.groups.items():
        if len(groups) > 1:
            shown = [group for group in groups if group.gained or group.lost][:GROUPS]
            counts = ((it.name, it.before, it.after, it.gained, it.lost) for it in shown)
            yield from ("", *_table(name, ("A keeps", "B keeps", "gained", "lost"), counts))
    if answer.concepts:
        concepts = ((it.entry, it.before, it.after) for it in answer.concepts[:GROUPS])
        yield from ("", *_table("concept", ("A keeps", "B keeps"), concepts))


def _table(name: str, heads: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    lines = [[f"  {_name(of)}", *(f"{count:,}" for count in counts)] for of, *counts in rows]
    return aligned([[name, *heads], *lines], range(1, len(heads) + 1))


def _name(text: str) -> str:
    name = one_line(text)
    return name if len(name) <= 31 else f"{name[:30]}…"
