"""Labelled captions through score.caption, and what the default cuts say of each."""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from clipmill.metadata.schema import TEXT_LIST, TEXTS
from clipmill.pipeline.stage import RowFunction, Worker
from clipmill.stages.score.caption import CaptionScores
from clipmill.stages.select._captions import CUTS, first_failed
from tests.stages.score.planted import Labelled, instructions

OWN = {  # the value that should tell each fault
    "refusal": "text_is_refusal",
    "loop": "text_repetition",
    "leak": "text_prompt_leak",
    "copy": "text_copy_ratio",
    "disclaimer": "text_has_disclaimer",
    "markup": "text_markup",
    "invented": "text_invented",
    "language": "text_foreign",
    "garbled": "text_garbled",
    "cut": "text_is_cut",
}


@cache
def scorer() -> RowFunction:
    """score.caption with the labelled set's prompt and evidence."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.yaml"
        prompts.write_text(yaml.safe_dump(instructions()))
        stage = CaptionScores(prompts=(str(prompts),), evidence=("evidence",))
        worker = Worker(seed=0, stage="score", device="cpu", threads=1, scratch=Path(folder))
        return stage.open(worker)


def values_of(captions: Sequence[Labelled], as_own: bool = False) -> dict[str, pa.Array]:
    """The values of each caption, as a rewrite of its source or, `as_own`, as the pool's own.

    A good one that is its source stands as the pool's own in any case.
    """
    nothing = dict.fromkeys(("model", "prompt_id", "label"))
    made = [
        []
        if as_own or (it.fault is None and it.text == it.source)
        else [nothing | {"text": it.text, "source": "made"}]
        for it in captions
    ]
    batch = pa.table(
        {
            "text": [it.text if as_own else it.source for it in captions],
            "captions": pa.array(made, TEXT_LIST),
            "evidence": pa.array([it.evidence for it in captions], pa.list_(pa.string())),
        }
    )
    out = scorer()(batch)
    last = np.cumsum(pa.compute.list_value_length(out[TEXTS.name]).to_numpy()) - 1
    names = [name for name in out.column_names if name not in (TEXTS.name, "reason")]
    return {name: out[name].combine_chunks().flatten().take(pa.array(last)) for name in names}


def recall(captions: Sequence[Labelled]) -> dict[str, tuple[float, float]]:
    """Of each fault, the share told by its own value, and the share that fails any cut."""
    shares = {}
    for fault, name in OWN.items():
        values = values_of([it for it in captions if it.fault == fault])
        reasons = (first_failed(values, cuts) for cuts in ({name: CUTS[name]}, CUTS))
        own, any_ = (1 - reason.null_count / len(reason) for reason in reasons)
        shares[fault] = own, any_
    return shares
