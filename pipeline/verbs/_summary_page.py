"""Renders a run's summary: rows kept and lost, what to mend, and what to run next."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipmill.pipeline.terminal import one_line, percent, plural

if TYPE_CHECKING:
    from clipmill.pipeline.ledger.summary import Ending, Lost, Summary

SHOWN = 6  # causes of an ending; the others share a line
MANY = 3  # endings; with more, causes are left out


def text(
    summary: "Summary", again: str, is_complete: bool, sets: Sequence[str] = (), scored: str = ""
) -> str:
    """Returns the page of a run; `again` is its command, `sets` are options that mend its errors,
    `scored` is the table of models' results."""
    endings = summary.endings if is_complete else ()
    is_long = len(endings) > MANY
    sections = [_ending(ending, is_long) for ending in endings if ending.rows]
    sections += [["", *scored.splitlines(), ""]] if scored else []
    titled = {
        "texts": [f"  {one_line(texts.sentence)}" for texts in summary.texts if texts.lost],
        "written": _written(summary),
        "warnings": _warnings(summary),
        "notes": [  # never cut
            f"  {stage}: {' '.join(note.split())}"
            for stage, notes in summary.notes.items()
            for note in notes
        ],
        "next": _next(summary, again, is_complete, sets),
    }
    sections += [[title, *lines] for title, lines in titled.items() if lines]
    took = f"this run took {_duration(summary.seconds)}" if summary.seconds is not None else ""
    return "\n".join(["\n".join(section) for section in sections if section] + [took])


def nothing(summary: "Summary") -> str:
    """Returns what came out empty, and why; no text if nothing did."""
    if summary.endings and not any(ending.rows for ending in summary.endings):
        return "nothing is kept: the pool has no rows"
    lines = []
    for ending in summary.endings:
        if ending.lost and not ending.kept:
            first = ending.lost[0]
            why = f"{first.stage}: {one_line(first.reason)} took {first.rows:,}"
            lines.append(f"0 of {ending.rows:,} rows kept by '{ending.stage}': {why}")
            lines.append(f"  do:    {_advice(first, summary)}")
    for export in summary.exports:
        if export.exported == 0 and not lines:
            left = ", ".join(f"{count:,} {reason}" for reason, count in export.left.items())
            lines.append(f"0 of {export.rows:,} rows exported by '{export.stage}': {left}")
    return "\n".join(lines)


def _advice(lost: "Lost", summary: "Summary") -> str:
    passes = any(p.stage == lost.stage and lost.reason in p.reasons for p in summary.passing)
    if lost.advice:
        return lost.advice + (f"; then run again with --retry {lost.reason}" if passes else "")
    return f"if that is not meant, change '{lost.stage}' in the recipe"


def _ending(ending: "Ending", is_long: bool) -> list[str]:
    """Returns the rows kept, and the causes of the others unless the page is too long."""
    share = percent(ending.kept / ending.rows)
    head = f"{ending.kept:,} of {ending.rows:,} rows kept by '{ending.stage}' ({share})"
    if not ending.lost or is_long:
        return [head]
    shown = ending.lost[: SHOWN if len(ending.lost) > SHOWN + 1 else None]
    rows = [(lost.rows, f"{lost.stage}: {one_line(lost.reason)}") for lost in shown]
    if rest := ending.lost[len(shown) :]:
        rows.append((sum(lost.rows for lost in rest), f"{len(rest)} other causes"))
    first = "lost first to" if ending.is_first else "lost to"
    table = [f"  {count:>11,} {percent(count / ending.rows):>6}  {cause}" for count, cause in rows]
    return [f"{head}; {first}", *table]


def _written(summary: "Summary") -> list[str]:
    from clipmill.pipeline.run_folder.words import size

    lines = []
    for export in summary.exports:
        rows = f"{export.exported:,} rows, " if export.exported is not None else ""
        files = f"{export.files} files, {size(export.bytes)}"
        lines.append(f"  {export.stage}: {rows}{files} in {_near(export.folder)}")
    lines += [f"  report: {_near(summary.report)}"] if summary.report else []
    return lines


def _warnings(summary: "Summary") -> list[str]:
    lines = []
    for passing in summary.passing:
        failed = sum(passing.reasons.values())
        parts = sorted(passing.reasons.items(), key=lambda item: -item[1])
        named = ", ".join(f"{count:,} {reason}" for reason, count in parts)
        lines.append(
            f"  {passing.stage}: {percent(failed / passing.rows)} of {passing.rows:,} rows failed"
            f" for reasons that may be temporary: {named}"
        )
    for stage, count in summary.set_aside.items():
        lines.append(f"  {stage}: {plural(count, 'shard')} failed")
    lines += [f"  --retry {reason}: no row ever failed for it" for reason in summary.never]
    for number, again in summary.stale:
        lines.append(f"  variant {number} is stale: it shares rows that were tried again. Run")
        lines.append(f"  {again}")
    return lines


def _next(summary: "Summary", again: str, is_complete: bool, sets: Sequence[str]) -> list[str]:
    """Returns commands to paste: retries, the report if there is none, the counts.

    If a setting mends what stopped the run, it replaces the retries.
    """
    reasons: Counter[str] = Counter()
    for passing in summary.passing:
        reasons.update(passing.reasons)
    retries = "".join(f" --retry {reason}" for reason, _ in reasons.most_common())
    run = shlex.quote(_near(summary.run))
    more = "".join(f" {word}" for word in sets) or retries
    lines = [f"  {again}{more}"] if retries or not is_complete else []
    if not is_complete:
        return [*lines, f"  clipmill status --run {run}"]
    if not summary.report:
        lines.append(f"  clipmill report --run {run}")
    return [*lines, f"  clipmill funnel --run {run}"]


def _near(path: str) -> str:
    """Returns a path below the working folder as a relative one."""
    return os.path.relpath(path) if path.startswith(f"{os.getcwd()}/") else path


def _duration(seconds: float) -> str:
    """Formats a duration: `8.4 s`, `3 min 20 s`, `5 h 2 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours:,} h {minutes_left} min" if hours else f"{minutes} min {rest} s"
