"""The captions of a run on the page: counts by gate and source, and some rows side by side."""

import re
from typing import Any

from clipmill.pipeline.ledger.rows.captions import Caption, Captions
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import in_words

BEGINS = re.compile(r"^text_(is_|has_)?")  # of the names of values


def caption_section(state: RunState, of: Captions) -> dict[str, Any]:
    """What the template draws: the answer, and its examples with pictures."""
    seen = samples_at(state, of.chosen_by or of.stage, (example.place for example in of.examples))
    return {
        **vars(of),
        "reasons": {_why(reason): counts for reason, counts in of.reasons.items()},
        "examples": [
            {
                **seen[example.place],
                "fell_back": example.texts.fell_back,
                "texts": [shown(it) for it in example.texts.texts],
            }
            for example in of.examples
        ],
    }


def shown(it: Caption) -> dict[str, Any]:
    """A text, where it is from in few words, and its values by short names, none that is 0."""
    label = it.label if it.label != it.source else None
    made = [it.source or "unknown", *filter(None, (label, _model(it.model), it.prompt_id))]
    values = {
        _name(column): "yes" if value is True else value
        for column, value in it.values.items()
        if value
    }
    sure = values.pop("language confidence", None)
    if sure is not None and "language" in values:
        values["language"] = f"{values['language']} {sure:.2f}"
    reason = it.reason and _why(it.reason)
    return {"text": it.text, "made": ", ".join(made), "reason": reason, "values": values}


def _model(model: str | None) -> str | None:
    """The model's own name: without the server's address, and the folders of a file."""
    if model is None:
        return None
    scheme, _, name = model.partition(":")
    name = name.partition("#")[2] if scheme == "openai" else name.rstrip("/").rpartition("/")[2]
    return name or model


def _why(reason: str) -> str:
    """Why a select left a text out, in the words of the values beside it."""
    kind, _, name = reason.partition(":")
    if kind == "mix":
        return "the mix takes another"
    if kind == "cut":
        return f"below the cut of {name}"
    said = in_words(reason)
    return _name(said) if said.startswith("text_") else said


def _name(column: str) -> str:
    return BEGINS.sub("", column).replace("_", " ")
