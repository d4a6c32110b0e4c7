"""Formats stored values for people: reasons, rules, durations and sizes."""

import re

from clipmill.metadata.passes import NOT_SELECTED

UNDEFINED = "undefined:"  # a select's reason, followed by the column that has no value
BEFORE = "dropped_before"
DROPPED_BY, KEPT_BY = "dropped_by:", "kept_by:"  # followed by a select that select.combine reads
LONG = 80  # characters of a rule that fits one line
KINDS = ("failed", "dropped", "dropped before", "no input", "not selected")


def kind_of(reason: str, is_select: bool, is_root: bool) -> str:
    """Returns one of `KINDS` for a row with this reason, from the reason alone.

    `dropped before`: by a select that this stage takes its rows from. `no input`: the pool or an
    earlier stage had no value for the stage to work on.
    """
    if reason == NOT_SELECTED:
        return "not selected"
    if reason == BEFORE:
        return "dropped before"
    if reason.startswith((UNDEFINED, "undefined")) or (reason.startswith("no_") and not is_root):
        return "no input"
    return "dropped" if is_select else "failed"


def in_words(reason: str) -> str:
    """Returns a reason in words; a stage's own codes stay as they are."""
    if reason.startswith(UNDEFINED):
        return f"{reason.removeprefix(UNDEFINED)} has no value"
    for combined in (DROPPED_BY, KEPT_BY):
        if reason.startswith(combined):
            return f"{combined[:-1].replace('_', ' ')} '{reason.removeprefix(combined)}'"
    return "dropped by an earlier select" if reason == BEFORE else reason


def apart(before: str, after: str) -> tuple[str, str] | None:
    """Returns the AND parts that only one of two long rules has; None if that is not shorter."""
    rules = [_conjuncts(text) for text in (before, after)]
    only = [[part for part in rule if part not in other] for rule, other in (rules, rules[::-1])]
    is_short = max(len(before), len(after)) <= LONG
    if is_short or only == rules or not any(only) or "BETWEEN" in f"{before} {after}".upper():
        return None
    return " AND ".join(only[0]), " AND ".join(only[1])


def _conjuncts(rule: str) -> list[str]:
    """Splits a rule at each AND outside of parentheses and quotes, unless an OR stands there."""
    parts, depth, start = [], 0, 0
    for token in re.finditer(r"'[^']*'|\"[^\"]*\"|[()]|\b(AND|OR)\b", rule, re.IGNORECASE):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if token[0].upper() == "OR" and not depth:  # of which an AND is a part
            return [" ".join(rule.split())]
        if token[0].upper() == "AND" and not depth:
            parts.append(rule[start : token.start()])
            start = token.end()
    return [" ".join(part.split()) for part in (*parts, rule[start:])]


def duration(seconds: float) -> str:
    """Formats seconds: `0.4 s`, `42 s`, `3:20`, `1:02:03`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def size(size_bytes: int) -> str:
    """Formats bytes in the largest unit that leaves at least 1: `300 bytes`, `4.7 kB`, `1.2 GB`."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:,.1f} {unit}"
    return f"{size_bytes} bytes"
