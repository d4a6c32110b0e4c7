"""`clipmill diff`: compares two selections of a pool: rows gained and lost, by cause. Without two
to compare it lists the variants of a run folder: recipes that ran there, and what each keeps."""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.terminal import aligned, cut, one_line, percent, plural
from clipmill.pipeline.verbs._options import add_json, add_stages, answered

if TYPE_CHECKING:
    from clipmill.pipeline.ledger.selection.diff import Diff, Outcome, Selection
    from clipmill.pipeline.ledger.selection.variants import RunVariants, Tried
    from clipmill.pipeline.run_folder.freeing import StoredStage
    from clipmill.pipeline.run_folder.variants import Changes

HELP = "variants of a run; rows that one gained and lost, by cause"
EXAMPLES = """\
clipmill diff --run run               # the variants of a folder, by number
clipmill diff --run run --free 1      # what only that holds on disk
clipmill diff 1 2 --run run           # two of them
clipmill diff run@1:good other:good   # two runs of one pool
"""
MOST = 240  # characters of a setting's value
CAUSES, GROUPS = 12, 6  # printed causes of a kind; printed groups


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "before",
        nargs="?",
        metavar="A",
        help="RUN, RUN@2, RUN:STAGE or RUN@2:STAGE; with --run: 2, STAGE or 2:STAGE",
    )
    parser.add_argument("after", nargs="?", metavar="B", help="as A: what is compared with it")
    parser.add_argument(
        "--run",
        metavar="URI",
        help="the run folder of both, or whose variants are listed: a path or s3://…",
    )
    parser.add_argument(
        "--free",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="list the stored stages that only these variants have, and their bytes",
    )
    parser.add_argument(
        "--delete", action="store_true", help="with --free: delete them; run again makes them again"
    )
    add_stages(parser)
    add_json(parser)
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with pictures of both ways too"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the variants or the moves; `--html` writes a page of the moves."""
    if options.html and options.after is None:
        do = "give A and B, or leave --html away"
        raise RecipeError("--html without two to compare", "the arguments", do)
    if options.free or options.delete:
        return _freed(options)
    if options.before is None and options.run:
        from clipmill.pipeline.ledger.selection.variants import tried

        return answered(tried(options.run), options, variants_text)
    if options.after is None:
        raise RecipeError(
            "nothing to compare with", "the arguments", "give A and B, or --run to list variants"
        )
    from clipmill.pipeline.ledger.selection.diff import diff
    from clipmill.pipeline.ledger.selection.sides import side_of

    before, after = (side_of(text, options.run) for text in (options.before, options.after))
    answer = diff(before, after)
    if options.html:
        from clipmill.pipeline.report.diff_page import diff_page

        options.html.write_text(diff_page(before, after, answer), encoding="utf-8")
    return answered(answer, options, text)


def _freed(options: argparse.Namespace) -> int:
    """Prints what the named variants hold alone; with `--delete` deletes it."""
    from clipmill.metadata.storage import Storage
    from clipmill.pipeline.run_folder.freeing import free, held_alone

    if not options.free or not options.run or options.before:
        do = "write: clipmill diff --run RUN --free N [--delete]"
        raise RecipeError("--free takes numbers of variants of a run", "the arguments", do)
    stages = (free if options.delete else held_alone)(Storage(options.run), options.free)
    return answered(stages, options, lambda stages: _freed_text(stages, options.delete))


def _freed_text(stages: "Sequence[StoredStage]", is_deleted: bool) -> str:
    from clipmill.pipeline.run_folder.words import size

    lines = [(stage.folder, plural(stage.files, "file"), size(stage.bytes)) for stage in stages]
    total = size(sum(stage.bytes for stage in stages))
    words = "deleted" if is_deleted else "held by them alone; --delete deletes it"
    last = f"{total} in {plural(len(stages), 'stage')}: {words}"
    return "\n".join([*aligned(lines, [1, 2], indent=2), last])


def text(answer: "Diff") -> str:
    """Returns both selections, changed settings, counts, moves by cause, and groups as text."""
    before, after = answer.before, answer.after
    lines = [f"A  {_side(before)}", f"B  {_side(after)}"]
    lines += [f"   {line}" for line in change_lines(answer.changes)]
    for name, selection in (("A", before), ("B", after)):
        if selection.left:
            lines.append(f"   of {name} not complete: {', '.join(selection.left)}")
        if selection.working:
            lines.append(f"   {selection.working} works at {name} now")
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


