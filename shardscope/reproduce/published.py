"""What the model card of Shard-40m-v1 says of itself, to stand beside a run of ours."""

from __future__ import annotations

from shardscope.config import ShardConfig

PARAMETERS = ShardConfig.preset("shard-54m").n_params
TOKENS_PER_SECOND, CROSS_ENTROPY, DECODING = 86_800, 3.27, 47
STEPS, TOKENS_OF_A_STEP = 48_220, 131_072  # of the pretraining, which was paused there
TOKENS = STEPS * TOKENS_OF_A_STEP
# By prompt: the card's output, cut where the card cuts it, and what the card says is wrong with it.
SAMPLES = {
    "The capital of France is": (
        '"covered by the Crown" (for example, the Great Seal of France...)', "ungrounded",
    ),
    "To compute 12 plus 7, we can": ("now use the first 6 as a reversible input...", "drift"),
    "Question: What is 23 + 19? Answer:": ("The answer is 23. Answer: 23. Answer: 23", "loop"),
    "def fibonacci(n):": ("// Appendix A. - S. B. V. Shanker. - S. M. P. Gerber...", "wrong register"),
    "Once upon a time, in a small village,": (
        "a woman is a gentleman in a village with an infinite wealth...", "incoherent",
    ),
    "Solve: 17 * 23 = ?": ("?????\n*****", "breakdown"),
}  # fmt: skip
