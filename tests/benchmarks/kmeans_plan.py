"""What cluster.kmeans costs on a pool that no machine here holds, on paper.

    python -m tests.benchmarks.kmeans_plan

Prints what docs/clusters.md, "Cost", says; a test holds the two together.
"""

from dataclasses import dataclass

from tests.benchmarks.side_by_side import begin

SEARCHED = 8  # parents whose children a row is compared with
REFINED = 2  # last rounds of two levels, in which rows may leave their parent
UNITS = 256  # sums of shards that a round stores, each merged by the worker that made it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run: rounds on a share of the rows, then all of them; one level of clusters, or two."""

    rows: int = 1_280_000_000
    width: int = 768
    clusters: int
    rounds: int = 20
    train_fraction: float = 0.1
    parents: int | None = None

    @property
    def products(self) -> float:
        """Rows times centres that are compared: in the rounds, then twice for all rows (to count
        each cluster's, and to store each row's)."""
        trained = self.rows * self.train_fraction
        if self.parents is None:
            return self.clusters * (self.rounds * trained + 2 * self.rows)
        children = self.clusters / self.parents
        whole = REFINED * trained + 2 * self.rows
        above = self.parents * ((self.rounds + 2) * trained + whole)  # counted, and split
        return above + children * (self.rounds * trained + SEARCHED * whole)

    @property
    def flop(self) -> float:
        return 2 * self.products * self.width

    @property
    def core_hours(self) -> float:
        return self.flop / GFLOPS / 1e9 / 3600

    @property
    def pool_bytes(self) -> int:
        """The embeddings, of which storage is read twice: at the begin, and to assign."""
        return self.rows * self.width * 4

    @property
    def scratch_bytes(self) -> float:
        """Read from workers' own disks: all rows to draw the first centres, in the first round, and
        to count; training rows in the other rounds, and for two levels to count the parents', to
        split them, and to refine."""
        again = self.rounds - 1 + (0 if self.parents is None else 2 + REFINED)
        return (3 + again * self.train_fraction) * self.pool_bytes

    @property
    def shuffled_bytes(self) -> float:
        """Training rows brought together by their parent, and to refine: each time written once and
        read once."""
        times = 0 if self.parents is None else 1 + REFINED
        return 2 * times * self.train_fraction * self.pool_bytes

    @property
    def summed_bytes(self) -> int:
        """Sums that a round stores and its end reads: 8 bytes a value."""
        return UNITS * (self.parents or self.clusters) * self.width * 8

    @property
    def worker_bytes(self) -> float:
        """Held beside a shard: centres in float32 and bfloat16, two sets of sums in 8 bytes; for
        two levels all children, or the training rows of a parent twice the mean with their sums."""
        value = self.width * (4 + 2)
        if self.parents is None:
            return self.clusters * (value + 16 * self.width)
        parent = 2 * self.train_fraction * self.rows / self.parents * self.width * 4 * 2
        return max(self.clusters * value, self.parents * (value + 16 * self.width), parent)


GFLOPS = 290  # of a core in bfloat16, all told: see tests/benchmarks/kmeans.py

PLANS = (
    Plan(clusters=100_000),
    Plan(clusters=100_000, parents=320),
    Plan(clusters=1_000_000),
    Plan(clusters=1_000_000, parents=1_000),
)


def main() -> str:
    for plan in PLANS:
        levels = "one level" if plan.parents is None else f"{plan.parents:,} parents"
        print(
            f"{plan.clusters:>9,} clusters, {levels:<13} {plan.core_hours:7,.0f} core-hours, read"
            f" from own disks {plan.scratch_bytes / 1e12:.0f} TB, shuffled"
            f" {plan.shuffled_bytes / 1e12:.1f} TB, sums a round {plan.summed_bytes / 1e9:,.0f} GB,"
            f" a worker {plan.worker_bytes / 1e9:.1f} GB"
        )
    hours = [plan.core_hours for plan in PLANS]
    return f"{hours[0]:,.0f} core-hours, {hours[1]:,.0f} by two levels, computed"


if __name__ == "__main__":
    begin(main)
