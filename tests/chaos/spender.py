"""Workers that ask within a budget and are killed: each a fork of this process, which has started
nothing. After each life the server's own count is compared with the books and the cap.

Three ask for the answers that are missing, one in three lives loses one of them, the others lose
all; a budget that is spent grows by a little, and at last by all that is wanted. Prints what was
seen, as JSON.

    python -m tests.chaos.spender FOLDER MODEL QUESTIONS KILLS
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import budget
from clipmill.pipeline.engine.answers import StoredAnswers, pack
from clipmill.pipeline.engine.budget import SharedBudget, close_accounts, spent_in
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.models import client
from clipmill.stages.models.generator import Decoding, Limits, Prompt, open_asker
from tests.chaos.asked import Server, stored_in

assert client  # it is there before the forks
WORKERS, SHARD = 3, 30
STEP = 1_200  # tokens that the budget grows by: an answer takes about 18, and sets aside 76
SPENT = 3  # the exit code of a worker that says so
budget.STORE_S, budget.SILENT_S = 0.1, 1.0


def work(folder: Storage, model: str, questions: int, cap: int, number: int) -> int:
    """One worker's life, if nothing ends it."""
    answers = StoredAnswers(folder.child("answers"))
    account = SharedBudget(folder.child("budget"), uuid.uuid4().hex, {"tokens": cap}, answers.store)
    asker = open_asker(
        model,
        Worker(
            seed=0,
            stage="x",
            device="cpu",
            threads=1,
            scratch=Path(),
            answers=answers,
            budget=lambda limits: account,
        ),
        decoding=Decoding(max_tokens=20),
        limits=Limits(concurrency=4, max_tokens_total=cap),
        form="chat",
    )

    async def asked(shard: int) -> None:
        prompts = [Prompt(text=f"a small black cat number {it} on a mat") for it in its(shard)]
        tasks = [asyncio.create_task(asker.ask(prompt, seed=0)) for prompt in prompts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def all_asked() -> int:
        for shard in range(number, questions // SHARD, WORKERS):
            answers.begin(shard)
            try:
                await asked(shard)
            except StageError as error:
                return SPENT if "the budget is spent" in str(error) else 1
            finally:
                answers.flush()
                account.flush()
        return 0

    return asyncio.run(all_asked())


def its(shard: int) -> range:
    return range(shard * SHARD, (shard + 1) * SHARD)


def look(folder: Storage, model: str, cap: int, seen: Path) -> int:
    """Compares and notes what the server gave with the books; then does a driver's work."""
    server = Server(model)
    while server.busy():
        time.sleep(0.005)
    then = json.loads(seen.read_text())
    asked, stored, given = server.asked(), stored_in(folder.uri), server.tokens()
    books = spent_in(folder.child("budget")).get("tokens", 0)
    keys, known = server.keys(), {bytes.fromhex(key) for key in then["stored"]}
    again = [one for one in asked - Counter(then["asked"]) if keys[one] & known]
    then["above_cap"] += given > cap
    then["above_books"] += given > books
    then["again"] += len(again)
    then |= {"asked": asked, "stored": [key.hex() for key in stored], "given": given}
    then |= {"books": books, "cap": cap}
    seen.write_text(json.dumps(then))
    close_accounts(folder.child("budget"))
    pack(folder.child("answers"))
    return 0


def born(life: Callable[..., int], *given: Any) -> int:
    """A fork that leads this life; its process id."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = life(*given)
        finally:
            os._exit(code)
    return child


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(uri: str, model: str, questions: int, kills: int) -> None:
    folder, chance, seen = Storage(uri), random.Random(0), Path(f"{uri}.json")
    seen.write_text(json.dumps({"asked": {}, "stored": [], **dict.fromkeys(COUNTED, 0)}))
    cap, killed, codes = STEP, 0, [1]
    while any(codes):
        children = [born(work, folder, model, questions, cap, number) for number in range(WORKERS)]
        if killed < kills:
            time.sleep(chance.uniform(0.1, 0.6))
            for child in children[: 1 if chance.random() < 0.3 else WORKERS]:
                os.kill(child, signal.SIGKILL)
        codes = [code_of(child) for child in children]
        killed += codes.count(-signal.SIGKILL) > 0
        assert set(codes) <= {0, SPENT, -signal.SIGKILL}, codes
        assert code_of(born(look, folder, model, cap, seen)) == 0
        cap += 10**6 if killed == kills else STEP * (SPENT in codes)
    found = json.loads(seen.read_text())
    found |= {"kills": killed, "requests": sum(found["asked"].values())}
    print(json.dumps({name: found[name] for name in ("kills", "requests", *COUNTED)}))


COUNTED = ("above_cap", "above_books", "again", "given", "books", "cap")

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
