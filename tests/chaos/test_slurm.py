"""deploy/slurm.sh with Ray's own head and nodes: it runs, is stopped by its time, and goes on.

Slurm's commands are scripts that do on this machine what they do in an allocation of two nodes.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from tests.engine_stages.harness import STAGES, meaning, write_pool

pytestmark = [pytest.mark.soak(cpu_s=60), pytest.mark.timeout(300)]

RECIPE = """
stages:
  numbers: {uses: toy.numbers, path: POOL, shard_rows: 12}
  held:    {uses: toy.held, from: numbers, gate: GATE, at: 30}
  uids:    {uses: export.uid_list, from: held}
"""
SLURM = {
    "srun": """
while [[ $1 == --* ]]; do shift; done
echo "$*" >> SAID
exec "$@"
""",
    "scontrol": """
case $1 in
  show) printf 'n1\\nn2\\n' ;;
  requeue) echo "requeue $2" >> SAID ;;
esac
""",
    "hostname": "echo 127.0.0.1 ::1",
}


def test_a_job_that_is_stopped_by_its_time_is_requeued_and_goes_on(tmp_path):
    pool, gate = write_pool(tmp_path / "pool", [30, 25]), tmp_path / "gate"
    recipe, said = tmp_path / "it.yaml", tmp_path / "said.txt"
    recipe.write_text(RECIPE.replace("POOL", str(pool)).replace("GATE", str(gate)))
    for name, text in SLURM.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text("#!/usr/bin/env bash\n" + text.replace("SAID", str(said)))
        command.chmod(0o755)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray", ignore_cleanup_errors=True) as short:
        env = {
            **os.environ,
            "PATH": f"{tmp_path}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.getcwd(),
            "CLIPMILL_STAGES": str(STAGES / "stages"),
            "RAY_TMPDIR": short,  # a socket's path is short
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "n[1-2]",
        }
        local, run = tmp_path / "local", tmp_path / "run"
        alone = [sys.executable, "-m", "clipmill.pipeline.cli", "run", recipe, "--out", local]
        subprocess.run(alone, env=env, check=True)

        gate.write_text("closed")
        job = begin(recipe, run, env, tmp_path / "first.txt")
        try:
            while not list(run.glob("stages/held-*/*.json")):
                assert job.poll() is None, (tmp_path / "first.txt").read_text()
                time.sleep(0.1)
            job.send_signal(signal.SIGTERM)  # as Slurm sends it to the script alone
            assert job.wait(60) != 0
        finally:
            gone(job)
        output = (tmp_path / "first.txt").read_text()
        assert "run the same command again to go on" in output
        lines = said.read_text().splitlines()
        assert lines[-1] == f"requeue {os.getpid()}"
        assert len([line for line in lines if line.startswith("ray start --block --address")]) == 1

        gate.unlink()
        job = begin(recipe, run, env, tmp_path / "second.txt")
        try:
            assert job.wait(120) == 0, (tmp_path / "second.txt").read_text()
        finally:
            gone(job)
        assert "numbers: found done" in (tmp_path / "second.txt").read_text()
        assert said.read_text().count("requeue") == 1
        assert meaning(Storage(str(run))) == meaning(Storage(str(local)))


def begin(recipe: Path, run: Path, env: dict[str, str], output: Path) -> "subprocess.Popen[bytes]":
    with output.open("wb") as file:
        return subprocess.Popen(
            ["deploy/slurm.sh", recipe, "--out", run],
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def gone(job: "subprocess.Popen[bytes]") -> None:
    """Slurm ends what a job leaves; here its session is killed."""
    try:
        os.killpg(job.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
