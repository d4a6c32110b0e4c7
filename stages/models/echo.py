"""Texts without weights: what `reference` and the tests' servers answer, the same everywhere.

A text's answer has the words of its last line in another order; an image's names its size and its
mean colour. Both hang on prompt and seed, so that two candidates differ where they can.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

COLOURS = {
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
VIEWS = ("A picture", "An image", "A photo", "A drawing", "A view", "A small scene")


def reply(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The reply of `chat/completions` or `completions` to a request, as OpenAI's API words it.

    A token is a word. Raises what the decoder raises for an image that is none.
    """
    is_chat = path.endswith("chat/completions")
    asked = body["messages"] if is_chat else body["prompt"]
    prompt, image = _parts(asked) if is_chat else (asked, None)
    bits = int.from_bytes(hashlib.sha256(json.dumps([asked, body.get("seed")]).encode()).digest())
    words = (seen(image, bits) if image is not None else turned(prompt, bits)).split()
    most = int(body.get("max_tokens") or len(words))
    text = " ".join(words[:most])
    said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    finish = "length" if len(words) > most else "stop"
    used = {"prompt_tokens": len(prompt.split()), "completion_tokens": min(most, len(words))}
    return {
        "object": "chat.completion" if is_chat else "text_completion",
        "model": body.get("model"),
        "choices": [{"index": 0, **said, "finish_reason": finish}],
        "usage": {**used, "total_tokens": sum(used.values())},
    }


def turned(prompt: str, bits: int) -> str:
    """The words of the last line that has any, turned round; one word stays as it is.

    A `=>` at the line's end, where a completion begins, is no word.
    """
    lines = [line.strip().removesuffix("=>").split() for line in prompt.splitlines()]
    words = next((line for line in reversed(lines) if line), ["nothing"])
    if len(words) == 1:
        return words[0]
    at = 1 + bits % (len(words) - 1)
    other = [*words[at:], *words[:at]]
    return " ".join(other if other != words else [*words, "again"])


def seen(image: bytes, bits: int) -> str:
    """Size and nearest plain colour of an encoded image."""
    from clipmill.stages.ops.images.decode import decode

    image_HW3 = decode(image)
    mean = image_HW3.mean(axis=(0, 1))
    colour = min(COLOURS, key=lambda name: sum((mean - COLOURS[name]) ** 2))
    height, width = image_HW3.shape[:2]
    size = f"{width} by {height} pixels"
    view = VIEWS[bits % len(VIEWS)]
    texts = (f"{view} of {size} in {colour}", f"{view}, mostly {colour}, {size}")
    return texts[bits // len(VIEWS) % len(texts)]


def _parts(messages: list[Mapping[str, Any]]) -> tuple[str, bytes | None]:
    """Text and image of the last message."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content, None
    text = "\n".join(part["text"] for part in content if part["type"] == "text")
    uris = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return text, base64.b64decode(uris[-1].partition(",")[2]) if uris else None
