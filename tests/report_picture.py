"""A picture of a run's report, as a browser shows its top: python -m tests.report_picture RUN FILE

What it is worth and where the rows went: no picture of the pool, whoever those belong to.
"""

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipeline.report.build import report
from pipeline.run_folder.state import latest
from tests.browser import browser

WIDTH, MOST_HEIGHT = 1400, 1400
COLOURS = 128  # of the file: it has few, and is a third of the size
BEYOND = "#scores, #thresholds, #samples"  # parts of which none is shown


def main(run: str, file: str) -> None:
    """Down to the first part that is beyond it."""
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "profile") as tab:
        page = Path(folder) / "report.html"
        page.write_text(report(latest(run)), encoding="utf-8")
        tab.show(page, WIDTH, "light")
        first = f"document.querySelector('{BEYOND}')"
        height = tab.value(f"{first} ? {first}.getBoundingClientRect().top : {MOST_HEIGHT}")
        tab.size(WIDTH, min(int(height), MOST_HEIGHT))
        shown = Image.open(BytesIO(tab.picture())).convert("RGB")
    shown.quantize(COLOURS).save(file, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
