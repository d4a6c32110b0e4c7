"""What words cost the filter network: its learning and its scores beside those of features alone.

    python -m tests.benchmarks.filter_words [full | ROWS ...]    2,000; full: to 32,000

Drawn features of the network's widths, two image features in three 0 as EfficientNet's are, and
captions of five words of 10,000. Both sides are this network: without words it is as versions 1 and
2 were, features as they are, and scores equal those of words that weigh nothing, on the same roots.
`features` is what embed.features takes for some of these images and captions. CPU seconds of one
thread, the least of three.

Aim: scores at 0.8 times the rate without words; learning in 120 s.
Measured (2026-11-27, EPYC, 2 shared cores, AVX2, idle): features 13.5 ms a row; 2,000, 8,000 and
32,000 rows learnt in 5.8, 5.6 and 9.6 s; scored at 0.50, 0.60 and 0.60 times the rate, 54,000
rows a second for 90,000: below the aim, by 7 us a row beside the features' 13,500.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from clipmill.stages.models.features import ImageFeatures
from clipmill.stages.models.filter_network import WORDS, FilterNetwork, fitted, rooted
from clipmill.stages.models.text_features import TextFeatures
from tests.benchmarks.side_by_side import begin

ROUNDS, BATCH, WIDTH = 3, 1024, 256
SAMPLED = 64  # rows whose features are computed


def main(*sizes: int) -> str:
    torch.set_num_threads(1)
    print(f"features {features_s() * 1e3:.1f} ms a row")
    for rows in sizes:
        rate = compare(rows)
    return f"scored at {rate:.2f}x the rate without words"


def compare(rows: int) -> float:
    """The rate of scores with words, by that without."""
    rng = np.random.default_rng(rows)
    image_NI = rng.exponential(size=(rows, ImageFeatures.width)).astype(np.float32)
    image_NI[rng.random(image_NI.shape) < 2 / 3] = 0
    text_NT = rng.standard_normal((rows, TextFeatures.width)).astype(np.float32)
    captions = [" ".join(f"w{it}" for it in row) for row in rng.integers(0, 10_000, (rows, 5))]
    began = time.process_time()
    network = fitted(image_NI, text_NT, captions, WIDTH)
    learnt_s = time.process_time() - began
    plain = FilterNetwork(ImageFeatures.width, TextFeatures.width, WIDTH)
    plain.load_state_dict(network.state_dict(), strict=False)

    images, texts = torch.from_numpy(image_NI), torch.from_numpy(text_NT)
    parts = [slice(start, start + BATCH) for start in range(0, rows, BATCH)]

    def scores(heads: FilterNetwork, image_NI: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat(
                [
                    (
                        heads.embed_images(image_NI[it])
                        * heads.embed_texts(texts[it], captions[it])
                    ).sum(1)
                    for it in parts
                ]
            )

    with_s, without_s = (least(lambda it=it: scores(it, images)) for it in (network, plain))
    torch.nn.init.zeros_(network.words.weight)
    torch.testing.assert_close(scores(network, images), scores(plain, rooted(images)))
    print(
        f"{rows:>7,} rows: learnt in {learnt_s:5.1f} s with {WORDS:,} buckets; scored at"
        f" {rows / with_s:,.0f} rows/s, {rows / without_s:,.0f} without words:"
        f" {without_s / with_s:.2f}x the rate",
        flush=True,
    )
    return without_s / with_s


def features_s() -> float:
    """CPU seconds of the features of an image and its caption."""
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (SAMPLED, 128, 128, 3), dtype=np.uint8))
    captions = [f"a drawing of {n} cats" for n in range(SAMPLED)]
    image_of, text_of = ImageFeatures("bfloat16"), TextFeatures("bfloat16")
    return least(lambda: (image_of(images), text_of(captions))) / SAMPLED


def least(call: Callable[[], object]) -> float:
    spent = []
    for _ in range(ROUNDS):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return min(spent)


if __name__ == "__main__":
    begin(main, quick=(2_000,), full=(2_000, 8_000, 32_000))
