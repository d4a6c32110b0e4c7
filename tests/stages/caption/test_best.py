"""Of several candidates the best: ties, refusals, and texts that the judge has no vector of."""

import numpy as np

from clipmill.stages.caption._outcomes import Outcome
from clipmill.stages.caption.synthesize import best


class Judge:
    width, sha256 = 2, None

    def embed_texts(self, texts):
        known = {"good": [1, 0], "poor": [-1, 0], "odd": [np.nan, 0]}
        return np.array([known[text] for text in texts], np.float32)


def test_a_text_without_a_vector_is_taken_before_none_and_after_all_others():
    said = {text: Outcome(text=text, prompt_id=None, label="") for text in ("good", "poor", "odd")}
    none = Outcome(reason="empty_answer", prompt_id=None, label="")
    image_ND = np.array([[1, 0]], np.float32)
    for group, expected in (
        (["odd", "poor"], "poor"),
        (["poor", "odd", "good"], "good"),
        ([None, "odd"], "odd"),
    ):
        (found,) = best([[said.get(it, none) for it in group]], image_ND, len(group), Judge())
        assert [one.text for one in found] == [expected]
