"""The captions of a run on the page: counts by gate and source, and some rows side by side."""

from typing import Any

from pipeline.ledger.captions import Caption, Captions
from pipeline.report.samples import samples_at
from pipeline.run_folder.state import RunState


def caption_section(state: RunState, of: Captions) -> dict[str, Any]:
    """What the template draws: the answer, and its examples with pictures."""
    seen = samples_at(state, of.chosen_by or of.stage, (example.place for example in of.examples))
    return {
        **vars(of),
        "examples": [
            {
                **seen[example.place],
                "fell_back": example.texts.fell_back,
                "texts": [_shown(it) for it in example.texts.texts],
            }
            for example in of.examples
        ],
    }


def _shown(it: Caption) -> dict[str, Any]:
    """A text, where it is from in few words, and its values by short names, none that is 0."""
    label = it.label if it.label != it.source else None
    made = [it.source or "unknown", *filter(None, (label, it.model, it.prompt_id))]
    return {
        "text": it.text,
        "made": ", ".join(made),
        "reason": it.reason,
        "values": {
            name.removeprefix("text_"): "yes" if value is True else value
            for name, value in it.values.items()
            if value
        },
    }
