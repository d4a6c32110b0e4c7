"""Plain words for what the engine stores: why a row has no value, how long something took."""

import re

from clipmill.metadata.passes import NOT_SELECTED

UNDEFINED = "undefined:"  # a select stage's reason: the column after it has no value
BEFORE = "dropped_before"
DROPPED_BY, KEPT_BY = "dropped_by:", "kept_by:"  # a select that another one combines
SETTING = r"`(\w+): ([\w.]+)`"  # in a stage's advice
LONG = 80  # characters of a rule that stands on one line
KINDS = ("failed", "dropped", "dropped before", "no input", "not selected")


def kind_of(reason: str, is_select: bool, is_root: bool) -> str:
    """One of `KINDS` for a row that has this reason at a stage.

    `dropped before`: by a select that this stage, itself a select or not, takes its rows from.
    `no input`: the stage got nothing to work on, whether the pool had none or a stage before it
    gave none. By the reason alone, so that no file is opened.
    """
    if reason == NOT_SELECTED:
        return "not selected"
    if reason == BEFORE:
        return "dropped before"
    if reason.startswith((UNDEFINED, "undefined")) or (reason.startswith("no_") and not is_root):
        return "no input"
    return "dropped" if is_select else "failed"


def in_words(reason: str) -> str:
    """A reason as a reader's sentence has it; a code of a stage's own stays as it is."""
    if reason.startswith(UNDEFINED):
        return f"{reason.removeprefix(UNDEFINED)} has no value"
    for combined in (DROPPED_BY, KEPT_BY):
        if reason.startswith(combined):
            return f"{combined[:-1].replace('_', ' ')} '{reason.removeprefix(combined)}'"
    return "dropped by an earlier select" if reason == BEFORE else reason


def apart(before: str, after: str) -> tuple[str, str] | None:
    """Of two long rules joined by AND the parts that one alone has; None where nothing is saved."""
    rules = [_conjuncts(text) for text in (before, after)]
    only = [[part for part in its if part not in other] for its, other in (rules, rules[::-1])]
    is_short = max(len(before), len(after)) <= LONG
    if is_short or only == rules or not any(only) or "BETWEEN" in f"{before} {after}".upper():
        return None
    return " AND ".join(only[0]), " AND ".join(only[1])


def _conjuncts(rule: str) -> list[str]:
    """The parts between those ANDs that stand in no parentheses and no quotes."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"'[^']*'|\"[^\"]*\"|[()]|\bAND\b", rule, re.IGNORECASE):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if found[0].upper() == "AND" and not depth:
            parts.append(rule[start : found.start()])
            start = found.end()
    return [" ".join(part.split()) for part in (*parts, rule[start:])]


def as_sets(stage: str, advice: str) -> list[str]:
    """`--set STAGE.key=value` of each setting that a stage's advice names as `key: value`."""
    return [f"--set {stage}.{key}={value}" for key, value in re.findall(SETTING, advice)]


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3:20`, `1:02:03`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def size(size_bytes: int) -> str:
    """Bytes in the largest unit that leaves at least one: `300 bytes`, `4.7 kB`, `1.2 GB`."""
    for unit, of in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= of:
            return f"{size_bytes / of:,.1f} {unit}"
    return f"{size_bytes} bytes"
