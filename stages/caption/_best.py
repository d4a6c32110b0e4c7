"""Of several answers about an image the one that fits it best."""

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.caption._answers import Said
from clipmill.stages.models.image_text import ImageTextModel

# Shapes: N rows of the batch, C candidates of a prompt, M different texts, D width.


def best(
    rows: list[list[Said] | str],
    image_ND: NDArray[np.float32],
    candidates: int,
    judge: ImageTextModel,
) -> list[list[Said] | str]:
    """Of each prompt's candidates the one whose embedding is nearest to the image's.

    Of equal ones the first; one without a text only where all are.
    """
    texts = {one.text for row in rows if not isinstance(row, str) for one in row if not one.reason}
    place = {text: at for at, text in enumerate(sorted(texts))}
    text_MD = judge.embed_texts(list(place)) if place else np.empty((0, judge.width), np.float32)

    def chosen(group: list[Said], image_D: NDArray[np.float32]) -> Said:
        score_C = [-np.inf if one.reason else text_MD[place[one.text]] @ image_D for one in group]
        return group[int(np.argmax(np.nan_to_num(score_C, nan=-2, neginf=-np.inf)))]  # below all

    return [
        row
        if isinstance(row, str)
        else [
            chosen(row[first : first + candidates], image_D)
            for first in range(0, len(row), candidates)
        ]
        for row, image_D in zip(rows, image_ND, strict=True)
    ]
