"""`clipmill funnel`: counts the pool's rows by stage and reason."""

import argparse
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from clipmill.pipeline.terminal import one_line, percent
from clipmill.pipeline.verbs._options import add_json, add_variant, answered, opened

if TYPE_CHECKING:
    from clipmill.pipeline.ledger.selection.exports import Export, Subset
    from clipmill.pipeline.ledger.selection.funnel import End, Funnel, StageRows
    from clipmill.pipeline.ledger.selection.texts import StageTexts

HELP = "where the pool's rows went, by stage and reason"
EXAMPLES = """\
clipmill funnel --run run
clipmill funnel --run run --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_variant(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the counts."""
    from clipmill.pipeline.ledger.selection.funnel import funnel

    state = opened(options)
    roots = {name for name, planned in state.plan.stages.items() if planned.is_root}
    return answered(funnel(state), options, lambda answer: text(answer, roots))


def text(funnel: "Funnel", roots: Collection[str]) -> str:
    """Returns unfinished stages, stages with reasons, the waterfall of each end, and exports."""
    lines = [funnel.run, *_unfinished(funnel), ""]
    if not funnel.stages:
        lines.append("none of its complete stages has rows")
    width = max((len(stage.stage) for stage in funnel.stages), default=0)
    for stage in funnel.stages:
        lines.append(
            f"{stage.stage:<{width}}  {stage.uses:<22} {stage.rows:>10,} rows"
            f" {stage.fine:>10,} fine"
        )
        for kind, code, count in _missing(stage, stage.stage in roots):
            line = f"{'':<{width}}    {kind:<12} {count:>10,} {_share(count, stage.rows)}  {code}"
            lines.append(line.rstrip())
        if stage.listed and stage.listed["missing"]:
            lines.append(
                f"{'':<{width}}    {'no row for':<12} {stage.listed['missing']:>10,}"
                f"  of {stage.listed['uids']:,} listed uids"
            )
    for texts in funnel.texts:
        lines += _texts(texts)
    if funnel.repeated_uids:
        lines += ["", f"{funnel.repeated_uids:>10,}  rows have the uid of an earlier row"]
    names = [stage.stage for stage in funnel.stages]
    for end in funnel.ends:
        lines += _end(end, names)
    lines += [line for export in funnel.exports for line in _export(export)]
    lines += [line for subset in funnel.subsets for line in _subset(subset)]
    return "\n".join(lines)


def _texts(texts: "StageTexts") -> Iterator[str]:
    """Yields a stage's texts as a waterfall: those it read, lost by reason, and kept."""
    total = sum(texts.texts.values())
    yield from ("", f"{total:>10,} {_share(total, total)}  texts of '{texts.stage}'")
    for reason, counts in texts.lost.items():
        lost = sum(counts.values())
        yield f"{-lost:>10,} {_share(lost, total)}  {one_line(reason)}"
    kept = ", ".join(f"{texts.kept[name]:,} of {texts.texts[name]:,} {name}" for name in texts.kept)
    stay = sum(texts.kept.values())
    yield f"{stay:>10,} {_share(stay, total)}  stay: {one_line(kept)}"


def _end(end: "End", names: list[str]) -> Iterator[str]:
    """Yields the waterfall of one end: rows in the pool, lost by cause, and kept."""
    from clipmill.pipeline.run_folder.words import in_words

    yield from ("", f"{end.rows:>10,} {_share(end.rows, end.rows)}  rows in the pool")
    left = end.rows
    for cause in end.causes:
        left -= cause.rows
        yield (
            f"{-cause.rows:>10,} {_share(cause.rows, end.rows)}  {cause.stage}:"
            f" {one_line(in_words(cause.reason))}  ({left:,} left; why {cause.example[:8]})"
        )
    is_last = all(names.index(c.stage) <= names.index(end.stage) for c in end.causes)
    words = f"kept by '{end.stage}'" if is_last else f"left of what '{end.stage}' keeps"
    yield f"{end.kept:>10,} {_share(end.kept, end.rows)}  {words}"


def _export(export: "Export") -> Iterator[str]:
    """Yields an export's files, and its rows if they are known."""
    from clipmill.pipeline.run_folder.words import size

    yield ""
    yield f"{export.stage}: {export.files} files, {size(export.bytes)} in {export.folder}"
    if export.rows is not None:
        left = "".join(f", {count:,} {why.replace('_', ' ')}" for why, count in export.left.items())
        yield f"    {export.exported:,} of {export.rows:,} rows{left}"


def _subset(subset: "Subset") -> Iterator[str]:
    """Yields how many of a select's rows a stage reads from its data."""
    lacking = f", which lacks {subset.lacking:,}" if subset.lacking else ""
    yield ""
    yield (
        f"{subset.stage}: {subset.read:,} of the {subset.kept:,} rows that '{subset.select}'"
        f" keeps, read from '{subset.data}'{lacking}"
    )


def _unfinished(funnel: "Funnel") -> list[str]:
    """Returns `not complete: images has 3 of 8 shards; 9 stages are not done; …`, or nothing."""
    begun = [stage for stage in funnel.unfinished if stage.shards or stage.failed]
    parts = [
        f"{stage.stage} has {stage.shards} of {'?' if stage.total is None else stage.total} shards"
        + (f" and {stage.failed} failed" if stage.failed else "")
        for stage in begun
    ]
    if rest := len(funnel.unfinished) - len(begun):
        parts.append(f"{rest} {'stage is' if rest == 1 else 'stages are'} not done")
    return [f"not complete: {'; '.join(parts)}; what follows is of the others"] if parts else []


def _missing(stage: "StageRows", is_root: bool) -> Iterator[tuple[str, str, int]]:
    """Yields (kind, reason, rows) in words: failed, no input, dropped, not selected."""
    from clipmill.pipeline.run_folder.words import BEFORE, in_words, kind_of

    for kind in ("failed", "upstream", "dropped"):
        of_kind = getattr(stage, kind).items()
        in_rules = kind == "dropped"  # keep the order of the rules
        for code, count in of_kind if in_rules else sorted(of_kind, key=lambda item: -item[1]):
            word = "no input" if kind == "upstream" else kind_of(code, kind == "dropped", is_root)
            word = "dropped" if code == BEFORE else word  # its words: by an earlier select
            yield word, one_line(in_words(code)), count
    if stage.not_selected:
        yield "not selected", "", stage.not_selected


def _share(rows: int, total: int) -> str:
    """Formats a share of the rows in six columns."""
    return f"{percent(rows / total if total else 0):>6}"
