"""The pictures of docs/pictures that show report and page: made in headless Chromium from finished runs.

    python benchmarks/pictures.py runs/s1 runs/s2 runs/s3

The report is that of the first run with the others laid over it; the page holds the first run's artifact and reads a passage of its own
validation text.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for tests.browser, the client that the tests use

from bytefit.files import read_json  # noqa: E402
from bytefit.page.write import write_page  # noqa: E402
from bytefit.report.page import write_report  # noqa: E402
from bytefit.run.folder import RunFolder  # noqa: E402
from tests.browser import CHROMIUM, Browser, open_browser  # noqa: E402

WIDE, PHONE = 1080, 400
PASSAGE_BYTES = 400
POINTED_AT = 40  # a token of the passage whose alternatives are shown


def picture_report(browser: Browser, runs: list[Path], scratch: Path, out: Path) -> None:
    page = scratch / "report.html"
    write_report(runs[0], page, runs[1:])
    browser.open(page)
    browser.screenshot(out / "report.webp", width=WIDE, height=1250)
    browser.evaluate(f"document.querySelectorAll('#passage .token')[{POINTED_AT}].click()")
    browser.screenshot(out / "report_passage.webp", width=WIDE, height=760, top="#passage")
    browser.screenshot(out / "report_phone.webp", width=PHONE, height=860, dark=True)


def picture_page(browser: Browser, run: RunFolder, scratch: Path, out: Path) -> None:
    page = scratch / "page.html"
    write_page(run.artifact, page)
    browser.open(page)
    passage = "".join(token["text"] for token in read_json(run.details)["passage"]["tokens"])
    text = passage.encode()[:PASSAGE_BYTES].decode(errors="ignore")
    for box, typed in (("prompt", text[:60]), ("own", text)):
        browser.evaluate(f"document.getElementById({box!r}).focus(); document.getElementById({box!r}).select()")
        browser.call("Input.insertText", text=typed)
    browser.wait_for("!document.body.dataset.reading && !document.body.dataset.continuing", seconds=120)
    browser.screenshot(out / "page.webp", width=WIDE, height=1250)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished run folders")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("no Chromium was found; install one (Debian: chromium) and run this again")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder) / "profile") as browser:
        picture_report(browser, options.runs, Path(folder), options.out)
        picture_page(browser, RunFolder(options.runs[0]), Path(folder), options.out)


if __name__ == "__main__":
    main()
