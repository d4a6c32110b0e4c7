"""Pictures with captions, in memory and behind a server on loopback."""

import io
import json
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from clipmill.pipeline.pools.server import start_server

WORDS = ("red", "blue", "shoe", "chair", "table", "lamp", "wooden", "small", "bright", "garden")
GOOD = 24


@dataclass(frozen=True)
class Pair:
    """A picture with its caption, and where it is served."""

    name: str
    image: bytes
    caption: str
    url: str = ""


def picture(seed: int) -> bytes:
    """A JPEG of 120 x 90 pixels that is like no other."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(cells).resize((120, 90), Image.Resampling.BICUBIC).save(out, "jpeg")
    return out.getvalue()


def caption(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, 3)) + f' of "kind" {seed}, new'


@pytest.fixture(scope="session")
def drawn() -> list[Pair]:
    """24 pairs to be kept, a copy of the first picture, and one whose caption is a file's name."""
    good = [Pair(f"{i:04d}.jpg", picture(i), caption(i)) for i in range(GOOD)]
    copy = Pair("0024.jpg", good[0].image, "a copy of the first, elsewhere")
    named = Pair("0025.jpg", picture(25), "IMG_0025.jpg")
    return [*good, copy, named]


@pytest.fixture(scope="session")
def pairs(drawn, tmp_path_factory):
    """The same, served."""
    folder = tmp_path_factory.mktemp("served")
    www = folder / "www"
    www.mkdir()
    (www / "_behaviour.json").write_text(json.dumps({}))
    for pair in drawn:
        (www / pair.name).write_bytes(pair.image)
    with start_server(folder) as url:
        yield [Pair(p.name, p.image, p.caption, f"{url}/{p.name}") for p in drawn]


@pytest.fixture(scope="session")
def kept(drawn) -> list[str]:
    """The captions that stay, in order; of the two equal pictures either may."""
    return sorted(pair.caption for pair in drawn[1:GOOD])
