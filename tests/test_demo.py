"""`make demo` from packages to what a subset is worth, and again: all found done. npm is needed."""

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest

from pipeline.run_folder.state import latest
from tests import same_counts

ROOT = Path(__file__).parents[1]


@pytest.mark.soak(cpu_s=650)
@pytest.mark.timeout(2400)  # twenty CPU-minutes without AVX-512, beside other tests
def test_demo_from_packages_to_results_and_again_finds_all_done(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    demo = tmp_path / "demo"
    command = ["make", "demo", f"DEMO={demo}", f"PORT={port}"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    funnel = run("funnel", "--run", demo / "run")
    (end,) = funnel["ends"]
    assert end["kept"] + sum(cause["rows"] for cause in end["causes"]) == end["rows"]
    assert same_counts.shown(latest(str(demo / "run"))) > 50
    assert same_counts.explored(demo / "run") == 1 + len(end["causes"])
    assert same_counts.in_python(demo / "run") == 1
    stored = {
        path: path.stat().st_mtime_ns for path in (demo / "run" / "stages").rglob("*.parquet")
    }
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert stored == {path: path.stat().st_mtime_ns for path in stored}

    # docs/results.md quotes this pool and this run; a busy machine times a few links out.
    quoted = (ROOT / "docs" / "results.md").read_text()
    rows, kept = (
        int(n.replace(",", ""))
        for n in re.findall(r"([\d,]+) +[\d.]+%  (?:rows in|kept by)", quoted)
    )
    assert rows == end["rows"]
    assert abs(kept - end["kept"]) <= 0.005 * rows

    found = run("pool", "score", demo / "pool", "--run", demo / "run")
    planted = {row["kind"]: row for row in found["selects"][-1]["planted"]}
    for kind in ("404", "410", "403", "changed", "corrupt", "truncated", "html", "redirect_loop"):
        assert planted[f"link_issue: {kind}"]["kept"] == 0
    for kind in ("bomb", "tiny", "aspect", "oversized"):
        assert planted[f"image_issue: {kind}"]["kept"] == 0
    exact = planted["duplicate: exact"]
    assert exact["kept"] <= 0.05 * exact["rows"]
    good = planted["good, English"]
    by_score = good["caught"]["best: top:clip_score"]  # takes 30 % of what the rules leave
    assert good["kept"] + by_score >= 0.7 * good["rows"]
    assert good["kept"] >= 0.55 * good["rows"]

    # The score finds swapped captions, and what it keeps is worth more: beyond the noise of seeds.
    areas = {row["kind"]: row["auc"]["value"] for row in found["detection"]}
    assert areas["text_issue: swapped"] >= 0.72
    assert areas["swapped, with another group's"] >= 0.83
    said = next(line for line in first.stdout.splitlines() if line.startswith("curated  "))
    apart, half = map(float, re.findall(r"([+-][\d.]+) ± ([\d.]+), beats raw", said)[0])
    assert apart > half
    page = (demo / "report.html").read_text()
    for shown in (
        "Results",
        "Against the planted truth",
        f"{areas['text_issue: swapped']:.3f}",
        "Training",
    ):
        assert shown in page

    fewer = [
        *(f"pool.path={demo}/pool/metadata", f"trusted.path={demo}/pool/trusted/metadata"),
        "best.top={column: clip_score, fraction: 0.5}",
    ]
    settings = [part for setting in fewer for part in ("--set", setting)]
    again = ["run", "quickstart", "--until", "best", *settings, "--out", demo / "run"]
    subprocess.run([str(ROOT / ".venv/bin/clipmill"), *map(str, again)], check=True)
    assert same_counts.compared(demo / "run", "1", "2") == 2 * len(end["causes"])


def run(*arguments: object) -> dict:
    command = [str(ROOT / ".venv/bin/clipmill"), *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
