"""A headless Chromium for the page tests: found, started with no outside connections of its own, or installed.

python tests/apps/browser.py             says which browser the tests will drive
python tests/apps/browser.py --install   finds one, else installs Debian's package, else Playwright's download
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NO_BROWSER = (
    "no Chromium was found for the page tests; get one with `make browser`, name one in SHARDSCOPE_CHROMIUM, "
    "or set SHARDSCOPE_SKIP_BROWSER=1 to leave these tests out"
)


def find_browser() -> Path | None:
    """The Chromium to drive: SHARDSCOPE_CHROMIUM, else the system's, else the one Playwright downloaded."""
    named = os.environ.get("SHARDSCOPE_CHROMIUM")
    if named:
        if not Path(named).is_file():
            raise FileNotFoundError(f"SHARDSCOPE_CHROMIUM={named} is no file; name a Chromium or unset it")
        return Path(named)
    on_path = [found for name in NAMES if (found := shutil.which(name))]
    return Path(on_path[0]) if on_path else _playwrights_own()


def install_browser() -> Path | None:
    """The Chromium there is, else Debian's when root may install packages, else Playwright's download."""
    if found := find_browser():
        return found
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update"], check=False)
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", "chromium"], check=False)
    if not (found := find_browser()):
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)
        found = find_browser()
    return found


@contextmanager
def headless(playwright: Playwright) -> Iterator[Browser]:
    """A browser with an empty profile of its own, closed at the end. Raises FileNotFoundError when there is none."""
    found = find_browser()
    if found is None:
        raise FileNotFoundError(NO_BROWSER)
    browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
    try:
        yield browser
    finally:
        browser.close()


def _playwrights_own() -> Path | None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    return path if path.is_file() else None


if __name__ == "__main__":
    found = install_browser() if "--install" in sys.argv[1:] else find_browser()
    if found is None:
        sys.exit(NO_BROWSER)
    print(found)
