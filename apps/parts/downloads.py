"""Bulk data for components, sent apart from the rest, so that it is sent once (see downloads.js)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import streamlit as st

# Components put this before their own script.
SHELF_JS = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
_shelf = st.components.v2.component(
    "shelf", js=SHELF_JS + "export default function ({ data }) { shelve(data.slot, data.digest, data.text); }\n"
)


def shelve(slot: str, text: str) -> dict[str, str]:
    """Lay `text` on the browser's shelf; returns what a component needs to take it from there."""
    at = {"slot": slot, "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}
    _shelf(key=f"shelf {slot}", data={**at, "text": text}, height=1)
    return at
