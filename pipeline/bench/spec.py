"""Defines what a bench compares: arms of rows and training settings; stored in DIR/bench.json."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from clipmill.metadata.keys import without_keys
from clipmill.metadata.storage import KEYS
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.planning.recipe import value_of

MOST_SEEDS = 1_000
NAME = re.compile("[A-Za-z][A-Za-z0-9_-]*")  # as for stages, since an arm is one
RAW, TRUSTED, ORACLE, LEARNT = "raw", "trusted", "oracle", "learnt"
RANDOM = re.compile(r"random_of_.*|leaks_\d+|pixels_\d+")
SCORES, PROBES = "_scores", "_probes"  # suffixes of the stages that evaluate an arm's models
ZERO_SHOT, PROBE = "zero_shot", "probe"
TAKEN = ("pixels", "leaks", RAW, LEARNT)
FIXED = ("uses", "data", "rows", "subset", "scale", "seeds")  # set by the bench itself


@dataclass(frozen=True, kw_only=True)
class Source:
    """The origin of rows: a stage of a run, a list of uids, a mixture.

    `own` rows have an export of their own, whatever their root.
    """

    kind: Literal["stage", "own", "list", "mix"]
    run: str = ""
    stage: str = ""
    path: str = ""  # for a list
    column: str = ""  # for a part of a stage's rows: those with `value`
    value: str = ""
    shares: dict[str, float] = field(default_factory=dict)  # for a mix: shares of the draws

    def __str__(self) -> str:
        if self.kind in ("stage", "own"):
            part = f" where {self.column} is {self.value}" if self.column else ""
            return f"{self.run}:{self.stage}{part}"
        if self.kind == "mix":
            return ", ".join(f"{name} {100 * share:.3g}%" for name, share in self.shares.items())
        return self.path


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of the leaderboard: one model per seed, trained on `rows` with these settings."""

    rows: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The content of DIR/bench.json, without the derived arms: raw, and random ones by size."""

    scale: str
    seeds: int
    tasks: str
    judges: tuple[str, ...] = (ZERO_SHOT,)
    by: str = ""  # the column by whose values an arm is split
    hold_out: str = ""  # the select that drops strangers: arms have these alone
    hold_in: str = ""  # or the select whose rows alone arms have
    settings: dict[str, Any] = field(default_factory=dict)  # of every training
    rows: dict[str, Source] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)

    @property
    def runs(self) -> list[str]:
        """Returns the runs whose pool the arms share; training uses the pictures of the first."""
        return list(
            dict.fromkeys(source.run for source in self.rows.values() if source.kind == "stage")
        )


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments, as given."""

    arms: Sequence[str] = ()  # NAME=RUN:STAGE
    lists: Sequence[str] = ()  # NAME=FILE
    mixes: Sequence[str] = ()  # NAME=a:0.7,b:0.3
    again: Sequence[str] = ()  # NAME=ROWS,key=value
    trusted: str | None = None  # RUN:STAGE
    oracle: str | None = None
    sets: Sequence[str] = ()  # key=value
    scale: str | None = None
    seeds: int | None = None
    tasks: str | None = None
    judges: str | None = None  # zero_shot,probe
    hold_out: str | None = None  # STAGE
    hold_in: str | None = None  # STAGE


def bench_of(arguments: Arguments, before: Bench | None, out: str) -> Bench:
    """Merges the arguments into the stored bench; RecipeError if they contradict it."""
    rows = dict(before.rows) if before else {}
    arms = dict(before.arms) if before else {}
    for name, source in _sources(arguments):
        _add(rows, name, source)
        if arms.setdefault(name, Arm(rows=name)) != Arm(rows=name):
            raise _other(name, f"arm '{name}'")
    for name, source in rows.items():
        for part in source.shares:
            _check_part(name, part, rows)
    for text in arguments.again:
        name, arm = _trained_again(text, {RAW, *rows})
        if arms.setdefault(name, arm) != arm:
            raise _other(name, "--arm")
    if not any(source.kind == "stage" for source in rows.values()):
        raise RecipeError(
            "no arm of a run" + ("" if before else ", and no bench there"),
            out,
            "name one, whose pool the others are of: NAME=RUN:STAGE",
        )
    settings = _settings(arguments.sets, "--set")
    hold_out, hold_in = arguments.hold_out or "", arguments.hold_in or ""
    if hold_out and hold_in:
        do = "give each a bench of its own, so that arms are compared on one ground"
        raise RecipeError("--hold-out and --hold-in together", "the arguments", do)
    bench = before or Bench(
        scale="nano", seeds=5, tasks="", hold_out=hold_out, hold_in=hold_in, settings=settings
    )
    for key, value, stored in (
        ("--scale", arguments.scale, bench.scale),
        ("--set", settings, bench.settings),
        ("--hold-out", hold_out, bench.hold_out),
        ("--hold-in", hold_in, bench.hold_in),
    ):
        both = (
            {**stored, **value} if isinstance(value, dict) and isinstance(stored, dict) else value
        )
        if before and value and both != stored:
            raise RecipeError(
                f"{key} {_words(value)}, and this bench has {_words(stored) or 'none'}",
                out,
                "arms are compared at equal training: give another --out",
            )
    least = before.seeds if before else 1
    if arguments.seeds is not None and not least <= arguments.seeds <= MOST_SEEDS:
        had = f", and this bench has {least}" if before else ""
        do = f"give {least} to {MOST_SEEDS:,}"
        raise RecipeError(f"--seeds {arguments.seeds}{had}", "the arguments", do)
    tasks = _whole(arguments.tasks, "--tasks") if arguments.tasks else bench.tasks
    if not tasks:
        raise RecipeError("no tasks", "the arguments", "give --tasks DIR: what models are asked")
    return replace(
        bench,
        scale=arguments.scale or bench.scale,
        seeds=arguments.seeds or bench.seeds,
        tasks=tasks,
        judges=_judges(arguments.judges) if arguments.judges else bench.judges,
        rows=rows,
        arms=arms,
    )


