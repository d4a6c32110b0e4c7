"""A captioned run killed at random moments: what its server was asked for again.

    python -m tests.benchmarks.asked_kills [full | KILLS]        5; full: 50

Driver and both workers die by SIGKILL and the run is begun again, until it is done; then another
folder's, until there were so many kills. A request may come twice where its answer was not stored
when the kill came: within a second of it. None may come whose answer was stored.
"""

import random
import tempfile
import time
from pathlib import Path

from tests.benchmarks import side_by_side
from tests.chaos.asked import Killer, begin, served, shards_of, write_recipe


def main(kills: int) -> str:
    with tempfile.TemporaryDirectory() as name, served() as server:
        folder = Path(name)
        recipe = write_recipe(folder, server.model)
        assert begin(recipe, str(folder / "whole"), folder).wait() == 0
        expected = shards_of(str(folder / "whole"))
        chance = random.Random(1)
        start = time.perf_counter()
        lives = Killer(recipe, server, lambda n: str(folder / f"run{n}"), folder, chance)
        tally = lives.until(kills, expected)
        print(f"{tally} of {lives.number} runs, in {time.perf_counter() - start:.0f} s")
        assert not tally.of_stored
        assert not tally.changed
        assert not tally.wrong, "\n".join(tally.wrong)
    return f"{tally.twice} of {tally.requests} asked twice, none of those stored"


if __name__ == "__main__":
    side_by_side.begin(main, quick=(5,), full=(50,))
