"""The lowest versions that pyproject.toml allows pass unit tests: a twelfth, drawn by the seed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.soak(cpu_s=500)
@pytest.mark.timeout(3600)  # it loads some gigabytes
def test_a_share_of_the_unit_tests_passes_with_the_lowest_versions(seed):
    number = 1 + int.from_bytes(seed.encode()) % 12
    outer = {name for name in os.environ if name.startswith(("PYTEST_", "CLIPMILL_"))}
    try:
        done = subprocess.run(
            ["make", "lowest", f"SEED={seed}", f"SHARE={number}/12"],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name not in outer},
            capture_output=True,
            text=True,
        )
    finally:
        shutil.rmtree(ROOT / ".venv" / "lowest", ignore_errors=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "unit: " in done.stdout
