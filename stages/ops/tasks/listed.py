"""DataComp's 40 evaluation tasks: how each is scored, under which folder name, where it is found.

The list is datacomp_38.json beside this file. 38 of the tasks carry a metric and make up the
average; the list is versioned, as an average under other rules is another number.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

LIST = Path(__file__).with_name("datacomp_38.json")
HUB = "https://huggingface.co/datasets"
OURS = "clipmill 2"  # metrics, prompts and ties as docs/evaluating.md has them


@dataclass(frozen=True)
class By:
    """The number in KEY.npy that says which group a picture is of."""

    column: int
    ignored: tuple[int, ...] = ()  # groups that are never the worst


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One task as DataComp scores it."""

    name: str
    folder: str
    also: tuple[str, ...] = ()  # other names of the folder
    hub: str
    size: int  # pictures; WinoGAViL: instances
    metric: str | None = None  # None: no part of the average
    group: str | None = None  # shifts, vtab, retrieval: means of their own
    classes: int | None = None
    by: By | None = None

    @property
    def bring(self) -> str:
        """Returns how to get it, in a few words."""
        page = f"{HUB}/{self.hub}"
        if self.hub.startswith("nlphuji/"):
            return f"write the test split of {page} to {self.folder}/test/0.parquet"
        return f"git lfs clone {page}"


@cache
def rules() -> str:
    """Returns the rules that a result follows: ours, and the list's version."""
    return f"{OURS}; {json.loads(LIST.read_text())['rules']}"


@cache
def listed_tasks() -> tuple[Listed, ...]:
    """Returns all 40, in the order of DataComp's list."""
    return msgspec.convert(json.loads(LIST.read_text())["tasks"], tuple[Listed, ...])


def listed(folder: str) -> Listed | None:
    """Returns the task of a folder's name: `vtab-dtd`, `wds_vtab-dtd`, `wds_vtab-dtd_test`."""
    return _by_folder().get(_bare(folder))


def is_scored(folder: str) -> bool:
    """Returns whether a folder's task has a rule: DataComp runs two that have none."""
    known = listed(folder)
    return known is None or known.metric is not None


def missing(names: Iterable[str]) -> list[Listed]:
    """Returns the tasks of the 38 that are not among the names."""
    present = set(names)
    return [task for task in listed_tasks() if task.metric and task.name not in present]


@cache
def _by_folder() -> dict[str, Listed]:
    return {_bare(name): task for task in listed_tasks() for name in (task.folder, *task.also)}


def _bare(folder: str) -> str:
    return folder.lower().replace("/", "-").removeprefix("wds_").removesuffix("_test")
