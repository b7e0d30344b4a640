"""The README.md of an exported model: what it is, how to load it, what it cannot do."""

from __future__ import annotations

from shardscope.config import ShardConfig


def model_card(config: ShardConfig, dtype: str, note: str = "") -> str:
    """Markdown with the front matter that the Hugging Face Hub reads. `note` says what rounding to `dtype` changed."""
    sliding = config.layer_kinds.count("sliding")
    seen = f"{sliding} see a window of {config.window} positions, {config.n_layers - sliding} see everything"
    rounded = f"\nRounding: {note}.\n" if note else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [shardscope, vaultgemma, sliding-window]
---

# A Shard of {config.n_params / 1e6:.1f} M parameters

Trained with Shardscope and exported in {dtype} for stock transformers, without remote code:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file lies
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```

| what | value |
|---|---|
| layers | {config.n_layers}: {seen} |
| width, heads | {config.d_model}, {config.n_heads} of {config.d_head} |
| MLP | SwiGLU, {config.d_mlp} hidden |
| vocabulary, context | {config.vocab_size}, {config.n_ctx} |
| positions | RoPE, base {config.rope_base:g} |
| logits | {config.logit_cap:g} tanh(z / {config.logit_cap:g}) |

transformers runs it as VaultGemma, which computes the same function. `embed_tokens` is the embedding divided by
sqrt({config.d_model}), because VaultGemma multiplies by it; `lm_head` is the embedding itself; norms hold w - 1.
`shardscope.safetensors` is for the way back (`shardscope import`): the norms before 1 was taken off.
{rounded}
A model this small writes fluent text that is often untrue, miscounts, and repeats itself. It is made for study.
"""
