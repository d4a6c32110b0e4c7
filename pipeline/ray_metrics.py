"""Counts a run on Ray for Prometheus: Ray's exporter serves them as `ray_clipmill_rows_total`, …"""

from ray.util.metrics import Counter, Gauge, Histogram

from clipmill.metadata.record import Failure, Record
from clipmill.pipeline.run_folder.live import Look, Watcher

SECONDS = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0]  # bounds of the histogram


class Metered(Watcher):
    """A watcher that counts what each stage stores and loses."""

    def __init__(self) -> None:
        by = ("stage",)
        self.rows = Counter("clipmill_rows", "Rows computed and stored.", by)
        self.bytes = Counter("clipmill_bytes", "Bytes of data files stored.", by)
        self.lost = Counter("clipmill_rows_lost", "Rows without a value.", (*by, "reason"))
        self.failed_shards = Counter("clipmill_shards_failed", "Attempts that failed.", by)
        self.left = Gauge("clipmill_shards_left", "Shards that are not stored yet.", by)
        self.seconds = Histogram("clipmill_shard_seconds", "Work on a shard.", SECONDS, by)

    def begin(self, look: Look) -> None:
        self.look = look

    def shard(self, name: str, record: Record, total: int | None) -> None:
        by = {"stage": name}
        self.seconds.observe(record.seconds, by)
        if total is not None:
            self.left.set(total - self.look().stages[name].shards, by)
        counted = [(self.rows, record.computed, by), (self.bytes, record.size_bytes, by)]
        lost = {reason: rows for reason, rows in record.counts.items() if reason}
        counted += [(self.lost, rows, by | {"reason": reason}) for reason, rows in lost.items()]
        for counter, value, tags in counted:
            if value > 0:  # Ray refuses to count nothing
                counter.inc(value, tags)

    def failed(self, name: str, failure: Failure) -> None:
        self.failed_shards.inc(1, {"stage": name})
