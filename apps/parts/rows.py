"""A table of samples, in which a click on a row chooses the sample that is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from shardscope.visible import on_one_line

MOST_HEIGHT = 290  # pixels; a longer table scrolls


def choose_by_row(
    table: pd.DataFrame, names: Sequence[str], state: str, *, key: str, columns: Mapping[str, Any] | None = None
) -> None:
    """Draws `table`; a click on a row puts its name into the session's `state`. `columns`: see st.dataframe."""

    def choose() -> None:
        if rows := st.session_state[key].selection.rows:
            st.session_state[state] = names[rows[0]]

    st.dataframe(
        table.map(lambda value: on_one_line(value) if isinstance(value, str) else value),
        hide_index=True,
        height=min(36 * len(table) + 38, MOST_HEIGHT),
        key=key,
        on_select=choose,
        selection_mode="single-row",
        column_config=columns,
    )
