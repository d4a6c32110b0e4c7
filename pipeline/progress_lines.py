"""A run in lines of text: what `run` draws and `status` prints, as wide and high as asked."""

from collections.abc import Sequence

from clipmill.pipeline.run_folder.live import LEAST_S, Live, LiveRun, Status
from clipmill.pipeline.run_folder.words import KINDS, duration

BAR = 16
NAME = 28  # a longer name is cut
COLOURS: dict[Status, str] = {
    "running": "cyan",
    "failed": "red",
    "stopped": "yellow",
    "done": "green",
    "found": "dim",
    "waiting": "dim",
}
MARKS: dict[Status, str] = {
    "running": ">",
    "failed": "!",
    "stopped": "!",
    "done": "+",
    "found": "=",
    "waiting": ".",
}


def stage_line(stage: Live, now: float, waits_for: Sequence[str] | None = None) -> str:
    """What a stage does or has done: shards, rows, time; a rate of a second's work or more."""
    if stage.status == "waiting":
        if waits_for is None:
            return "not begun"
        return f"waits for {', '.join(waits_for)}" if waits_for else "about to begin"
    if stage.status == "running":
        parts = [*_how_far(stage), *_speed(stage, now), *_without(stage)]
        if (left := stage.left_s(now)) is not None and left >= LEAST_S:
            parts.insert(1, f"{duration(left)} left")
        return ", ".join(parts)
    rows = [f"{stage.rows:,} rows"] if stage.gives_rows and stage.rows else []
    rows += [f"rows of '{stage.rows_of}' in '{stage.data}'"] if stage.rows_of else []
    files = [] if stage.gives_rows else [f"{stage.files:,} {_plural('file', stage.files)}"]
    if stage.status in ("done", "found"):
        elapsed = stage.elapsed(now)
        took = "" if elapsed is None else f" in {duration(elapsed)}"
        said = "found done" if stage.status == "found" else f"done{took}"
        return ", ".join([said, *rows, *files, *_speed(stage, now), *_without(stage)])
    far = [f"stopped at {', '.join(_how_far(stage))}"] if stage.shards or stage.all_units else []
    if stage.status == "failed":
        cause = stage.causes[0] if stage.causes else None
        shard = "" if cause is None or cause.shard is None else f"shard {cause.shard}: "
        found = f"failed: {shard}{' '.join(cause.found.split())}" if cause else "failed"
        return ", ".join([found, *far])
    return ", ".join([*(far or ["stopped"]), *_without(stage)])


def total_line(live: LiveRun, now: float) -> str:
    """Stages done of all, time so far, and the time that at least is left."""
    stages = live.stages.values()
    done = sum(stage.status in ("done", "found") for stage in stages)
    parts = [f"{done} of {len(live.stages)} stages done"]
    for status in ("failed", "stopped"):
        if count := sum(stage.status == status for stage in stages):
            parts.append(f"{count} {status}")
    if live.halted:
        pids = " ".join(map(str, live.halted))
        parts.append(f"silent, as a signal stopped it: worker {pids} (kill -CONT {pids})")
    if live.began is not None:
        spent = duration((live.ended or now) - live.began)
        parts.append(f"{spent} so far" if live.works else f"the last run took {spent}")
    left = None if live.halted or not live.works else live.left_s(now)
    if left is not None and left >= LEAST_S:
        waiting = any(stage.status == "waiting" for stage in stages)
        parts.append(f"{'at least ' if waiting else ''}{duration(left)} left")
    return ", ".join(parts)


def within(
    live: LiveRun, now: float, width: int, height: int, bars: bool = True
) -> list[tuple[str, str]]:
    """(line, colour): every stage and the sum, in so many columns and rows.

    Where rows lack, the working stages stay, then those that failed, those that just ended, those
    that are next; the others are counted.
    """
    stages = list(live.stages.values())
    shown = _chosen(stages, height - 1)
    longest = min(NAME, max((len(stage.name) for stage in shown), default=0))
    lines = []
    for stage in shown:
        waits = _waits(live, stage) if live.works else None
        bar = f"{_bar(stage)} " if bars else ""
        name = stage.name if len(stage.name) <= NAME else f"{stage.name[: NAME - 1]}…"
        text = f"{MARKS[stage.status]} {name:<{longest}} {bar}{stage_line(stage, now, waits)}"
        lines.append((_cut(text, width), COLOURS[stage.status]))
    hidden = len(stages) - len(shown)
    more = f" ({hidden} more {'stage' if hidden == 1 else 'stages'} not shown)" if hidden else ""
    return [*lines, (_cut(total_line(live, now) + more, width), "bold")]


def _chosen(stages: list[Live], rows: int) -> list[Live]:
    """As many stages as fit, the most telling ones, in the recipe's order."""
    if len(stages) <= rows:
        return stages
    ended = sorted((s for s in stages if s.status == "done"), key=lambda s: -(s.ended or 0))
    by_status = {
        status: [stage for stage in stages if stage.status == status]
        for status in ("running", "failed", "stopped", "waiting", "found")
    }
    told = [*by_status["running"], *by_status["failed"], *by_status["stopped"]]
    next_ = by_status["waiting"]
    ranked = [*told, *ended[:1], *next_[:1], *ended[1:], *next_[1:], *by_status["found"]]
    kept = {stage.name for stage in ranked[: max(0, rows)]}
    return [stage for stage in stages if stage.name in kept]


def _how_far(stage: Live) -> list[str]:
    """Shards, or the call's words with its units and what a worker told of the one in its hand."""
    if stage.counts_shards:
        total = "?" if stage.total is None else f"{stage.total:,}"
        inside = sum(piece.done for piece in stage.pieces.values() if piece.what == "rows")
        rows = stage.rows + int(inside)
        doing = sorted({piece.what for piece in stage.pieces.values()} - {"rows"})
        counted = [f"{rows:,} rows"] if rows else []
        return [f"{stage.shards:,} of {total} shards", *counted, *doing]
    told = max(stage.pieces.values(), key=lambda piece: piece.done, default=None)
    if told and stage.all_units == 1:
        head = f"{stage.call}: {told.done:,.0f} of {told.all:,.0f} {told.what}".rstrip()
    else:
        head = f"{stage.call}: {stage.units:,} of {stage.all_units:,}"
        if told:
            head += f", one at {told.done:,.0f} of {told.all:,.0f} {told.what}".rstrip()
    values = told.values.items() if told else ()
    return [head, *(f"{name} {value:.4g}" for name, value in values)]


def _speed(stage: Live, now: float) -> list[str]:
    rate = stage.rows_per_s(now)
    return [f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.1f} rows/s"] if rate else []


def _without(stage: Live) -> list[str]:
    """`12 failed, 3 dropped`: rows without a value, each kind by its name."""
    return [f"{stage.kinds[kind]:,} {kind}" for kind in KINDS if stage.kinds.get(kind)]


def _bar(stage: Live) -> str:
    """How much is done, for those that are begun; empty for those that wait."""
    if stage.status == "waiting":
        return " " * BAR
    share = 1.0 if stage.status in ("done", "found") else stage.share or 0.0
    full = int(share * BAR)
    return "━" * full + "─" * (BAR - full)


def _waits(live: LiveRun, stage: Live) -> list[str]:
    """What a stage waits for; not what one of those waits for as well."""
    needs = [live.stages[need] for need in stage.needs if need in live.stages]
    open_needs = [need for need in needs if need.status not in ("done", "found")]
    before = {name for need in open_needs for name in need.needs}
    return [need.name for need in open_needs if need.name not in before]


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"
