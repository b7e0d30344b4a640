"""What most pages begin with: a checkpoint, a prompt, how to continue it, and the continuation as it is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import streamlit as st

from apps.parts import address
from apps.parts.checkpoints import Opened, pick_checkpoint
from apps.parts.continuing import Continuation, continue_prompts, sampling_controls
from apps.parts.text import sentence
from shardscope.config import ConfigError
from shardscope.generation import SamplingConfig
from shardscope.model.prompts import token_rows
from shardscope.tokenizer import Tokenizer
from shardscope.visible import visible


@dataclass(frozen=True)
class Asked:
    """A prompt, read and continued. `ids` are both parts; the first `prompt_tokens` are the prompt's."""

    opened: Opened
    tokenizer: Tokenizer
    prompt: str
    sampling: SamplingConfig | None  # None: nothing was to be continued
    prompt_tokens: int
    new: Continuation
    ids: tuple[int, ...]

    def text(self, id: int) -> str:
        """One token, readable; a vocabulary padded past its tokenizer has ids that stand for no text."""
        return self.tokenizer.token_text(id) if id < self.tokenizer.vocab_size else f"<id {id}>"

    @cached_property
    def texts(self) -> list[str]:
        return [self.text(id) for id in self.ids]


def ask() -> Asked | None:
    """Draw the questions and the continuation; None, with one sentence on the page, when there is nothing to show."""
    opened = pick_checkpoint()
    if opened is None:
        return None
    # Nothing runs while somebody types.
    with st.form("ask", border=False):
        left, right = st.columns([5, 7], gap="medium")
        with left:
            st.text_area("Prompt", key="prompt", height=106)
        with right.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            sampling = sampling_controls()
            st.form_submit_button("Continue", type="primary")
        written = right.container()
    prompt: str = st.session_state.prompt
    tokenizer = opened.model.tokenizer
    assert tokenizer is not None
    if not prompt:
        st.info("The prompt is empty; write something for the model to continue.")
        address.publish()
        return None
    try:
        ids = tuple(tokenizer.encode(prompt, bos=True))
        token_rows(opened.model, ids)
        with written:
            new = _continued(opened, ids, sampling) if sampling else Continuation()
    except ConfigError as error:
        st.error(sentence(error))
        address.publish()
        return None
    return Asked(opened, tokenizer, prompt, sampling, len(ids), new, (*ids, *new.ids))


def _continued(opened: Opened, ids: tuple[int, ...], sampling: SamplingConfig) -> Continuation:
    """Stream the continuation into the page, as text and never as markup."""
    box = st.empty()
    new = Continuation()
    for (new,) in continue_prompts(opened, (ids,), sampling):
        box.code(visible(new.text) or " ", language=None, wrap_lines=True, height=64)
    if not new.ids:
        full = new.stop_reason == "context"
        box.caption("The prompt fills the whole context." if full else "The model ends the text here.")
    return new
