"""Refuses a cluster of which a machine does not see the run folder, or a path of the recipe."""

import os
from collections.abc import Sequence
from functools import partial

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors import Executor
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.stage import settings_fields


def refuse_blind(plan: Plan, run: lock.Owned, executor: Executor) -> None:
    """Raises RecipeError with each machine that lacks storage keys, or a mounted folder."""
    see = partial(unseen, run.uri, run.hold.owner, paths_of(plan))
    blind = {machine: words for machine, words in executor.on_machines(see).items() if words}
    if blind:
        raise RecipeError(
            found="; ".join(f"{machine} {words}" for machine, words in sorted(blind.items())),
            where=str(run),
            do="give URIs, or whole paths of folders that every machine mounts; each has the keys"
            " of the storage in its own environment",
        )


def paths_of(plan: Plan) -> list[str]:
    """Returns the files and folders of this machine that the settings of stages name."""
    values = (
        getattr(planned.stage, field.name)
        for planned in plan.stages.values()
        for field in settings_fields(planned.stage)
        if not field.metadata.get("fingerprint", True)
    )
    return sorted({v for v in values if v and isinstance(v, str) and os.path.exists(v)})


def unseen(run: str, owner: str, paths: Sequence[str]) -> str:
    """Returns in words what the machine that calls this can't see; "" if it sees all."""
    try:
        lease = Storage(run).read_json(lock.NAME, lock.Lease)
    except OSError as error:
        return f"can't read the run folder: {error}"
    if lease is None or lease.owner != owner:
        return "has another run folder at that path, or none"
    missing = [path for path in paths if not os.path.exists(path)]
    return f"has no {', '.join(missing)}" if missing else ""
