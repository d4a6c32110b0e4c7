"""Draws the captions of a run: counts by reason and source, and example rows side by side."""

import re
from typing import Any

from clipmill.pipeline.ledger.rows.captions import Caption, Captions
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import in_words

BEGINS = re.compile(r"^text_(is_|has_)?")  # prefix of the names of values


def caption_section(state: RunState, captions: Captions) -> dict[str, Any]:
    """Returns the template's values: the answer, and its examples with pictures."""
    seen = samples_at(
        state,
        captions.chosen_by or captions.stage,
        (example.place for example in captions.examples),
    )
    return {
        **vars(captions),
        "reasons": {_why(reason): counts for reason, counts in captions.reasons.items()},
        "examples": [
            {
                **seen[example.place],
                "fell_back": example.texts.fell_back,
                "texts": [shown(caption) for caption in example.texts.texts],
            }
            for example in captions.examples
        ],
    }


def shown(caption: Caption) -> dict[str, Any]:
    """Returns a text, its origin in few words, and its nonzero values by short names."""
    label = caption.label if caption.label != caption.source else None
    origin = [
        caption.source or "unknown",
        *filter(None, (label, _model(caption.model), caption.prompt_id)),
    ]
    values = {
        _name(column): "yes" if value is True else value
        for column, value in caption.values.items()
        if value
    }
    confidence = values.pop("language confidence", None)
    if confidence is not None and "language" in values:
        values["language"] = f"{values['language']} {confidence:.2f}"
    reason = caption.reason and _why(caption.reason)
    return {"text": caption.text, "made": ", ".join(origin), "reason": reason, "values": values}


def _model(model: str | None) -> str | None:
    """Returns the model's own name, without a server's address or a file's folders."""
    if model is None:
        return None
    scheme, _, name = model.partition(":")
    name = name.partition("#")[2] if scheme == "openai" else name.rstrip("/").rpartition("/")[2]
    return name or model


def _why(reason: str) -> str:
    """Returns why a select dropped a text, in the words of the values beside it."""
    kind, _, name = reason.partition(":")
    if kind == "mix":
        return "the mix takes another"
    if kind == "cut":
        return f"below the cut of {name}"
    words = in_words(reason)
    return _name(words) if words.startswith("text_") else words


def _name(column: str) -> str:
    return BEGINS.sub("", column).replace("_", " ")
