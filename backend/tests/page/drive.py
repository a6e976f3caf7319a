"""Uses the page as a person does, in Chromium; what it sees and is told to do goes over standard input and output.

Each line that comes is a JSON array, a step and its arguments; each is answered by one line, {"ok": value} or {"error": text}.
Arguments: the page's address, the browser's path.
"""

import json
import sys
import time

from playwright.sync_api import sync_playwright

WITHIN_MS = 60_000


class Page:
    def __init__(self, browser, address):
        self.browser, self.address = browser, address
        self.errors, self.elsewhere = [], []
        self.page = None
        self.open(1200, 900)

    def open(self, width, height):
        """Anew, in a window of this size."""
        if self.page:
            self.page.close()
        self.page = self.browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(WITHIN_MS)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self.note)
        self.page.goto(self.address)

    def note(self, request):
        if not request.url.startswith((self.address, "data:")):
            self.elsewhere.append(request.url)

    def faults(self):
        """Errors of the script, and what was asked of others."""
        return self.errors + self.elsewhere

    def text(self, selector):
        return self.page.inner_text(selector)

    def sees(self, selector, part):
        """Waits until an element has this text in it."""
        self.page.locator(selector, has_text=part).first.wait_for(state="visible")

    def there(self, selector):
        """Waits until there is such an element, however thin."""
        self.page.locator(selector).first.wait_for(state="attached")

    def gone(self, selector):
        self.page.locator(selector).first.wait_for(state="detached")

    def fill(self, selector, value):
        self.page.fill(selector, value)

    def choose(self, selector, value):
        self.page.select_option(selector, value)

    def click(self, selector):
        self.page.click(selector)

    def press(self, key):
        self.page.keyboard.press(key)

    def focused(self):
        return self.page.evaluate("document.activeElement.id || document.activeElement.textContent")

    def attribute(self, selector, name):
        return self.page.get_attribute(selector, name)

    def evaluate(self, script):
        return self.page.evaluate(script)

    def changes(self, selector):
        """Waits until an element's text is another than now, and tells both."""
        before = self.text(selector)
        deadline = time.monotonic() + WITHIN_MS / 1000
        while time.monotonic() < deadline:
            now = self.text(selector)
            if now != before:
                return [before, now]
            self.page.wait_for_timeout(50)
        raise TimeoutError(f"{selector} stays {before!r}")

    def picture(self, file):
        self.page.screenshot(path=file, full_page=True)


def main():
    address, path = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = Page(browser, address)
        for line in sys.stdin:
            step, *arguments = json.loads(line)
            try:
                answer = {"ok": getattr(page, step)(*arguments)}
            except Exception as error:  # whatever it is, the test says it
                answer = {"error": f"{step} {arguments}: {error}"}
            print(json.dumps(answer), flush=True)
        browser.close()


main()
