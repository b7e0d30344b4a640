"""Twenty browsers at once on one explorer: every view is their own, and the server's memory comes to rest.

SHARDSCOPE_SOAK_SECONDS (300) is how long they change views.
"""

from __future__ import annotations

import os
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import browser
import pytest
import server
from attacks import Count
from small_run import make_run

from shardscope import ShardConfig
from shardscope.tokenizer import Tokenizer

sync_api = pytest.importorskip("playwright.sync_api", reason="the page tests need playwright")

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.browser,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory of the server"),
]
SESSIONS, SECONDS = 20, int(os.environ.get("SHARDSCOPE_SOAK_SECONDS", "300"))
PAGES = ("", "tokens", "heads", "runs", "failures")
GROWTH = 1.25  # of the server's memory over the second half, beyond which it is taken to grow without end


def resident_megabytes(port: str) -> int:
    """Of the server that listens on a port, by its command line."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"streamlit" in words and port.encode() in words:
                return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
        except OSError:
            continue  # it has ended meanwhile
    raise ProcessLookupError(f"no server listens on {port}")


def marker(session: int) -> str:
    return f"qz{session:02d}zq"


def view(session: int, rng: random.Random) -> str:
    """A page and its choices, which are in the address."""
    choices: dict[str, Any] = {
        "prompt": f"Once {marker(session)} upon a time {marker(session)}", "tokens": rng.choice((0, 2, 8)),
        "layer": rng.randrange(4), "head": rng.randrange(4), "seed": rng.randrange(3), "sample_tokens": 8,
    }  # fmt: skip
    return f"{rng.choice(PAGES)}?{urlencode(choices)}"


def test_twenty_sessions_that_change_views_see_their_own_and_the_memory_comes_to_rest(
    tmp_path: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer, attack: Callable[[str], Count]
) -> None:
    make_run(tmp_path / "runs" / "tiny", replace(tiny_config, n_ctx=320), tiny_tokenizer)
    count, rng, memory = attack("sessions"), random.Random(0), []
    with (
        server.explorer(tmp_path / "runs", log=tmp_path / "server.log") as address,
        sync_api.sync_playwright() as playwright,
        browser.headless(playwright) as chromium,
    ):
        pages = [still_page(chromium) for _ in range(SESSIONS)]
        troubles = [heard(page) for page in pages]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or not memory:
            for session, page in enumerate(pages):  # all of them are drawn at once
                page.goto(f"{address}/{view(session, rng)}", wait_until="commit")
            for session, page in enumerate(pages):
                with count.attempt(f"session {session}, {page.url[-200:]}"):
                    try:
                        looked_at(page, session)
                    except sync_api.TimeoutError as error:
                        shown = page.locator("body").inner_text()[:200]
                        raise AssertionError(f"not drawn: it shows {shown!r}; {troubles[session][-5:]}") from error
            memory.append(resident_megabytes(address.rpartition(":")[2]))
    count.measured |= {"sessions": SESSIONS, "rounds": len(memory), "megabytes": memory}
    said = re.sub(r"\x1b\[[0-9;]*m", "", (tmp_path / "server.log").read_text())
    gone = re.findall(r"^\s*starlette\.websockets\.WebSocketDisconnected:", said, re.MULTILINE)
    assert said.count("Traceback") == len(gone), said[-3000:]
    assert count.lost == []
    assert memory[-1] < GROWTH * memory[len(memory) // 2]
    assert memory[-1] < 2048


def still_page(chromium: Any) -> Any:
    """A browser of its own, in which nothing moves: painting twenty pages would take the cores from the server."""
    page = chromium.new_context(reduced_motion="reduce", viewport={"width": 800, "height": 600}).new_page()
    page.set_default_timeout(600_000)
    style = "*, *::before, *::after { animation: none !important; transition: none !important }"
    page.add_init_script(
        f"const rules = new CSSStyleSheet(); rules.replaceSync({style!r}); document.adoptedStyleSheets.push(rules);"
    )
    return page


def heard(page: Any) -> list[str]:
    """What goes wrong in a page from now on: requests that failed, errors of its scripts."""
    troubles: list[str] = []
    page.on("requestfailed", lambda request: troubles.append(f"{request.url}: {request.failure}"))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
    return troubles


def looked_at(page: Any, session: int) -> None:
    """Wait until a page is drawn. Raises AssertionError where it shows an error, or what is another's."""
    page.locator("h1, h2, h3").first.wait_for()
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    assert page.locator("[data-testid=stException]").count() == 0, "an exception"
    typed = " ".join(page.locator("textarea").nth(n).input_value() for n in range(page.locator("textarea").count()))
    shown = re.sub(r"\s", "", typed + page.locator("body").inner_text())
    others = [other for other in range(SESSIONS) if other != session and marker(other) in shown]
    assert not others, f"shows the prompts of {others}"
    if typed:
        assert marker(session) in typed, "not the session's own prompt"
