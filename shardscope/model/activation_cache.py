"""What a run left behind: activations by hook name, and what TransformerLens's `ActivationCache` computes from them.

Names, arguments and results are those of `transformer_lens.ActivationCache`; tests hold each method equal to it.

Axes: batch, pos, d_model, head, d_head; `component` counts what a stack holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from shardscope.model.shard import Shard

# An activation's full name, a short one, or (short name, layer) or (short name, layer, part of the block).
Key = str | tuple[str, int | None] | tuple[str, int | None, str | None]
# TransformerLens's `Slice`: an index, which drops the axis; a tuple of slice()'s arguments; indices.
SliceInput = None | int | slice | tuple[int | None, ...] | Sequence[int] | Tensor
Stack = Float[Tensor, "component *batch_and_pos d_model"]
Labels = list[str]
Directions = Float[Tensor, "width"] | Float[Tensor, "width output"]
Parts = Float[Tensor, "component ..."]  # a stack of which only what lies along some directions may be left
T = TypeVar("T")

_SYNONYMS = {
    **{"attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v"},
    **{"mlp_pre": "pre", "mlp_mid": "mid", "mlp_post": "post"},
}
_PARTS = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
_IN_ATTENTION = {"q", "k", "v", "z", "rot_q", "rot_k", "result", "pattern", "attn_scores"}
_IN_MLP = {"pre", "mid", "post", "pre_linear"}


def activation_name(name: str, layer: int | None = None, part: str | None = None) -> str:
    """The full name of a short one, as TransformerLens's `get_act_name` gives it.

    ("pattern", 3) is `blocks.3.attn.hook_pattern`, ("scale", 3, "ln1") `blocks.3.ln1.hook_scale`, "embed" `hook_embed`,
    "k6" `blocks.6.attn.hook_k`.
    """
    if layer is None and part is None:
        if "." in name or name.startswith("hook_"):
            return name
        if match := re.match(r"([a-z]+)(\d+)([a-z]?.*)", name):
            name, layer, part = match[1], int(match[2]), match[3]
    name = _SYNONYMS.get(name, name)
    if name in _IN_ATTENTION:
        part = "attn"
    elif name in _IN_MLP:
        part = "mlp"
    part = _PARTS.get(part or "", part or "")
    if name in ("scale", "normalized") and layer is None:
        part = "ln_final"
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{part}.hook_{name}" if part else f"{block}hook_{name}"


class Cache(dict[str, Tensor]):
    """Activations by hook name, of one run of `model`.

    `cache["pattern", 3]` is `cache["blocks.3.attn.hook_pattern"]`; a negative layer counts from the model's last,
    whatever was cached. Without a batch axis (`remove_batch_dim`) every shape below lacks it.
    """

    def __init__(self, model: Shard, has_batch_dim: bool = True) -> None:
        super().__init__()
        self.model = model
        self.has_batch_dim = has_batch_dim

    # ------------------------------------------------------------------------------------------------ access

    def __getitem__(self, key: Key) -> Tensor:
        name = self._full_name(key)
        if name in self.keys():
            return super().__getitem__(name)
        raise KeyError(f"no activation {name!r} was cached; cached are {_listed(list(self))}")

    def __contains__(self, key: object) -> bool:
        known = isinstance(key, str) or (isinstance(key, tuple) and 1 < len(key) < 4)
        return known and self._full_name(key) in self.keys()  # type: ignore[arg-type]

    def get(self, key: Key, default: T | None = None) -> Tensor | T | None:  # type: ignore[override]
        return self[key] if key in self else default  # noqa: SIM401 (it is what is suggested)

    def _full_name(self, key: Key) -> str:
        if isinstance(key, str):
            return key if key in self.keys() else activation_name(key)
        name, layer, part = (*key, None)[:3]
        if layer is not None and layer < 0:
            layer += self.model.config.n_layers
        return activation_name(name, layer, part)

    def __repr__(self) -> str:
        return f"Cache of {len(self)} activations: {_listed(list(self))}"

    def to(self, device: str | torch.device) -> Cache:
        """Move every activation to `device`; returns the cache itself."""
        for name, activation in self.items():
            super().__setitem__(name, activation.to(device))
        return self

    def remove_batch_dim(self) -> Cache:
        """Drop the batch axis of a batch of one; returns the cache itself. Raises ValueError for a larger batch."""
        if self.has_batch_dim:
            sizes = {activation.shape[0] for activation in self.values()}
            if sizes - {1}:
                raise ValueError(f"a batch of {max(sizes)} keeps its batch axis; remove_batch_dim needs a batch of one")
            for name, activation in self.items():
                super().__setitem__(name, activation[0])
            self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: SliceInput) -> Cache:
        """A new cache of some rows of the batch; an index drops the axis. Raises ValueError where there is none."""
        if not self.has_batch_dim:
            raise ValueError("this cache has no batch axis to take rows of; it was dropped by remove_batch_dim")
        chosen = Cache(self.model, has_batch_dim=not isinstance(batch_slice, int))
        for name, activation in self.items():
            chosen[name] = sliced(activation, batch_slice, dim=0)
        return chosen

    # ------------------------------------------------------------------------------------------------ stacks

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[Tensor, "layer ..."]:
        """One activation of every layer before `layer` (-1 or None: of all)."""
        return torch.stack([self[activation_name, at, sublayer_type] for at in range(self._upto(layer))])

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stack | tuple[Stack, Labels]:
        """The residual stream before each layer up to `layer` (-1 or None: after the last, too).

        `incl_mid` adds the stream between attention and MLP, `mlp_input` that of `layer` itself. With `apply_ln` the
        norm that `layer` reads through is applied: the final one with statistics of its own for every stream, as the
        logit lens does, those inside with the scale of the run.
        """
        last = self._upto(layer)
        found: list[tuple[str, Tensor]] = []
        for at in range(last + 1):
            if at == self.model.config.n_layers:
                found.append(("final_post", self["resid_post", at - 1]))
                continue
            found.append((f"{at}_pre", self["resid_pre", at]))
            if (incl_mid and at < last) or (mlp_input and at == last):
                found.append((f"{at}_mid", self["resid_mid", at]))
        final = last == self.model.config.n_layers
        stack = self._stacked(found, pos_slice)
        if apply_ln and final:
            stack = self._final_norm(stack)
        elif apply_ln:
            stack = self.apply_ln_to_stack(stack, last, mlp_input, pos_slice)
        return (stack, [label for label, _ in found]) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack | tuple[Stack, Labels]:
        """What was written to the residual stream before `layer` (-1 or None: by all layers); the sum is the stream."""
        if mode not in ("all", "mlp", "attn"):
            raise ValueError(f"mode={mode!r}: use 'all', 'mlp' or 'attn'")
        last = self._upto(layer)
        found = [("embed", self["hook_embed"])] if incl_embeds else []
        for at in range(last):
            if mode != "mlp":
                found.append((f"{at}_attn_out", self["attn_out", at]))
            if mode != "attn":
                found.append((f"{at}_mlp_out", self["mlp_out", at]))
        if mlp_input and mode != "mlp":
            found.append((f"{last}_attn_out", self["attn_out", last]))
        stack = self._stacked(found, pos_slice)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, mlp_input, pos_slice)
        return (stack, [label for label, _ in found]) if return_labels else stack

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: SliceInput = None,
        apply_ln: bool = False,
    ) -> Stack | tuple[Stack, Labels]:
        """What each head of the layers before `layer` wrote; `incl_remainder` adds all else, so that the sum is whole.

        Where `hook_result` was not cached it is computed from `hook_z`.
        """
        last = self._upto(layer)
        found: list[tuple[str, Tensor]] = []
        for at in range(last):
            for head, written in enumerate(self._head_results(at).unbind(dim=-2)):
                found.append((f"L{at}H{head}", written))
        if incl_remainder:
            found.append(("remainder", self._stream_before(last) - sum(written for _, written in found)))
        stack = self._stacked(found, pos_slice)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, pos_slice=pos_slice)
        return (stack, [label for label, _ in found]) if return_labels else stack

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: SliceInput = None,
        pos_slice: SliceInput = None,
        project_output_onto: Directions | None = None,
    ) -> Float[Tensor, "..."]:
        """What each neuron of a layer's MLP wrote: its activation times its row of `W_out`.

        With `project_output_onto`, [d_model] or [d_model output], only the part along those directions: the last axis
        is `output`, or is not there, and nothing of d_mlp · d_model numbers a position is made.
        """
        written = sliced(self.model.blocks[layer].mlp.W_out, neuron_slice, dim=0)
        activation = sliced(sliced(self["post", layer], pos_slice, dim=-2), neuron_slice, dim=-1)
        if project_output_onto is not None:
            written = written @ project_output_onto
            if project_output_onto.ndim == 1:
                return activation * written
        return activation[..., None] * written

    def stack_neuron_results(
        self,
        layer: int | None = -1,
        pos_slice: SliceInput = None,
        neuron_slice: SliceInput = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Directions | None = None,
        mlp_input: bool = False,
    ) -> Parts | tuple[Parts, Labels]:
        """What each neuron of the layers before `layer` wrote; `incl_remainder` adds all else, and makes the sum whole.

        With `mlp_input` the whole is what the MLP of `layer` reads. `project_output_onto` as in `get_neuron_results`;
        without it this is d_mlp · d_model numbers for each layer and position.
        """
        last, onto, neurons = self._upto(layer), _columns(project_output_onto), with_axis(neuron_slice)
        parts = [self.get_neuron_results(at, neurons, pos_slice, onto).movedim(-2, 0) for at in range(last)]
        numbers = sliced(torch.arange(self.model.config.d_mlp), neurons, dim=0).tolist()
        labels = [f"L{at}N{number}" for at in range(last) for number in numbers]
        if incl_remainder:
            whole = self["resid_mid", last] if mlp_input else self._stream_before(last)
            whole = _projected(sliced(whole, pos_slice, dim=-2), onto)
            parts.append((whole - sum(part.sum(dim=0) for part in parts))[None])
            labels.append("remainder")
        stack = torch.cat(parts) if parts else _projected(self._stacked([], pos_slice), onto)
        return self._finished(stack, labels, last, mlp_input, apply_ln, pos_slice, project_output_onto, return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        return_labels: bool = False,
        project_output_onto: Directions | None = None,
    ) -> Parts | tuple[Parts, Labels]:
        """Each head, each neuron (or, without `expand_neurons`, each MLP), the embedding, and the biases.

        They add up to the stream before `layer` (-1 or None: to the whole), or with `mlp_input` before its MLP. A Shard
        has no biases: their row, which TransformerLens has last, is zero. `project_output_onto` as in
        `get_neuron_results`.
        """
        last, onto = self._upto(layer), _columns(project_output_onto)
        found = [self.stack_head_results(last + mlp_input, True, pos_slice=pos_slice)]
        if expand_neurons:
            neurons = self.stack_neuron_results(last, pos_slice, None, True, project_output_onto=onto)
        else:
            found.append(
                self.decompose_resid(last, mode="mlp", pos_slice=pos_slice, incl_embeds=False, return_labels=True)
            )
        embed = sliced(self["hook_embed"], pos_slice, dim=-2)[None]
        found += [(embed, ["embed"]), (torch.zeros_like(embed), ["bias"])]
        found = [(_projected(stack, onto), labels) for stack, labels in found]
        if expand_neurons:
            found.insert(1, neurons)
        stack, labels = torch.cat([part for part, _ in found]), [label for _, part in found for label in part]
        return self._finished(stack, labels, last, mlp_input, apply_ln, pos_slice, project_output_onto, return_labels)

    def compute_head_results(self) -> None:
        """Put `hook_result` of every layer into the cache, from `hook_z`, where it is not there."""
        for layer in range(self.model.config.n_layers):
            self[f"blocks.{layer}.attn.hook_result"] = self._head_results(layer)

    def apply_ln_to_stack(
        self,
        residual_stack: Stack,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: SliceInput = None,
        batch_slice: SliceInput = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Stack:
        """Parts of the residual stream as `layer` reads them (-1 or None: as the unembedding does).

        They are divided by the norm's scale of the run; its learned weight is left out, as in TransformerLens.
        `pos_slice` is what was taken of the stack's positions; `batch_slice` is applied here. `recompute_ln` applies
        the final norm itself, with statistics of its own for each part.
        """
        last = self._upto(layer)
        if has_batch_dim:
            residual_stack = sliced(residual_stack, batch_slice, dim=1)
        if last == self.model.config.n_layers:
            if recompute_ln:
                return self._final_norm(residual_stack)
            scale = self["ln_final.hook_scale"]
        else:
            scale = self["scale", last, "ln2" if mlp_input else "ln1"]
        scale = sliced(scale, pos_slice, dim=-2)
        if self.has_batch_dim:
            scale = sliced(scale, batch_slice, dim=0)
        return residual_stack / scale

    def logit_attrs(
        self,
        residual_stack: Stack,
        tokens: str | int | Tensor,
        incorrect_tokens: str | int | Tensor | None = None,
        pos_slice: SliceInput = None,
        batch_slice: SliceInput = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "component *batch_and_pos"]:
        """What each part of the stack adds to the logit of `tokens`, less that of `incorrect_tokens`, before the cap.

        As in TransformerLens's compatibility mode: the final norm's weight belongs to the token's direction, so the
        parts of `decompose_resid` add up to the logit. `tokens` is one for all, [batch], or [batch pos].
        """
        directions = self.model.tokens_to_residual_directions(tokens)
        if incorrect_tokens is not None:
            other = self.model.tokens_to_residual_directions(incorrect_tokens)
            if other.shape != directions.shape:
                raise ValueError(
                    f"tokens of shape {list(directions.shape[:-1])} and incorrect_tokens of shape "
                    f"{list(other.shape[:-1])}; give both the same shape"
                )
            directions = directions - other
        stack = self.apply_ln_to_stack(residual_stack, -1, False, pos_slice, batch_slice, has_batch_dim)
        one_for_each_row = has_batch_dim and stack.ndim == 4 and directions.ndim == 2
        if one_for_each_row and len(directions) == stack.shape[1]:
            directions = directions[:, None]
        return (stack * directions).sum(dim=-1)

    # ------------------------------------------------------------------------------------------------ pieces

    def _upto(self, layer: int | None) -> int:
        n_layers = self.model.config.n_layers
        if layer is None or layer == -1:
            return n_layers
        if not 0 <= layer <= n_layers:
            raise ValueError(f"layer={layer}: this model has layers 0 to {n_layers - 1}, and {n_layers} for their end")
        return layer

    def _stream_before(self, layer: int) -> Float[Tensor, "*batch_and_pos d_model"]:
        return self["resid_post", layer - 1] if layer else self["hook_embed"]

    def _finished(
        self,
        stack: Parts,
        labels: Labels,
        layer: int,
        mlp_input: bool,
        apply_ln: bool,
        pos_slice: SliceInput,
        project_output_onto: Directions | None,
        return_labels: bool,
    ) -> Parts | tuple[Parts, Labels]:
        # A norm's scale divides what was projected as well as it would divide the whole.
        stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice) if apply_ln else stack
        if project_output_onto is not None and project_output_onto.ndim == 1:
            stack = stack.squeeze(-1)
        return (stack, labels) if return_labels else stack

    def _final_norm(self, stack: Stack) -> Stack:
        return self.model.ln_final(stack.reshape(1, -1, stack.shape[-1])).reshape(stack.shape)

    def _head_results(self, layer: int) -> Float[Tensor, "*batch pos head d_model"]:
        if (found := self.get(("result", layer))) is not None:
            return found
        W_O = self.model.blocks[layer].attn.W_O
        return einsum(self["z", layer].to(W_O.dtype), W_O, "... head d_head, head d_head d_model -> ... head d_model")

    def _stacked(self, found: Sequence[tuple[str, Tensor]], pos_slice: SliceInput) -> Stack:
        if not found:
            # Of the right shape, so that it can be stacked with others.
            return sliced(self["hook_embed"], pos_slice, dim=-2)[None][:0]
        return torch.stack([sliced(part, pos_slice, dim=-2) for _, part in found])


def _columns(directions: Directions | None) -> Float[Tensor, "width output"] | None:
    return directions[:, None] if directions is not None and directions.ndim == 1 else directions


def _projected(
    parts: Float[Tensor, "*parts width"], onto: Float[Tensor, "width output"] | None
) -> Float[Tensor, "..."]:
    return parts if onto is None else parts @ onto


def position_axis(name: str) -> int:
    """The axis of an activation, with its batch axis, that counts positions: the query's, of a pattern."""
    return -2 if name.removesuffix("_grad").endswith(("hook_pattern", "hook_attn_scores")) else 1


def with_axis(chosen: SliceInput) -> SliceInput:
    """The same choice, with the axis left in place also for a single index."""
    return [chosen] if isinstance(chosen, int) else chosen


def sliced(x: Tensor, chosen: SliceInput, dim: int) -> Tensor:
    """What is chosen of one axis of `x`; an index drops the axis."""
    if chosen is None:
        return x
    at: list[Any] = [slice(None)] * x.ndim
    at[dim] = slice(*chosen) if isinstance(chosen, tuple) else chosen
    return x[tuple(at)]


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
