"""A digest of every stage's values, so that none changes under an unchanged `version`.

    python -m tests.test_golden     writes tests/golden.json anew

Values, not files: rows with their floats to the last bit, exports as the rows in them. The class
`recorded` is held to uid, reason and sha256. Inputs are drawn by integers (tests/every_stage.py).
A stage is exact on one kind of processor; one that comes out in several ways has a digest of each:
`score.clip_score`, `score.negclip` and `score.learnability` by OpenBLAS's kernels for AVX-512 and
AVX2, whose order of sums differs.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.pools.build import build_pool
from tests.every_stage import OURS, Finished, holds, run, served

GOLDEN = Path(__file__).parent / "golden.json"


def key_of(planned: PlannedStage) -> str:
    return f"{planned.uses} v{planned.stage.version}"


def digest_of(finished: Finished, planned: PlannedStage) -> str:
    text = json.dumps(finished.values(planned), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def test_values_are_those_of_the_version(every_stage):
    def law(uses):
        planned = every_stage.stage_of(uses)
        assert key_of(planned) in golden, "new or raised: python -m tests.test_golden, and commit"
        assert digest_of(every_stage, planned) in golden[key_of(planned)], (
            f"other values under version {planned.stage.version}. Meant: raise `version` in "
            f"stages/{uses.replace('.', '/')}.py, then python -m tests.test_golden. Else mend it"
        )

    golden = json.loads(GOLDEN.read_text())
    holds(law, [(uses, uses) for uses in OURS], OURS)


def test_no_digest_is_left_of_a_stage_or_version_that_is_gone(every_stage):
    known = {key_of(every_stage.stage_of(uses)) for uses in OURS}
    assert json.loads(GOLDEN.read_text()).keys() == known


def test_a_changed_value_changes_the_digest(every_stage, monkeypatch):
    planned = every_stage.stage_of("cluster.kmeans")
    before = digest_of(every_stage, planned)
    rows = every_stage.values(planned)
    rows[0]["centroid_cosine"] += 2.0**-24
    monkeypatch.setattr(Finished, "values", lambda *_: rows)
    assert digest_of(every_stage, planned) != before


def refresh() -> None:
    """Writes the digests of today's values; says which of them changed under their version."""
    before = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_pool("generated", folder / "pool", rows=120)
        with served(folder / "pool", folder / "links") as port:
            finished = run(folder / "pool", folder / "whole", port, files=1, shard_rows=120)
        stages = [finished.stage_of(uses) for uses in OURS]
        now = {key_of(planned): digest_of(finished, planned) for planned in stages}
    changed = [key for key in now if now[key] not in before.get(key, [now[key]])]
    digests = {key: before[key] if now[key] in before.get(key, []) else [now[key]] for key in now}
    GOLDEN.write_text(json.dumps(digests, indent=1) + "\n")
    if changed:
        sys.exit(f"changed under an unchanged version: {', '.join(changed)}; raise `version`")


if __name__ == "__main__":
    refresh()
