"""Does the run learn? Trouble, named with the step it began at, found in the numbers that are logged anyway.

    loss spike           three steps in a row lie far above the loss of the window before them
    plateau              for a whole window the loss stays at the entropy of single tokens: the model knows how often
                         each token comes, and nothing else
    exploding logits     the logsumexp of the logits comes near what the cap allows
    exploding gradients  three norms in a row are twenty times the usual one
    exploding weights    a matrix has a singular value that no training of ours has reached
    dead heads           heads whose output has all but vanished beside that of the others
    rising held-out loss the held-out bits per byte lie a twentieth above what the run had, or began with: the rate is
                         too high for an anneal, or the text is learned by heart

The window is a tenth of the steps, from 20 to 200. Everything here is arithmetic on a few hundred floats.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from einops import einsum

from shardscope.config import Recipe
from shardscope.data import Prepared
from shardscope.model import Shard
from shardscope.train.sentinel import Singular
from shardscope.train.sharding import whole

IN_A_ROW = 3  # steps that one unusual batch does not explain
LARGEST_SINGULAR_VALUE = 1e3
DEAD = 1e-2  # of the usual head's output
RISE = 0.05  # of the held-out loss; evaluations of a run that learns differ by less
LOGGED = ("cross_entropy", "grad_norm", "z")  # of each step
# What a lower rate may mend; the rest is only reported.
MENDED_BY_A_LOWER_RATE = ("loss spike", "plateau", "exploding logits", "exploding gradients")


@dataclass(frozen=True)
class Trouble:
    """Something that a person should look at: what, the step that it began at, and the numbers that show it."""

    kind: str
    step: int
    evidence: str

    def __str__(self) -> str:
        return f"{self.kind} since step {self.step:,}: {self.evidence}"


class Health:
    """Is told the numbers of each step, and says what trouble there is: `active`, by kind."""

    def __init__(self, recipe: Recipe, vocab_size: int, logit_cap: float, entropy: float) -> None:
        """`entropy` is that of single tokens of the training data, in nats: see `token_entropy`."""
        steps = recipe.schedule.steps
        self.window = min(200, max(20, steps // 10))
        self.warm = math.ceil(recipe.schedule.warmup * steps) if recipe.phase == "pretrain" else 0
        self.entropy = entropy
        # One logit at the cap gives the cap, half of them give nearly the logarithm of the vocabulary more, which is
        # what an untrained model has. A cap of 30 lets a trained one come near 24; a low one has no room for that.
        untrained = math.log(vocab_size)
        self.largest_logsumexp = max(min(0.8 * logit_cap, 50.0), untrained + min(2.0, 0.6 * logit_cap))
        self.active: dict[str, Trouble] = {}
        self._lowest = (0, math.inf)  # held-out bits per byte so far, with the step
        self._losses: deque[float] = deque(maxlen=self.window)
        self._usual: dict[str, deque[float]] = {name: deque(maxlen=self.window) for name in ("loss", "norm")}
        self._recent: deque[dict[str, float]] = deque(maxlen=IN_A_ROW)

    def step(self, step: int, values: Mapping[str, float]) -> list[Trouble]:
        """The numbers of the step that ended as number `step`; returns the trouble that was not there before.

        `values` holds cross_entropy and grad_norm, and z, the mean of logsumexp². Steps without finite numbers are not
        looked at: the loop skips and counts those itself.
        """
        now = {
            "loss": values["cross_entropy"],
            "norm": values["grad_norm"],
            "logsumexp": math.sqrt(max(0.0, values["z"])),
        }
        if not all(map(math.isfinite, now.values())):
            return []
        self._recent.append(now)
        self._losses.append(now["loss"])
        before = set(self.active)
        if len(self._recent) == IN_A_ROW:
            first = step - IN_A_ROW + 1
            self._set("loss spike", first, self._spike())
            self._set("exploding gradients", first, self._exploding_gradients())
            self._set("exploding logits", first, self._exploding_logits())
        self._set("plateau", max(0, step - self.window), self._plateau(step))
        for name, trouble in (("loss", "loss spike"), ("norm", "exploding gradients")):
            if trouble not in self.active:
                self._usual[name].append(now[name])
        return [self.active[kind] for kind in self.active if kind not in before]

    def matrices(self, step: int, found: Iterable[Singular], dead: Sequence[str]) -> list[Trouble]:
        """What a look at the weights says: extreme singular values, and heads without output, as in 'L3H2'."""
        before = set(self.active)
        large = [value for value in found if not value.largest <= LARGEST_SINGULAR_VALUE]
        shown = ", ".join(f"{value.name} ({value.largest:.3g})" for value in large[:3])
        self._set("exploding weights", step, f"largest singular values: {shown}" if large else "")
        self._set("dead heads", step, ", ".join(dead))
        return [self.active[kind] for kind in self.active if kind not in before]

    def evaluation(self, step: int, bits_per_byte: float) -> list[Trouble]:
        """What an evaluation on all held-out text says beside those before it."""
        if not math.isfinite(bits_per_byte):
            return []
        before = set(self.active)
        self._lowest = min(self._lowest, (step, bits_per_byte), key=lambda one: one[1])
        at, lowest = self._lowest
        risen = bits_per_byte > (1 + RISE) * lowest
        evidence = f"{bits_per_byte:.3f} bits per byte, after {lowest:.3f}" if risen else ""
        self._set("rising held-out loss", at, evidence)
        return [self.active[kind] for kind in self.active if kind not in before]

    def mendable(self, step: int) -> Trouble | None:
        """The trouble that calls for pausing or going back: one that a lower rate may mend, and that lasts."""
        for kind in MENDED_BY_A_LOWER_RATE:
            trouble = self.active.get(kind)
            # A plateau has lasted when it is found; a spike is given a tenth of a window to pass by itself.
            if trouble and (kind == "plateau" or step - trouble.step >= max(IN_A_ROW, self.window // 10)):
                return trouble
        return None

    def resume(self, lines: Sequence[Mapping[str, Any]], troubles: Iterable[Trouble]) -> None:
        """Go on where a run stopped: `lines` of steps and evaluations of its log, and the trouble that was not over."""
        for line in [line for line in lines if line["kind"] == "train"][-self.window :]:
            # A number that was not finite was logged as null.
            values = {name: _number(line.get(name)) for name in LOGGED}
            self.step(line["step"], values)
        for line in lines:
            if line["kind"] == "eval" and isinstance(scores := line.get("all"), Mapping):
                self.evaluation(line["step"], _number(scores.get("bits_per_byte")))
        self.active = {trouble.kind: trouble for trouble in troubles}

    def _set(self, kind: str, step: int, evidence: str | None) -> None:
        """`evidence` is empty where there is no such trouble, and None where nothing can be said yet."""
        if evidence is None:
            return
        if not evidence:
            self.active.pop(kind, None)
        elif kind not in self.active:
            self.active[kind] = Trouble(kind, step, evidence)

    def _spike(self) -> str | None:
        usual = self._usual["loss"]
        if len(usual) < self.window // 2:
            return None
        middle = median(usual)
        spread = 1.4826 * median(abs(loss - middle) for loss in usual)  # the deviation of a normal distribution
        limit = middle + max(8 * spread, 0.1 * middle)
        lowest = min(values["loss"] for values in self._recent)
        return f"a loss of {lowest:.2f} and more, after {middle:.2f}" if lowest > limit else ""

    def _exploding_gradients(self) -> str | None:
        usual = self._usual["norm"]
        if len(usual) < self.window // 2:
            return None
        middle, lowest = median(usual), min(values["norm"] for values in self._recent)
        return f"a norm of {lowest:.3g} and more, after {middle:.3g}" if lowest > 20 * middle else ""

    def _exploding_logits(self) -> str:
        lowest = min(values["logsumexp"] for values in self._recent)
        return (
            f"a logsumexp of {lowest:.1f}, where {self.largest_logsumexp:.1f} is high"
            if lowest > self.largest_logsumexp
            else ""
        )

    def _plateau(self, step: int) -> str | None:
        if step < self.warm + self.window or len(self._losses) < self.window:
            return None
        losses, half = list(self._losses), self.window // 2
        before, now = median(losses[:half]), median(losses[half:])
        # Slow progress is no plateau; one that was found is left only by getting below it.
        if now < 0.95 * self.entropy or (now < 0.99 * before and "plateau" not in self.active):
            return ""
        return f"a loss of {now:.2f} nats, where the frequency of each token alone gives {self.entropy:.2f}"


def _number(value: object) -> float:
    """What a log holds; NaN for null, which a number that was not finite is written as, and for anything else."""
    return float(value) if isinstance(value, int | float) else math.nan


def token_entropy(data: Prepared, most: int = 4_000_000) -> float:
    """Nats a token costs if only its frequency is known, over the mixture; `most` tokens of each source are read."""
    frequencies = np.zeros(2**16)
    for source in data.mixture.plan(1_000_000):
        tokens = data.shards[source.name].train.tokens
        some = tokens[:: max(1, len(tokens) // most)]
        frequencies += source.share * np.bincount(some, minlength=2**16) / len(some)
    present = frequencies[frequencies > 0] / frequencies.sum()
    return float(-(present * np.log(present)).sum())


@torch.no_grad()
def dead_heads(model: Shard) -> list[str]:
    """Heads whose W_V W_O is below a hundredth of the median head's, in Frobenius norm, as 'L3H2'.

    Where ranks share the weights, all of them have to call this.
    """
    norms = torch.stack([_output_norms(block.attn.W_V, block.attn.W_O) for block in model.blocks])
    dead = norms < DEAD * norms.median()
    return [f"L{layer}H{head}" for layer, head in dead.nonzero().tolist()]


def _output_norms(W_V: torch.Tensor, W_O: torch.Tensor) -> torch.Tensor:
    """‖W_V W_O‖ of each head, from the two d_head x d_head products rather than the d_model x d_model one."""
    W_V, W_O = whole(W_V).float(), whole(W_O).float()
    values = einsum(W_V, W_V, "head d_model i, head d_model j -> head i j")
    outputs = einsum(W_O, W_O, "head i d_model, head j d_model -> head i j")
    return (values * outputs).sum(dim=(1, 2)).clamp(min=0).sqrt()


def troubles_of(lines: Iterable[Mapping[str, Any]]) -> list[tuple[Trouble, int | None]]:
    """Every trouble that a run's log tells of, with the step at which it was over (None: it was not)."""
    found: list[tuple[Trouble, int | None]] = []
    for line in lines:
        if line.get("kind") != "event" or line.get("event") not in ("trouble", "over"):
            continue
        kind = str(line.get("trouble"))
        if line["event"] == "trouble":
            since = line.get("since")
            found.append((Trouble(kind, since if type(since) is int else 0, str(line.get("evidence"))), None))
        else:
            found = [(t, line["step"] if over is None and t.kind == kind else over) for t, over in found]
    return found
