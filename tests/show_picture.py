"""A picture of rows near the thresholds of a select: python -m tests.show_picture RUN STAGE FILE

It shows pictures of the pool: take a pool that is ours, as `clipmill pool generated` draws it.
"""

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from clipmill.pipeline.ledger.selection.show import ShowQuery, show
from clipmill.pipeline.report.show_page import show_page
from clipmill.pipeline.run_folder.state import latest
from tests.browser import Tab, started
from tests.chromium import found
from tests.report_picture import COLOURS, WIDTH

CUTS = 2  # that are seen


def main(tab: Tab, run: str, stage: str, file: str) -> None:
    """The head of the page, and the first thresholds that dropped some rows."""
    state = latest(run)
    answer = show(state, ShowQuery(stage=stage, near_cut=True, most=8))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "show.html"
        html, _ = show_page(state, answer, f"rows of '{stage}' nearest to its thresholds")
        page.write_text(html.replace(str(state.run), "run"), encoding="utf-8")
        tab.show(page, WIDTH, "light")
        tab.value("document.querySelectorAll('section:has(.goes > p)').forEach((e) => e.remove())")
        last = f"[...document.querySelectorAll('section')].slice(0, {CUTS}).at(-1)"
        tab.size(WIDTH, int(tab.value(f"{last}.getBoundingClientRect().bottom")))
        shown = Image.open(BytesIO(tab.picture())).convert("RGB")
    shown.quantize(COLOURS).save(file, optimize=True)


if __name__ == "__main__":
    with started(found()) as chromium:
        main(Tab(chromium), *sys.argv[1:])