def _side(selection: "Selection") -> str:
    share = f" ({percent(selection.kept / selection.rows)})" if selection.rows else ""
    return (
        f"{selection.run}, variant {selection.variant} ({one_line(selection.recipe)}):"
        f" '{selection.stage}' keeps {selection.kept:,} of {selection.rows:,} rows{share}"
    )


def _moves(answer: "Diff") -> Iterator[str]:
    """Yields rows gained by their cause in A, lost by their cause in B, and moved by both."""
    for kind, ends, title in (
        ("gained", ("before",), "gained, by what lost them in A"),
        ("lost", ("after",), "lost, by what loses them in B"),
        ("moved", ("before", "after"), "kept by neither, A's cause -> B's"),
    ):
        moves = [move for move in answer.moves if move.kind == kind]
        yield from ("", title) if moves else ()
        for move in moves[:CAUSES]:
            words = " -> ".join(outcome_words(getattr(move, end)) for end in ends)
            yield f"{move.rows:>10,}  {words}  (why {move.examples[0].uid[:8]})"
        if rest := sum(move.rows for move in moves[CAUSES:]):
            yield f"{rest:>10,}  for {len(moves) - CAUSES} others: --json has them"


def outcome_words(outcome: "Outcome") -> str:
    """Returns an outcome in words: `first: c > 3`, `kept`, `not in its pool`."""
    from clipmill.pipeline.run_folder.words import in_words

    if outcome.what == "lost":
        return f"{outcome.stage}: {one_line(in_words(outcome.reason))}"
    return "kept" if outcome.what == "kept" else "not in its pool"


def _groups(answer: "Diff") -> Iterator[str]:
    """Yields a table a grouping, the most changed groups first; then the concepts."""
    for name, groups in answer.groups.items():
        if len(groups) > 1:
            shown = [group for group in groups if group.gained or group.lost][:GROUPS]
            counts = ((g.name, g.before, g.after, g.gained, g.lost) for g in shown)
            yield from ("", *_table(name, ("A keeps", "B keeps", "gained", "lost"), counts))
    if answer.concepts:
        concepts = (
            (concept.entry, concept.before, concept.after) for concept in answer.concepts[:GROUPS]
        )
        yield from ("", *_table("concept", ("A keeps", "B keeps"), concepts))


def _table(name: str, heads: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    lines = []
    for group, *counts in rows:
        shown = one_line(group)
        shown = shown if len(shown) <= 31 else f"{shown[:30]}…"
        lines.append([f"  {shown}", *(f"{count:,}" for count in counts)])
    return aligned([[name, *heads], *lines], range(1, len(heads) + 1))


# The variants of a folder


def variants_text(answer: "RunVariants") -> str:
    """Returns a line for each variant, with its changes below."""
    lines = [f"{answer.run}: {plural(len(answer.variants), 'variant')}; * ran last"]
    if answer.working:
        lines.append(f"{answer.working} works there: counts are of what is stored by now")
    lines += [f"recipes/{name} cannot be read" for name in answer.unreadable]
    heads = aligned(
        [
            (
                f"{'*' if variant.is_last else ' '}{variant.number:>3}",
                *(one_line(variant.recipe), variant.last_ran, _kept(variant)),
            )
            for variant in answer.variants
        ]
    )
    for variant, head in zip(answer.variants, heads, strict=True):
        lines += ["", head, *(f"        {line}" for line in _below(variant))]
    return "\n".join(lines)


def _kept(variant: "Tried") -> str:
    """Returns the rows kept at each end, `320 of 600 rows kept by 'unique'`, and stages done."""
    if variant.refused:
        return f"makes no plan today: {one_line(variant.refused)}"
    ends = "; ".join(
        f"{end.kept:,} of {end.rows:,} rows kept by '{end.stage}'" for end in variant.ends
    )
    if not variant.left:
        return ends or "all done; no select stage"
    done = f"{variant.stages - len(variant.left)} of {variant.stages} stages done"
    return f"{ends}; {done}" if ends else done


def _below(variant: "Tried") -> Iterator[str]:
    """Yields the changes from the variant before, and the stages that are not done."""
    yield from change_lines(variant.changes)
    by_state: dict[str, list[str]] = {}
    for stage, how in variant.left.items():
        by_state.setdefault(how, []).append(stage)
    if by_state:
        words = "; ".join(f"{', '.join(stages)}: {how}" for how, stages in by_state.items())
        yield f"not done: {words}"
        yield f"do:       {variant.again}"


def change_lines(changes: "Changes") -> Iterator[str]:
    """Yields a line for each changed setting, and for added and removed stages."""
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
    """Returns a setting as written in a recipe, cut."""
    if value is None:
        return "(not set)"
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return cut(" ".join(written.split()), MOST) or '""'
