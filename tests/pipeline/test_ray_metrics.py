"""Counts for Prometheus; that Ray's exporter serves them: tests/chaos/test_submit.py."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from clipmill.metadata.record import Record
from clipmill.pipeline import ray_metrics

RECORD = Record(
    shard=0,
    data="0.parquet",
    size_bytes=9,
    sha256="a",
    rows=5,
    computed=5,
    uid_sha256="b",
    parents={},
    counts={"": 4, "odd": 1},
    seconds=2.5,
)


@dataclass
class Metric:
    """Stands for Ray's; refuses a count of nothing, as Ray's does."""

    values: list = field(default_factory=list)

    def set(self, value, tags):
        self.values.append((value, tags))

    observe = set

    def inc(self, value, tags):
        assert value > 0
        self.set(value, tags)


@pytest.fixture
def made(monkeypatch):
    """The metrics by name."""
    made = {}

    def make(name, *_):
        return made.setdefault(name.removeprefix("clipmill_"), Metric())

    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(ray_metrics, kind, make)
    return made


def test_what_is_stored_is_counted_by_stage_and_what_is_lost_by_reason(made):
    metered = ray_metrics.Metered()
    look = lambda: SimpleNamespace(stages={"square": SimpleNamespace(shards=2)})  # noqa: E731
    metered.begin(look)
    metered.shard("square", RECORD, 7)
    by = {"stage": "square"}
    assert {name: metric.values for name, metric in made.items()} == {
        "rows": [(5, by)],
        "bytes": [(9, by)],
        "rows_lost": [(1, by | {"reason": "odd"})],
        "shards_failed": [],
        "shards_left": [(5, by)],
        "shard_seconds": [(2.5, by)],
    }
    metered.failed("square", None)
    assert made["shards_failed"].values == [(1, by)]
