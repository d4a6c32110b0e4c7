"""What the filter network's score is worth on named game art, in which it has learnt from nothing.

    python -m tests.benchmarks.game_art [POOL [FOLDER]]    clipmill pool demo's; games: 505 MB

Learns from the demo pool's trusted pairs and English rows, then scores pictures of five games, each
beside the words of its path and beside those of another picture of that game. A name that several
pictures bear stands once; ROWS of a game at most, by hash. Columns: AUC of swapped names; the
share of true names in the better half by score, .5 by chance; that of true names above the cut that
keeps 70 % at home. Features and pictures stay in FOLDER.
"""

import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl
import torch
from PIL import Image

from clipmill.metadata.stats import auc
from clipmill.pipeline.packages import debian_stream
from clipmill.pipeline.pools.chance import fraction, hex_id
from clipmill.pipeline.pools.sources.texts import name_words
from tests.benchmarks.filter_abroad import (
    KEPT_AT_HOME,
    joined,
    learnt,
    rows_of,
    scores,
    trusted_of,
    with_features,
)
from tests.benchmarks.pools import there
from tests.benchmarks.side_by_side import begin

GAMES = {  # folders of things; the others hold frames of windows, effects and whole sheets
    "wesnoth-1.18-data": ("/core/images/units/", "/core/images/items/", "/core/images/scenery/"),
    "freeciv-data": ("/freeciv/flags/", "/freeciv/buildings/", "/freeciv/wonders/"),
    "supertux-data": ("/images/creatures/", "/images/objects/", "/images/powerups/"),
    "freeorion-data": ("/art/icons/", "/art/planets/"),
    "lincity-ng-data": ("/images/tiles/", "/images/gui/buttonpanel/"),
}
ROWS, LEAST_SIDE_PX = 300, 16


def main(pool: str = "demo/pool", cache: str = "") -> str:
    torch.set_num_threads(1)
    folder = Path(cache or Path(pool).parent / "game_art")
    folder.mkdir(parents=True, exist_ok=True)
    trusted = with_features(trusted_of(there(pool), folder), folder / "trusted.npz")
    rows = with_features(rows_of(Path(pool)), folder / "rows.npz")
    score = learnt(joined(trusted, rows))
    good = (rows.rows["fault"] == "").to_numpy()
    cut = np.quantile(scores(score, rows)[good], 1 - KEPT_AT_HOME)
    print("| game | names | swapped | better half | kept |\n|---|---:|---:|---:|---:|")
    found = []
    for game in GAMES:
        here = with_features(pl.DataFrame(named_and_swapped(game, folder)), folder / f"{game}.npz")
        score_N, true_N = scores(score, here), (here.rows["fault"] == "").to_numpy()
        area = auc(score_N[true_N], score_N[~true_N])
        half = true_N[score_N > np.median(score_N)].mean()
        kept = (score_N[true_N] > cut).mean()
        interval = f"{area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
        cells = f"{interval} | {half:.3f} | {kept:.3f}"
        print(f"| {game} | {true_N.sum():,} | {cells} |", flush=True)
        found.append(area.value)
    return f"AUC of swapped names {np.mean(found):.2f}, mean of {len(found)} games"


def named_and_swapped(game: str, folder: Path) -> list[dict[str, str]]:
    """Two rows a picture, in the order of its hash: with its name, and with the next one's."""
    pictures = sorted(named(game, folder), key=lambda found: fraction(game, found[0]))[:ROWS]
    names = [name for name, _ in pictures]
    rows = []
    for (name, file), other in zip(pictures, [*names[1:], names[0]], strict=True):
        row = {"family": game, "file": str(file)}
        rows += [
            row | {"uid": hex_id(game, name, fault), "text": text, "fault": fault}
            for text, fault in ((name, ""), (other, "own group"))
        ]
    return rows


def named(game: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each picture that is the first of its name."""
    seen = set()
    wanted = GAMES[game]
    for path, image in debian_stream(
        game, lambda path: path.endswith(".png") and any(part in path for part in wanted)
    ):
        words = [name_words(PurePosixPath(path).parent.name), name_words(PurePosixPath(path).stem)]
        name = " ".join(dict.fromkeys(" ".join(words).split()))
        if isinstance(image, str) or not words[1] or name in seen:
            continue
        with Image.open(io.BytesIO(image)) as opened:
            if min(opened.size) < LEAST_SIDE_PX:
                continue
        seen.add(name)
        file = folder / game / f"{hex_id(name)}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(image)
        yield name, file


if __name__ == "__main__":
    begin(main)
