"""Ranks of one training: several processes give what one gives, whatever they lack in bits."""

import json
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.distributed import ALONE, Ranks
from tests.stages.clip.rank_of_training import CASES, stopped, trained

BOUND = 1e-9  # relative, of float64 after 20 steps: sums in another order, carried on


@pytest.mark.drawn(cpu_s=40)
@pytest.mark.parametrize("of", [2, 4])
def test_processes_give_what_one_gives(of, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    module = [sys.executable, "-m", "tests.stages.clip.rank_of_training"]
    started = [
        subprocess.Popen([*module, str(rank), str(of), address, str(tmp_path)])
        for rank in range(of)
    ]
    torch.set_num_threads(1)
    whole = {case: trained(*case) for case in CASES}
    assert [process.wait(timeout=300) for process in started] == [0] * of
    for case, one in whole.items():
        ours = load_file(tmp_path / "-".join(case))
        assert ours.keys() == one.keys()
        for name, value in one.items():  # losses, the first step's gradients, weights
            torch.testing.assert_close(ours[name], value, rtol=BOUND, atol=BOUND, msg=name)
    for rank in range(of):  # a row of one rank's stops all, with the same words
        ended = json.loads((tmp_path / f"stop-{rank}.json").read_text())
        assert ended["step"] == 2
        assert ended["error"][:2] == STOPPED
        assert ended["replaced"] == {"no_image": sum(range(of)) * 2, "undecodable": of * 2}


STOPPED = ["the loss of 1 of 12 rows is NaN or infinite", "stage 'it', step 2, shard 00007.parquet"]


def test_a_row_that_is_nan_stops_one_process_with_the_words_of_several():
    ended = stopped(ALONE)
    assert list(ended["error"][:2]) == STOPPED
    assert (ended["step"], ended["replaced"]) == (2, {"no_image": 0, "undecodable": 2})


def test_alone_nothing_is_copied():
    rows_ND = torch.ones(3, 2)
    gathered_ND, first = ALONE.gathered(rows_ND)
    assert gathered_ND is rows_ND
    assert first == 0
    assert ALONE.sum(rows_ND) is rows_ND


def test_a_norm_that_would_see_one_process_alone_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(StageError, match="BatchNorm1d"):
        Ranks(0, 2).one_batch_norm(model)
