"""Reads how scores grow with the samples seen, from models that trainings left on the way."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from clipmill.metadata.stats import Estimate
from clipmill.pipeline.ledger.proof.measured import main_metrics, mean_of, measured
from clipmill.pipeline.ledger.proof.results import scores_of
from clipmill.pipeline.ledger.proof.trials import Arm


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Means of an arm's fine tasks at shares of its training's samples, ascending to 1."""

    arm: str
    share: tuple[float, ...]
    result: tuple[Estimate, ...]

    def reaching(self, value: float) -> float | None:
        """Returns the share of samples at which its mean is a value, between two models by a line;
        the first model's share if that has it already, None if the last has not."""
        before = None
        for share, result in zip(self.share, self.result, strict=True):
            if result.value >= value:
                if before is None:
                    return share
                begin, low = before
                return begin + (share - begin) * (value - low) / (result.value - low)
            before = share, result.value
        return None


def curves(every: Sequence[Arm], fine: Collection[str]) -> list[Curve]:
    """Returns the curve of each arm over these tasks; none where no arm has snapshots."""
    points: dict[str, list[tuple[float, Estimate]]] = {arm.name: [] for arm in every}
    shares = {trial.share for arm in every for trial in arm.snapshots}
    for share in sorted({*shares, 1.0} if shares else ()):
        arms = [
            replace(arm, trials=tuple(t for t in (*arm.snapshots, *arm.trials) if t.share == share))
            for arm in every
        ]
        trials = [trial for arm in arms for trial in arm.trials]
        metrics = [metric for metric in main_metrics(measured(trials)) if metric.task in fine]
        if metrics and all(len(metric.models) == len(trials) for metric in metrics):
            for arm, scored in scores_of(mean_of(metrics), arms).items():
                points[arm].append((share, scored.estimate))
    return [
        Curve(arm=arm, share=tuple(s for s, _ in found), result=tuple(r for _, r in found))
        for arm, found in points.items()
        if len(found) > 1
    ]
