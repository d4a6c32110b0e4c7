"""A recipe that shows a stage at work: what it needs before it is found by what others write."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from clipmill.metadata.schema import UID, Column, Derived
from clipmill.pipeline.errors import ClipmillError
from clipmill.pipeline.planning.bindings import columns_of
from clipmill.pipeline.planning.described import example_of, sample
from clipmill.pipeline.planning.settings import known_uses, stage_class
from clipmill.pipeline.stage import DatasetStage, Stage, edges_taken, optional_columns

READ_BY_ALL = "export.parquet"  # by whatever takes data: the other formats leave the pipeline
Chain = tuple[str, ...]  # what stages use, each after what it needs


def snippet(uses: str) -> str:
    """The YAML of the shortest recipe that ends in this stage; empty where nothing leads to it."""
    samples = dict(_samples())
    roots = [one for one, stage in samples.items() if stage.takes == ()]
    if not {"rows", "data"} & set(edges_taken(samples[uses])):
        return _written((uses,), samples)
    if _joins(samples[uses]):
        return _written((*roots[:2], uses), samples)
    chains = [chain for root in roots if (chain := _to(uses, (root,), samples))]
    chains.sort(key=lambda chain: (len(chain), -_wished(chain, samples)))
    return _written(chains[0], samples) if chains else ""


def _samples() -> Iterator[tuple[str, Stage]]:
    for uses in known_uses():
        try:
            yield uses, sample(stage_class(uses, uses))
        except ClipmillError:  # a user's own that is not finished: nothing is shown with it
            continue


def _joins(stage: Stage) -> bool:
    return isinstance(stage, DatasetStage) and stage.joins_roots


def _to(uses: str, chain: Chain, samples: Mapping[str, Stage], path: Chain = ()) -> Chain | None:
    """The chain with the fewest stages more that ends in this one; None where there is none."""
    stage = samples[uses]
    edges = [one[0] if isinstance(one, tuple) else one for one in stage.takes]
    if "rows" in edges:
        for name in map(_name, stage.reads):
            if name not in _columns(chain, samples):
                makers = [
                    one
                    for one, other in samples.items()
                    if one not in (*chain, *path, uses)
                    and "rows" in other.takes
                    and name in {column.name for column in columns_of(other)}
                ]
                longer = [_to(one, chain, samples, (*path, uses)) for one in makers]
                found = min(filter(None, longer), key=len, default=None)
                if found is None:
                    return None
                chain = found
    if "data" in edges:
        exports = [  # one that is an export's source itself: a list of ids or a table is none
            one
            for one, other in samples.items()
            if "data" in other.gives and "data" in edges_taken(other)
        ]
        exports.sort(key=lambda one: one != READ_BY_ALL)
        longer = [_to(one, chain, samples, (*path, uses)) for one in exports if one != uses]
        found = next(filter(None, longer), None)
        if found is None:
            return None
        chain = found
    return (*chain, uses)


def _name(column: Column | str) -> str:
    """The name that a stage before it must write."""
    if isinstance(column, Derived):
        return column.source.name
    return column.name if isinstance(column, Column) else column.rpartition(".")[2]


def _columns(chain: Chain, samples: Mapping[str, Stage]) -> set[str]:
    return {UID.name, *(column.name for one in chain for column in columns_of(samples[one]))}


def _wished(chain: Chain, samples: Mapping[str, Stage]) -> int:
    """How many columns its stages read where there are some."""
    there = _columns(chain, samples)
    return sum(_name(column) in there for one in chain for column in optional_columns(samples[one]))


def _written(chain: Chain, samples: Mapping[str, Stage]) -> str:
    lines = ["stages:"]
    names: dict[str, str] = {}
    for uses in chain:
        kind, name = uses.split(".")
        stage = samples[uses]
        if stage.takes == ():
            name = "pool" if "pool" not in names else "more"
        elif name in names:
            name = f"{kind}_{name}"
        rows = [one for one, other in names.items() if "rows" in samples[other].gives]
        keys: dict[str, Any] = {"uses": uses}
        if _joins(stage):
            keys["from"] = rows
        elif "rows" in edges_taken(stage):
            keys["from"] = rows[-1]
        elif "data" in stage.takes:
            keys["data"] = [one for one, other in names.items() if "data" in samples[other].gives][
                -1
            ]
        names[name] = uses
        shown = keys | dict(example_of(type(stage)))
        flow = yaml.safe_dump(shown, default_flow_style=True, sort_keys=False, width=10_000)
        lines.append(f"  {name}: {flow.strip()}")
    return "\n".join(lines)
