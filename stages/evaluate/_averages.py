"""Means over DataComp's list: whole, or under a name that says how much of it there is."""

from collections.abc import Mapping, Sequence
from math import hypot
from typing import Any

from clipmill.stages.ops.listed_tasks import Listed, listed_tasks

ALL = "average"


def averages(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean of the main metrics of the 38, of the shifts, of VTAB and of retrieval, each with its
    95 % interval, 0 to 1; `partial_average_of_12` where tasks are missing, nothing where all are.

    `results` are those of one model by folder. A task counts that has DataComp's classes and
    number of pictures; of two folders of one task the first counts.

    Source: DataComp's aggregate_scores: unweighted means.
    Error: the intervals take the tasks as independent; pictures that two share make them narrow.
    """
    counted: dict[str, dict[str, float]] = {}
    for one in results.values():
        if is_whole(one) and one["metrics"][one["metric"]] is not None:
            counted.setdefault(one["listed"], one["metrics"][one["metric"]])
    found = {}
    scored = [task for task in listed_tasks() if task.metric]
    for name in (ALL, *dict.fromkeys(task.group for task in scored if task.group)):
        wanted = [task for task in scored if name in (ALL, task.group)]
        values = [counted[task.name] for task in wanted if task.name in counted]
        if values:
            complete = len(values) == len(wanted)
            title = name if complete else f"partial_{name}_of_{len(values)}"
            found[title] = _mean(values, wanted, counted)
    return found


def is_whole(result: Mapping[str, Any]) -> bool:
    """Whether a result is of a listed task with as many pictures as DataComp's has."""
    size = next((task.size for task in listed_tasks() if task.name == result.get("listed")), None)
    return size is not None and size == (result.get("instances") or result["pictures"])


def _mean(
    values: Sequence[Mapping[str, float]],
    wanted: Sequence[Listed],
    counted: Mapping[str, Any],
) -> dict[str, Any]:
    n = len(values)
    mean = sum(one["value"] for one in values) / n
    below = hypot(*(one["value"] - one["low"] for one in values)) / n
    above = hypot(*(one["high"] - one["value"] for one in values)) / n
    missing = [task.name for task in wanted if task.name not in counted]
    return {
        "value": mean,
        "low": mean - below,
        "high": mean + above,
        "chance": sum(one["chance"] for one in values) / n,
        "tasks": n,
        "missing": missing,
        "complete": not missing,
    }
