"""The page of several runs in a browser: what is there, what one predicts, and what comes and goes."""

import shutil
import time

from serve_tester import running
from test_page import browser, needs_browser, page  # noqa: F401

from mope.run import CONFIG
from mope.serve.app import build_runs_app
from mope.serve.settings import ServeSettings

pytest_plugins = ["runs_fixtures", "serve_fixtures"]


@needs_browser
def test_runs_are_chosen_asked_and_followed(page, runs, folder, said):  # noqa: F811
    limits = ServeSettings(page=True, grace_seconds=1)

    def options():
        return page.locator("#run option").evaluate_all("found => found.map(one => one.value)")

    def come_back():
        with page.expect_response("**/v1/runs"):
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    with running(build_runs_app(runs, limits), limits) as (_, address):
        page.goto(address)
        page.wait_for_selector("#run option", state="attached")
        assert options() == sorted(options()) != []
        page.select_option("#run", "words")
        page.fill("textarea[name=text]", "left")
        page.click("form button")
        page.wait_for_selector("#answer b")
        shutil.copytree(folder / "words", folder / "another")
        come_back()
        page.wait_for_selector("#run option[value=another]", state="attached")
        assert page.input_value("#run") == "words"
        assert page.input_value("textarea[name=text]") == "left"  # what was typed stays
        shutil.rmtree(folder / "words")
        while "The run 'words' is gone." not in said:
            time.sleep(0.05)
        page.click("form button")  # it is gone: that is said, and the list is another
        page.wait_for_function("document.getElementById('error').textContent.includes('no run')")
        assert "words" not in options()
        assert (folder / "another" / CONFIG).is_file()
