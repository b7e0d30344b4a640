"""A text, a list of ids and tensors of ids are the same prompt, wherever a model is asked something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rounding import A_LOGIT

from shardscope import Shard, generate, read, score, stream
from shardscope.microscope import ablated, ablation_effect, attribution, logit_lens, read_layers, residuals
from shardscope.model import PromptError
from shardscope.tokenizer import Tokenizer

TEXT = "Once upon a time"


@pytest.fixture
def model(tiny_model: Shard, tiny_tokenizer: Tokenizer) -> Shard:
    tiny_model.tokenizer = tiny_tokenizer
    return tiny_model


def forms(model: Shard) -> dict[str, Any]:
    """One prompt, said in every way."""
    ids = model.tokenizer.encode(TEXT, bos=True)  # type: ignore[union-attr]
    return {
        "a text": TEXT,
        "a list": ids,
        "a tuple": tuple(ids),
        "a tensor [pos]": torch.tensor(ids),
        "a tensor [1 pos]": torch.tensor([ids]),
        "a tensor of 32 bits": torch.tensor(ids, dtype=torch.int32),
        "an array": np.array(ids),
        "a list of NumPy's numbers": list(np.array(ids, dtype=np.uint16)),
    }


# How each function is asked, and the number that has to be the same.
ASKED: dict[str, Callable[[Shard, Any], Any]] = {
    "model": lambda model, prompt: model(prompt),
    "run_with_cache": lambda model, prompt: model.run_with_cache(prompt)[1]["resid_post", -1],
    "run_with_hooks": lambda model, prompt: model.run_with_hooks(
        prompt, fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: x * 0)]
    ),
    "generate": lambda model, prompt: torch.tensor(generate(model, prompt, max_new_tokens=5).ids),
    "stream": lambda model, prompt: torch.tensor([event.id for event in stream(model, prompt, max_new_tokens=5)]),
    "score": lambda model, prompt: torch.tensor(score(model, prompt, [" is", [5, 6]])),
    "read": lambda model, prompt: read(model, prompt).layer(2).q,
    "read_layers": lambda model, prompt: next(read_layers(model, prompt)).k,
    "logit_lens": lambda model, prompt: torch.tensor(logit_lens(model, prompt).entropy),
    "residuals": lambda model, prompt: residuals(model, prompt).x,
    "attribution": lambda model, prompt: torch.tensor(attribution(model, prompt, token=5).heads),
    "ablation_effect": lambda model, prompt: torch.tensor(ablation_effect(model, prompt, [(1, 2)]).kl),
    "ablated": lambda model, prompt: within_mean_ablation(model, prompt),
}


def within_mean_ablation(model: Shard, reference: Any) -> torch.Tensor:
    with ablated(model, [(1, 2)], "mean", reference=reference):
        return model([3, 4, 5])


@pytest.mark.parametrize("function", ASKED)
@torch.no_grad()
def test_every_form_of_a_prompt_gives_the_same(model: Shard, function: str) -> None:
    answers = {form: ASKED[function](model, prompt) for form, prompt in forms(model).items()}
    for form, answer in answers.items():
        assert torch.equal(answer, answers["a text"]), form


@pytest.mark.parametrize("function", [name for name in ASKED if name != "ablated"])
@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "the (prompt|context) is empty: it holds no token; give at least one"),
        (torch.zeros(0, dtype=torch.long), "is empty: it holds no token"),
        (torch.zeros(1, 0, dtype=torch.long), "is empty: it holds no token"),
        ([1] * 65, "65 tokens do not fit this model's context of 64; pass at least 1 fewer"),
        (torch.ones(1, 65, dtype=torch.long), "65 tokens do not fit this model's context of 64"),
        ([3, -1], "token id -1 is outside the vocabulary of 300; ids run from 0 to 299"),
        (torch.tensor([[3, 300]]), "token id 300 is outside the vocabulary of 300"),
        ([3, 4.5], "4.5 among the ids is no token id; a prompt is a text, a list of token ids, or an integer tensor"),
        ([True, 2], "True among the ids is no token id"),
        (torch.tensor([1.0, 2.0]), r"a tensor of float32 with shape \[2\] is no prompt; a prompt is a text"),
        (torch.ones(1, 2, 3, dtype=torch.long), r"a tensor of int64 with shape \[1, 2, 3\] is no prompt"),
        (torch.tensor(5), r"a tensor of int64 with shape \[\] is no prompt"),
        (b"bytes", "a bytes is no prompt"),
        (7, r"7 \(int\) is no prompt"),
        (None, "a NoneType is no prompt"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused_in_one_sentence(model: Shard, function: str, prompt: Any, says: str) -> None:
    with pytest.raises(PromptError, match=says) as error:
        ASKED[function](model, prompt)
    assert "\n" not in str(error.value)
    assert not any(point.watched for point in model.hook_dict.values())


@pytest.mark.parametrize("function", [name for name in ASKED if name not in ("model", "generate", "stream", "ablated")])
def test_a_function_that_looks_at_one_prompt_says_so(model: Shard, function: str) -> None:
    if function.startswith("run_with"):
        return  # these take a batch
    with pytest.raises(PromptError, match="several"):
        ASKED[function](model, [[1, 2], [3, 4]])


def test_text_without_a_tokenizer_is_refused_in_one_sentence(tiny_model: Shard) -> None:
    for function in ASKED.values():
        with pytest.raises(PromptError, match="text becomes ids through a tokenizer, and this model has none"):
            function(tiny_model, TEXT)


@torch.no_grad()
def test_several_prompts_of_unequal_lengths_give_what_each_gives_alone(model: Shard) -> None:
    prompts = [TEXT, [5, 6], torch.tensor([7, 8, 9, 10])]
    together, losses = model(prompts, return_type="both", loss_per_token=True)
    for row, prompt in enumerate(prompts):
        alone, loss = model(prompt, return_type="both", loss_per_token=True)
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=1e-5, atol=A_LOGIT)
        torch.testing.assert_close(losses[row, : loss.shape[1]], loss[0], rtol=1e-4, atol=A_LOGIT)
        assert (losses[row, loss.shape[1] :] == 0).all()
    many = sum(len(model.to_tokens(prompt)[0]) - 1 for prompt in prompts)
    torch.testing.assert_close(model(prompts, return_type="loss"), losses.sum() / many)


def test_what_is_wrong_with_one_of_several_prompts_is_said_with_its_number(model: Shard) -> None:
    for ask in (model, lambda prompts: generate(model, prompts)):
        with pytest.raises(PromptError, match="prompt 2: token id 999 is outside the vocabulary"):
            ask([TEXT, [1], [999]])
        with pytest.raises(PromptError, match="prompt 1: a list of 2 is several prompts"):
            ask([TEXT, [[1], [2]]])


def test_one_prompt_gives_one_generation_and_a_list_a_list(model: Shard) -> None:
    for form, prompt in forms(model).items():
        assert generate(model, prompt, max_new_tokens=2).prompt_ids == tuple(model.to_tokens(TEXT)[0].tolist()), form
    assert [len(generate(model, [prompt], max_new_tokens=2)) for prompt in forms(model).values()] == [1] * 8
    ids = torch.tensor([[1, 2], [3, 4]])
    assert [done.prompt_ids for done in generate(model, ids, max_new_tokens=2)] == [(1, 2), (3, 4)]


def test_a_score_is_the_sum_of_the_log_probabilities_of_the_continuation(model: Shard) -> None:
    def by_hand(context: list[int], continuation: list[int]) -> float:
        with torch.no_grad():
            logprobs = model([*context, *continuation])[0].log_softmax(dim=-1)
        return sum(float(logprobs[len(context) - 1 + i, id]) for i, id in enumerate(continuation))

    tokenizer = model.tokenizer
    assert tokenizer is not None
    context = "The capital of France is"
    expected = [by_hand(tokenizer.encode(context, bos=True), tokenizer.encode(text)) for text in (" Paris", " Rome")]
    assert score(model, context, [" Paris", " Rome"]) == pytest.approx(expected, rel=1e-5)
    assert score(model, context, " Rome") == pytest.approx(expected[1], rel=1e-5)
    assert score(model, [5], [[6, 7]]) == pytest.approx([by_hand([5], [6, 7])], rel=1e-5)


@pytest.mark.parametrize(
    ("context", "continuations", "says"),
    [
        (TEXT, [], "a list of 0|the continuation is empty"),
        (TEXT, "", "the continuation is empty: it holds no token"),
        (TEXT, [" a", ""], "continuation 1: the continuation is empty"),
        (TEXT, [[-1]], "continuation 0: token id -1 is outside the vocabulary"),
        ([1] * 64, [[1], [1, 2]], "continuation 1 has 2 tokens, and after a context of 64 this model's 64 hold 1"),
        ([1] * 65, [[1]], "65 tokens do not fit"),
        ([[1], [2]], [[1]], "several contexts came"),
    ],
    ids=str,
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(
    model: Shard, context: Any, continuations: Any, says: str
) -> None:
    with pytest.raises(PromptError, match=says):
        score(model, context, continuations)


def test_a_continuation_may_reach_to_the_end_of_the_context(model: Shard) -> None:
    assert len(score(model, [1] * 60, [[2] * 5, [3]])) == 2


# ------------------------------------------------------------------------------------------- text and tokens


def test_text_and_tokens_are_transformer_lens_s(trained_model: Shard) -> None:
    pytest.importorskip("transformer_lens")
    from shardscope.interop import to_transformer_lens

    model, bridge = trained_model, to_transformer_lens(trained_model)
    for text in ("Once upon a time", "The capital", "é漢🙂", " x"):
        assert torch.equal(model.to_tokens(text), bridge.to_tokens(text)), text
        assert model.to_str_tokens(text) == bridge.to_str_tokens(text)
        without = model.to_tokens(text, prepend_bos=False)
        assert torch.equal(without, bridge.to_tokens(text, prepend_bos=False)), text
        assert model.to_str_tokens(text, prepend_bos=False) == bridge.to_str_tokens(text, prepend_bos=False)
        for tokens in (without, without[0], model.to_tokens(text), model.to_tokens(text)[0].tolist()):
            assert model.to_string(tokens) == bridge.to_string(tokens)
    assert model.to_tokens("").tolist() == bridge.to_tokens("").tolist()
    too_long = "a" * 2000
    assert torch.equal(model.to_tokens(too_long), bridge.to_tokens(too_long))
    assert model.to_tokens(too_long, truncate=False).shape == (1, 2001)
    several = ["Once upon", "a much longer text than that"]
    assert torch.equal(model.to_tokens(several), bridge.to_tokens(several))
    assert model.to_str_tokens(several) == bridge.to_str_tokens(several)
    assert model.to_single_token("a") == bridge.to_single_token("a")


def test_a_text_of_several_tokens_is_no_single_token(model: Shard) -> None:
    with pytest.raises(PromptError, match=r"'Once upon' is \d tokens, .*; give one that is one"):
        model.to_single_token("Once upon")
