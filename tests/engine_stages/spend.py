"""Spends of a budget until it is refused, and prints how much: FOLDER LIMIT SEED."""

import random
import sys

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.budget import SharedBudget

folder, limit, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
account = SharedBudget(Storage(folder), f"worker-{seed}", {"tokens": limit})
chance = random.Random(seed)
spent = 0
while account.reserve({"tokens": 7}):
    cost = chance.randint(1, 7)
    account.settle({"tokens": 7}, {"tokens": cost})
    spent += cost
account.flush()
print(spent)
