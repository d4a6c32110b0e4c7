"""What an evaluation stores, for the stage that writes it and for whoever reads it."""

import numpy as np

FEW_CLASSES = 12  # of which 5 are no feat: there top 1 counts
NEVER = np.iinfo(np.int64).max  # rank of what no answer is right for: a hit at no k


def prefix_of(card: str) -> str:
    """What stands before the names of a model's files: `seed-3.` for `out/seed-3.model.json`."""
    return card.removeprefix("out/").removesuffix("model.json")
