"""A picture of a run's report in a browser: python -m tests.report_picture RUN FILE [PART]

Of its top: what it is worth and where the rows went, no picture of the pool, whoever those belong
to.
Of a part by its id, `clusters`: its begin, the card of one disc open; take a pool that is ours.
"""

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from clipmill.pipeline.report.build import report
from clipmill.pipeline.run_folder.state import latest
from tests.browser import Tab, started
from tests.chromium import found

WIDTH, MOST_HEIGHT = 1400, 1400
COLOURS = 128  # of the file: it has few, and is a third of the size
BEYOND = "#barely, #scores, #thresholds, #samples"  # parts of which none is shown


def main(tab: Tab, run: str, file: str, part: str = "") -> None:
    """Down to the first part that is beyond it, or to what follows a map."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(report(latest(run)), encoding="utf-8")
        tab.show(page, WIDTH, "light")
        first = f"document.querySelector('{BEYOND}')"
        height = tab.value(f"{first} ? {first}.getBoundingClientRect().top : {MOST_HEIGHT}")
        if part:
            end = f"document.querySelector('#{part}-after').getBoundingClientRect().bottom"
            height = tab.value(f"{end} - document.querySelector('#{part}').offsetTop") + 16
        tab.size(WIDTH, min(int(height), MOST_HEIGHT))
        if part:
            tab.value(f"document.querySelector('#{part}').scrollIntoView()")
            tab.value(f"document.querySelector('#{part} .c').focus({{preventScroll: true}})")
        shown = Image.open(BytesIO(tab.picture())).convert("RGB")
    shown.quantize(COLOURS).save(file, optimize=True)


if __name__ == "__main__":
    with started(found()) as chromium:
        main(Tab(chromium), *sys.argv[1:])
