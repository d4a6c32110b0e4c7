"""Checks the reasons given to `--retry`."""

from collections.abc import Sequence

from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.planning.plan import Plan


def check_retry(plan: Plan, reasons: Sequence[str]) -> None:
    """Raises RecipeError for a reason that no stage of the plan retries."""
    stages = [planned.stage for planned in plan.stages.values()]
    known = sorted({"crashed"}.union(*(stage.transient for stage in stages)))
    for reason in reasons:
        if reason in known:
            continue
        if any(reason in stage.reasons for stage in stages):
            found = f"'{reason}' is a reason that does not pass: no row is tried again for it"
            raise RecipeError(found, "--retry", f"reasons that pass, here: {', '.join(known)}")
        raise RecipeError(
            f"'{reason}' is no reason that can be retried here",
            "--retry",
            did_you_mean(reason, known, "reasons that pass, here"),
        )
