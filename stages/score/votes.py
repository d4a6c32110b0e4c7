"""Combines votes of noisy rules into one probability, by accuracies estimated without truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import Column
from clipmill.pipeline.dataset import Context, Inputs, State
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, need_types
from clipmill.stages.ops.tables.rows import added, put_json, with_reason

# Shapes: N rows, J rules, P patterns of votes (3^J), M of them that rows have.

SUMMARY = "votes.json"
VOTES_SCORE = Column(
    "votes_score", pa.float32(), "0 to 1", "Probability that the row is good.", better="high"
)
ROUNDS, NEAR = 10_000, 1e-10  # of the fit at most; the change of an accuracy that ends it
GUESS = 0.7  # accuracy from which it starts: rules are better than chance


@dataclass(frozen=True, kw_only=True)
class Votes(DatasetStage):
    """Probability that a row is good, by rules that vote yes, no or nothing (null).

    Rules err independently of each other, each with an accuracy of its own. The accuracies of
    greatest likelihood are found by EM, from the counts of each pattern of votes: whole numbers, so
    shards and workers change nothing. out/votes.json has each rule's accuracy and share of votes.

    Source: Dawid and Skene (1979), with one accuracy a rule; as EcoDatum (Xu et al. 2025) combines
    rules. Departs: there Snorkel's fit by gradients. Error: none beside float64's, where it ends.
    Example: {after: [ingest.image_folder, embed.clip, cluster.kmeans, select.sample,
      select.density, select.prototypes], rules: [sample.keep, density.keep, prototypes.keep]}
    """

    # columns: true is yes
    rules: Annotated[tuple[NonEmpty, ...], Meta(min_length=3, max_length=12)]
    balance: Annotated[float, Meta(gt=0, lt=1)] = 0.5  # share of good rows

    version = 1
    determinism = "exact"
    learns = ""
    writes = (VOTES_SCORE,)
    reasons = ("no_votes",)

    def __post_init__(self) -> None:
        if len({*self.rules}) < len(self.rules):
            raise RecipeError("a rule stands twice", "key `rules`", "name each column once")

    @property
    def reads(self) -> tuple[str, ...]:
        return self.rules

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Raises StageError for a column that holds no truth values."""
        do = "name columns of truth values, such as `keep` of a select"
        need_types(types, self.rules, "key `rules`", do, kinds=(pa.types.is_boolean,))

    def run(self, inputs: Inputs, ctx: Context) -> None:
        count_P, good_P = np.zeros(0, np.int64), np.empty(0)
        if len(inputs.rows):
            count_P = ctx.reduce(self.counted, inputs.rows, added)["rows"].astype(np.int64)
        if count_P.any():
            vote_MJ = votes_of(np.flatnonzero(count_P), len(self.rules))
            count_M = count_P[count_P > 0]
            for name, vote_M in zip(self.rules, vote_MJ.T, strict=True):
                if len({*vote_M} - {0}) < 2:
                    found = f"'{name}' never says {'no' if 1 in vote_M else 'yes'}"
                    do = "leave the rule out: one that tells no rows apart has no accuracy"
                    raise StageError(found, f"stage '{ctx.worker.stage}', key `rules`", do)
            accuracy_J = fitted(vote_MJ, count_M, self.balance)
            share_J = (vote_MJ != 0).T @ count_M / count_M.sum()
            about = zip(self.rules, accuracy_J.tolist(), share_J.tolist(), strict=True)
            item = {name: {"accuracy": accuracy, "votes": share} for name, accuracy, share in about}
            ctx.map(partial(put_json, SUMMARY), [item])
            votes_PJ = votes_of(np.arange(len(count_P)), len(self.rules))
            good_P = probability(votes_PJ, accuracy_J, self.balance)
        ctx.restore(ctx.map_shards(partial(self.scored, good_P), inputs.rows))

    def patterns(self, rows: pa.Table) -> NDArray[np.int64]:
        """Returns (N,) each row's pattern: digits to base 3, 0 for no vote, 1 for no, 2 for yes."""
        votes = [rows[name].cast(pa.int8()).fill_null(-1).to_numpy() + 1 for name in self.rules]
        return np.stack(votes, axis=1) @ 3 ** np.arange(len(votes))

    def counted(self, rows: pa.Table) -> State:
        return {"rows": np.bincount(self.patterns(rows), minlength=3 ** len(self.rules))}

    def scored(self, good_P: NDArray[np.float64], rows: pa.Table) -> pa.Table:
        """Returns each row's probability; null, with a reason, where no rule votes."""
        pattern_N = self.patterns(rows)
        none_N = pattern_N == 0
        score = pa.array(good_P[pattern_N].astype(np.float32), mask=none_N)
        reason = pc.if_else(pa.array(none_N), "no_votes", None)
        return with_reason(rows, {VOTES_SCORE.name: score}, reason)


def votes_of(pattern_M: NDArray[np.int64], rules: int) -> NDArray[np.int64]:
    """Returns (M, J) the votes of each pattern: 1 yes, -1 no, 0 none."""
    digit_MJ = pattern_M[:, None] // 3 ** np.arange(rules) % 3
    return np.array([0, -1, 1])[digit_MJ]


def probability(
    vote_MJ: NDArray[np.int64], accuracy_J: NDArray[np.float64], balance: float
) -> NDArray[np.float64]:
    """Returns (M,) the probability of good, given the votes."""
    weight_J = np.log(accuracy_J) - np.log1p(-accuracy_J)
    return 1 / (1 + np.exp(-(vote_MJ @ weight_J)) * (1 - balance) / balance)


def fitted(
    vote_MJ: NDArray[np.int64], count_M: NDArray[np.int64], balance: float
) -> NDArray[np.float64]:
    """Returns (J,) the accuracies of greatest likelihood, by EM."""
    accuracy_J = np.full(vote_MJ.shape[1], GUESS)
    for _ in range(ROUNDS):
        good_M = probability(vote_MJ, accuracy_J, balance)
        right_J = count_M @ np.where(
            vote_MJ > 0, good_M[:, None], (1 - good_M)[:, None] * (vote_MJ < 0)
        )
        new_J = np.clip(right_J / (count_M @ (vote_MJ != 0)), 1e-6, 1 - 1e-6)
        change, accuracy_J = np.abs(new_J - accuracy_J).max(), new_J
        if change < NEAR:
            break
    return accuracy_J
