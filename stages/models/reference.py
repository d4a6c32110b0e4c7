"""The `reference` model: embeddings without weights, equal on every machine, for tests and trials.

Equal images have equal embeddings, resized or recompressed ones are near; so are texts that share
words. Image and text spaces are unrelated: a cosine between them means nothing.

As a generator it rotates the words of the prompt's last line, or names size and colour of the
image; where a prompt beside an image asks for a SCORE, it draws one by a hash.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.uid import mixed
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Environment, Worker
from clipmill.stages.models.endpoint import Endpoint, Limits
from clipmill.stages.ops.vectors.matrices import unit_rows

# Shapes: N images or texts, D = WIDTH, F features of an image, H x W pixels, G = GRID.

WIDTH = 64
GRID = 16  # cells a side of the luma layout
COLOURS = 4  # cells a side of the colour layout, and levels a channel of the histogram
GRAM = 4  # characters


def width(name: str) -> int:
    if name:
        raise RecipeError(
            "the reference has no variants", f"model 'reference:{name}'", "write `reference`"
        )
    return WIDTH


def load(name: str, device: str, threads: int) -> "Reference":
    width(name)
    return Reference()


def environments(name: str) -> tuple[Environment, ...]:
    width(name)
    return ()


def endpoint(name: str, worker: Worker, limits: Limits) -> Endpoint:
    """Returns the generator, which runs in this process."""
    width(name)
    return Endpoint(url="", model="reference", identity="reference", inside=reply)


class Reference:
    """Random projections of hand-made features, with signs drawn by hash."""

    width = WIDTH
    sha256 = None

    def embed_images(self, image_HW3: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Returns (N, D) projections of an image's layout of light and colour."""
        F = GRID**2 + 3 * COLOURS**2 + COLOURS**3
        feature_NF = np.zeros((len(image_HW3), F))
        for i, image in enumerate(image_HW3):  # sizes differ
            feature_NF[i] = image_features(image)
        bits_FD = _spread(np.arange(F * WIDTH)).reshape(F, WIDTH)
        sign_FD = np.where(bits_FD >> np.uint64(63), 1.0, -1.0)
        return unit_rows(feature_NF @ sign_FD)  # of whole numbers: exact for any batch

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns (N, D) signed counts of hashed words and character 4-grams; ignores case."""
        embedding_ND = np.zeros((len(texts), WIDTH))
        embedding_ND[:, 0] = 1  # so that an empty text has a direction, too
        for i, text in enumerate(texts):  # lengths differ
            words = text.lower().split()
            spaced = f" {' '.join(words)} "
            grams = [spaced[j : j + GRAM] for j in range(max(1, len(spaced) - GRAM + 1))]
            hash_T = np.array([zlib.crc32(t.encode("utf-8", "replace")) for t in words + grams])
            bits_T = _spread(hash_T)
            column_T = 1 + (bits_T % np.uint64(WIDTH - 1)).astype(np.int64)
            sign_T = np.where(bits_T >> np.uint64(63), 1, -1)
            sign_T[: len(words)] *= 2  # whole words weigh more than 4-grams
            embedding_ND[i] += np.bincount(column_T, sign_T, WIDTH)
        return unit_rows(embedding_ND)


def image_features(image_HW3: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns (F,) luma layout, colour layout and colour histogram, equally weighted; integers."""
    cell_GG3 = area_means(image_HW3, GRID)
    luma_GG = cell_GG3 @ np.array([2, 5, 1])
    quarter = GRID // COLOURS
    colour_CC3 = cell_GG3.reshape(COLOURS, quarter, COLOURS, quarter, 3).sum(axis=(1, 3))
    level_GG3 = cell_GG3 * COLOURS // (256 * 16)
    bin_GG = level_GG3 @ np.array([COLOURS**2, COLOURS, 1])
    count = np.bincount(bin_GG.reshape(-1), minlength=COLOURS**3)
    return np.concatenate(
        [_centred_unit(luma_GG), _centred_unit(colour_CC3), np.rint(4096 / GRID * np.sqrt(count))]
    )