def _words(value: str | dict[str, Any]) -> str:
    return value if isinstance(value, str) else ", ".join(f"{k}={v}" for k, v in value.items())


def _sources(arguments: Arguments) -> list[tuple[str, Source]]:
    sources = [_stage(*_named(text, "NAME=RUN:STAGE"), "stage") for text in arguments.arms]
    for text in arguments.lists:
        name, path = _named(text, "--import NAME=FILE")
        sources.append((name, Source(kind="list", path=_whole(path, "--import"))))
    for text in arguments.mixes:
        name, parts = _named(text, "--mix NAME=a:0.7,b:0.3")
        sources.append((name, Source(kind="mix", shares=_shares(text, parts))))
    if arguments.trusted:
        sources.append(_stage(TRUSTED, arguments.trusted, "own"))
    if arguments.oracle:
        sources.append((ORACLE, Source(kind="list", path=_whole(arguments.oracle, "--oracle"))))
    return sources


def _judges(text: str) -> tuple[str, ...]:
    judges = tuple(text.split(","))
    if judges not in ((ZERO_SHOT,), (ZERO_SHOT, PROBE)):
        do = f"write {ZERO_SHOT}, or {ZERO_SHOT},{PROBE}: probes read its embeddings"
        raise RecipeError(f"--judge {text}", "the arguments", do)
    return judges


def _named(text: str, form: str) -> tuple[str, str]:
    """Splits NAME=VALUE; RecipeError for a bad or reserved name."""
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise RecipeError(f"'{text}' names no arm", "the arguments", f"write {form}")
    if problem := unfit(name):
        raise RecipeError(f"'{name}' as an arm's name", "the arguments", f"{problem}; give another")
    return name, value


def unfit(name: str) -> str:
    """Returns why an arm cannot have this name; empty if it can."""
    if name in TAKEN or RANDOM.fullmatch(name) or name.endswith((SCORES, PROBES)):
        return f"{name} is the bench's own name"
    return "" if NAME.fullmatch(name) else "begin with a letter; use letters, digits, _ and -"


def _stage(name: str, where: str, kind: Literal["stage", "own"]) -> tuple[str, Source]:
    run, colon, stage = where.rpartition(":")
    if not colon or not run or not stage or stage.startswith("//"):
        do = f"write {name}=RUN:STAGE, a run folder and a stage of it"
        raise RecipeError(f"'{where}' names no stage of a run", f"arm '{name}'", do)
    return name, Source(kind=kind, run=_whole(run, f"arm '{name}'"), stage=stage)


def _shares(text: str, parts: str) -> dict[str, float]:
    """Returns each part's share of the draws: its weight over their sum."""
    weights: dict[str, float] = {}
    for part in parts.split(","):
        name, _, weight = part.partition(":")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = 0.0
        if not 0 < weights[name] < float("inf"):
            do = "write a weight above 0 behind each arm: --mix both=clip:0.7,text:0.3"
            raise RecipeError(f"'{part}' has no weight", f"--mix {text}", do)
    if len(weights) < 2 or len(weights) < len(parts.split(",")):
        raise RecipeError("a mixture of one arm", f"--mix {text}", "name two or more, each once")
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _check_part(name: str, part: str, rows: Mapping[str, Source]) -> None:
    fits = [other for other, source in rows.items() if source.kind in ("stage", "list")]
    if part not in (RAW, *fits):
        do = did_you_mean(part, [RAW, *fits], "arms that can be mixed")
        raise RecipeError(f"no arm '{part}' to mix", f"--mix {name}", do)


def _trained_again(text: str, known: set[str]) -> tuple[str, Arm]:
    form = "--arm NAME=ROWS,key=value: rows of another arm, and how they are trained"
    name, value = _named(text, form)
    rows, *settings = value.split(",")
    if rows not in known:
        raise RecipeError(f"no arm '{rows}'", f"--arm {text}", did_you_mean(rows, sorted(known)))
    if not settings:
        raise RecipeError(f"'{name}' is '{rows}' again", f"--arm {text}", f"write {form}")
    return name, Arm(rows=rows, settings=_settings(settings, f"--arm {text}"))


def _settings(texts: Sequence[str], where: str) -> dict[str, Any]:
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key in FIXED or not key.isidentifier():
            do = "write key=value, a setting of train.clip: learning_rate=0.004"
            if key in FIXED:
                do = f"write --{key}" if key in ("scale", "seeds") else f"{key} is the bench's own"
            raise RecipeError(f"'{text}' is no setting of a training", where, do)
        settings[key] = value_of(value, where)
    return settings


def _add(rows: dict[str, Source], name: str, source: Source) -> None:
    if rows.setdefault(name, source) != source:
        raise _other(name, str(rows[name]))


def _other(name: str, current: str) -> RecipeError:
    do = "names are unique in a bench: give this one another"
    return RecipeError(f"'{name}' stands for other rows or settings already", current, do)


def _whole(path: str, where: str) -> str:
    """Returns an absolute path, so that the recipe runs anywhere; URIs unchanged, without keys."""
    if without_keys(path) != path:
        raise RecipeError("a URI with keys in it", where, f"a recipe stores no keys: {KEYS}")
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
