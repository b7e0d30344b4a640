"""The explorer's pages without a browser, run by Streamlit's own harness."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the explorer needs the [app] extra")

from streamlit.testing.v1 import AppTest

EXPLORER = Path(__file__).parents[2] / "apps" / "explorer.py"


def start(monkeypatch: pytest.MonkeyPatch, *folders: Path, **address: object) -> AppTest:
    """The explorer over `folders`, opened at an address, run once."""
    monkeypatch.setattr(sys, "argv", [str(EXPLORER), *map(str, folders)])
    app = AppTest.from_file(str(EXPLORER), default_timeout=60)
    for name, value in {"tokens": 5, **address}.items():
        app.query_params[name] = str(value)
    return app.run()


def open_page(monkeypatch: pytest.MonkeyPatch, name: str, *folders: Path, **address: object) -> AppTest:
    """One of the other pages, alone."""
    monkeypatch.setattr(sys, "argv", [str(EXPLORER), *map(str, folders)])
    code = f"from apps import page_{name} as it\nfrom apps.parts import address\naddress.restore()\nit.page()\n"
    page = AppTest.from_string(code, default_timeout=120)
    for choice, value in address.items():
        page.query_params[choice] = str(value)
    return page.run()


def says(app: AppTest) -> str:
    """Everything that the page says in words."""
    elements = [*app.title, *app.subheader, *app.markdown, *app.caption, *app.error, *app.warning, *app.info, *app.code]
    return re.sub(r":(blue|orange)\[(.*?)\]", r"\2", "\n".join(str(element.value) for element in elements))
