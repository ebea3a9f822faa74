"""Take the README's screenshots, of the demo run's report and of its page, with Debian's chromium.

Run by `make screenshots`, after `make demo`.
"""

import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

RUN = Path("runs/demo")
PORT = 7861


def main() -> int:
    """Write docs/report.png and docs/page.png; exit code 2 if the run or chromium is missing."""
    chromium = shutil.which("chromium")
    if chromium is None or not (RUN / "model.safetensors").is_file():
        print("This takes chromium, and a finished run in runs/demo: make demo.", file=sys.stderr)
        return 2
    mope = str(Path(sys.executable).with_name("mope"))
    subprocess.run([mope, "explain", str(RUN)], check=True)
    server = subprocess.Popen([mope, "serve", str(RUN), "--port", str(PORT)])
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1150, "height": 1000})
            page.goto((RUN / "explain" / "report.html").absolute().as_uri())
            page.get_by_text("The experts that are easiest to describe").evaluate("e => e.scrollIntoView()")
            page.screenshot(path="docs/report.png")
            _wait_for(f"http://127.0.0.1:{PORT}/healthz")
            page.set_viewport_size({"width": 1150, "height": 1420})  # with the routing
            _use(page)
            page.screenshot(path="docs/page.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()
    return 0


def _wait_for(address: str, seconds: int = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)


def _use(page: Page) -> None:
    """Open the page, give it a picture and a question, and wait for the answer."""
    table = Path("data/scenes/easy/test.csv").read_text().splitlines()
    picture, question = table[1].split(",")[:2]
    page.goto(f"http://127.0.0.1:{PORT}/")
    page.locator("input[type=file]").first.set_input_files(Path("data/scenes/easy") / picture)
    page.locator("textarea").first.fill(question)
    page.get_by_role("button", name="Predict").click()
    page.wait_for_timeout(4000)


if __name__ == "__main__":
    sys.exit(main())