def area_means(image_HW3: NDArray[np.uint8], grid: int) -> NDArray[np.int64]:
    """Returns (grid, grid, 3) the mean colour of each cell, in sixteenths of a level."""
    for axis in (0, 1):
        size = image_HW3.shape[axis]
        if size < grid:  # fewer pixels than cells: repeat them
            image_HW3 = np.take(image_HW3, np.arange(grid) * size // grid, axis)
    H, W, _ = image_HW3.shape
    top_G, left_G = np.arange(grid) * H // grid, np.arange(grid) * W // grid
    rows_GW3 = np.add.reduceat(image_HW3, top_G, axis=0, dtype=np.int64)
    sum_GG3 = np.add.reduceat(rows_GW3, left_G, axis=1)
    area_GG = np.outer(np.diff(top_G, append=H), np.diff(left_G, append=W))
    return sum_GG3 * 16 // area_GG[..., None]


def _centred_unit(block: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns (F,) the block minus its mean, at length 4096, rounded to integers."""
    centred_F = (block * block.size - block.sum()).reshape(-1)
    return np.rint(centred_F * (4096 / max(np.sqrt(centred_F @ centred_F), 1)))


def _spread(number_N: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Returns 64 random bits of each small number: step n of splitmix64."""
    return mixed((number_N.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


HUES = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (200, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 200),
    "yellow": (230, 210, 50),
    "orange": (240, 140, 40),
    "purple": (140, 60, 160),
    "brown": (120, 80, 50),
    "pink": (240, 160, 190),
}
SCORE = "whole number from 0 to 100"
VIEWS = ("A picture", "An image", "A photo", "A drawing", "A view", "A small scene")


def reply(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Answers a request of `chat/completions` or `completions` in the format of OpenAI's API.

    A token is a word. Raises the decoder's error for an undecodable image.
    """
    is_chat = path.endswith("chat/completions")
    question = body["messages"] if is_chat else body["prompt"]
    prompt, image = _parts(question) if is_chat else (question, None)
    key = json.dumps([question, body.get("seed")])
    bits = int.from_bytes(hashlib.sha256(key.encode()).digest())
    said = rotated(prompt, bits) if image is None else caption_of(image, bits)
    words = [str(bits % 101)] if image is not None and SCORE in prompt else said.split()
    most = int(body.get("max_tokens") or len(words))
    text = " ".join(words[:most])
    answer = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    finish = "length" if len(words) > most else "stop"
    used = {"prompt_tokens": len(prompt.split()), "completion_tokens": min(most, len(words))}
    return {
        "object": "chat.completion" if is_chat else "text_completion",
        "model": body.get("model"),
        "choices": [{"index": 0, **answer, "finish_reason": finish}],
        "usage": {**used, "total_tokens": sum(used.values())},
    }


def rotated(prompt: str, bits: int) -> str:
    """Returns the words of the last line that has any, rotated; a single word stays.

    A `=>` at the line's end, where a completion begins, is no word.
    """
    lines = [line.strip().removesuffix("=>").split() for line in prompt.splitlines()]
    words = next((line for line in reversed(lines) if line), ["nothing"])
    if len(words) == 1:
        return words[0]
    start = 1 + bits % (len(words) - 1)
    other = [*words[start:], *words[:start]]
    return " ".join(other if other != words else [*words, "again"])


def caption_of(image: bytes, bits: int) -> str:
    """Returns a caption of an encoded image: its size and nearest plain colour."""
    from clipmill.stages.ops.images.decode import decode

    image_HW3 = decode(image)
    mean = image_HW3.mean(axis=(0, 1))
    colour = min(HUES, key=lambda name: sum((mean - HUES[name]) ** 2))
    height, width = image_HW3.shape[:2]
    size = f"{width} by {height} pixels"
    view = VIEWS[bits % len(VIEWS)]
    texts = (f"{view} of {size} in {colour}", f"{view}, mostly {colour}, {size}")
    return texts[bits // len(VIEWS) % len(texts)]


def _parts(messages: list[Mapping[str, Any]]) -> tuple[str, bytes | None]:
    """Returns text and image of the last message."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content, None
    text = "\n".join(part["text"] for part in content if part["type"] == "text")
    uris = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return text, base64.b64decode(uris[-1].partition(",")[2]) if uris else None
