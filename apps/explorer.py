"""The explorer: `streamlit run apps/explorer.py`, or `streamlit run apps/explorer.py -- FOLDER …`.

It shows the checkpoints below the folders it is started with (without any: the built-in checkpoint and `runs/`).
Pages pick a checkpoint, a prompt, a layer and a head, call one library function, and draw what it returns.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import streamlit as st
from PIL import Image

# `streamlit run` puts this file's folder on the path, not the one above it.
if (above := str(Path(__file__).resolve().parents[1])) not in sys.path:
    sys.path.insert(0, above)

from apps import page_attention, page_failures, page_heads, page_runs, page_tokens
from apps.parts import address

# Streamlit leaves six rem above the first element.
STYLE = """<style>.stMainBlockContainer { padding-top: 3.6rem; padding-bottom: 3rem; }
@media (max-width: 640px) { .stMainBlockContainer { padding-top: 4.6rem; } }</style>"""


LOGO = Path(__file__).with_name("logo.svg")


def icon() -> Image.Image:
    """A sliding window's band on a dark square. Streamlit fetches named icons and emoji from other hosts."""
    query, key = np.indices((16, 16))
    seen = (key <= query) & (key > query - 5)
    pixels = np.where(seen[..., None], (53, 183, 121), (68, 1, 84)).astype(np.uint8)
    return Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST)


def main() -> None:
    st.set_page_config(page_title="Shardscope", page_icon=icon(), layout="wide")
    st.html(STYLE)
    st.logo(LOGO.read_text(encoding="utf-8"), size="large")
    address.restore()
    pages = [
        st.Page(page_attention.page, title="Attention", icon=":material/grid_on:", url_path="attention", default=True),
        st.Page(page_tokens.page, title="Tokens", icon=":material/text_fields:", url_path="tokens"),
        st.Page(page_heads.page, title="Heads", icon=":material/search:", url_path="heads"),
        st.Page(page_runs.page, title="Runs", icon=":material/show_chart:", url_path="runs"),
        st.Page(page_failures.page, title="Failures", icon=":material/error_outline:", url_path="failures"),
    ]
    st.session_state.attention_page = pages[0]
    st.navigation(pages, position="top").run()


main()
