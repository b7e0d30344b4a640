"""Hook points: places in the forward pass where an activation can be read, replaced, or its gradient seen.

Names and semantics are TransformerLens's (`transformer_lens/hook_points.py`): a hook is called as
`hook_fn(activation, hook=hook_point)`, and what it returns, unless None, replaces the activation. A hook point
that nobody watches returns its argument untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from shardscope.model.activation_cache import Cache, SliceInput, position_axis, sliced, with_axis

if TYPE_CHECKING:
    from shardscope.model.shard import Shard

# Called as hook_fn(activation, hook=hook_point).
HookFunction = Callable[..., Tensor | None]
NamesFilter = None | str | Sequence[str] | Callable[[str], bool]
NamedHooks = Iterable[tuple[str | Callable[[str], bool], HookFunction]]


class HookPoint(nn.Module):
    """An identity that hooks can be attached to. `name` is its path in the model, as in `blocks.0.attn.hook_q`."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        self.fwd_hooks: list[HookFunction] = []
        self.bwd_hooks: list[HookFunction] = []

    @property
    def watched(self) -> bool:
        return bool(self.fwd_hooks or self.bwd_hooks)

    def __call__(self, activation: Tensor) -> Tensor:
        # Not `forward`, because a module's call takes as long as a small product, and decoding a token passes through
        # more than a dozen points in each block.
        if self.fwd_hooks or self.bwd_hooks:
            # A compiled model leaves its graph here, so that a hook is ordinary Python that runs on every call.
            if torch.compiler.is_compiling():
                return torch.compiler.disable(HookPoint._run_hooks)(self, activation)
            return (_run_uncompiled() if "torch._dynamo" in sys.modules else HookPoint._run_hooks)(self, activation)
        return activation

    def _run_hooks(self, activation: Tensor) -> Tensor:
        if torch.is_grad_enabled() and activation.requires_grad:
            # A hook may write into what it is given, and the step before may need its own result for its gradient. It
            # is also how a backward hook sees only the gradient that flows through this point.
            activation = activation.clone()
        for hook in self.fwd_hooks:
            replacement = hook(activation, hook=self)
            if replacement is not None:
                activation = replacement
        if activation.requires_grad:
            for hook in self.bwd_hooks:
                activation.register_hook(lambda gradient, hook=hook: hook(gradient, hook=self))
        return activation

    def add_hook(self, hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd") -> Callable[[], None]:
        """Attach `hook` and return the function that takes it off again."""
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"a hook's direction is 'fwd' or 'bwd', not {dir!r}")
        hooks = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        # Something of its own, so that the same function attached twice is taken off once.
        attached = partial(hook)
        hooks.append(attached)

        def remove() -> None:
            hooks[:] = [other for other in hooks if other is not attached]

        return remove

    def remove_hooks(self) -> None:
        self.fwd_hooks.clear()
        self.bwd_hooks.clear()

    def layer(self) -> int:
        """The block that this point belongs to. Raises ValueError for points outside the blocks."""
        parts = self.name.split(".")
        if parts[0] != "blocks":
            raise ValueError(f"{self.name} belongs to no block")
        return int(parts[1])


@cache
def _run_uncompiled() -> Callable[[HookPoint, Tensor], Tensor]:
    """For where something may have been compiled; the compiler's machinery (torch._dynamo) takes a second to load."""
    return torch.compiler.disable(HookPoint._run_hooks)


class HookedModule(nn.Module):
    """A module whose hook points are named and can be attached to by name. Call `name_hooks()` once it is built."""

    hook_dict: dict[str, HookPoint]
    _attached: list[list[HookFunction]]  # the lists of all points, to be looked at together with every token

    @property
    def watched(self) -> bool:
        """Whether any hook is attached."""
        return any(self._attached)

    def name_hooks(self) -> None:
        self.hook_dict = {}
        for name, module in self.named_modules():
            if isinstance(module, HookPoint):
                module.name = name
                self.hook_dict[name] = module
            if not isinstance(module, nn.ModuleList):
                # Attributes like any other: nn.Module looks for submodules last, which takes as long as a call.
                module.__dict__.update(module.named_children())
        self._attached = [hooks for point in self.hook_dict.values() for hooks in (point.fwd_hooks, point.bwd_hooks)]

    def add_hook(
        self, name: str | Callable[[str], bool], hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd"
    ) -> Callable[[], None]:
        """Attach `hook` at every point that `name` (a name or a filter) selects; returns the function that undoes it.

        Raises KeyError if no point is selected.
        """
        removals = [point.add_hook(hook, dir) for point in self._select(name)]

        def remove() -> None:
            for undo in removals:
                undo()

        return remove

    def reset_hooks(self) -> None:
        """Take every hook off."""
        for point in self.hook_dict.values():
            point.remove_hooks()

    @contextmanager
    def hooks(self, fwd_hooks: NamedHooks = (), bwd_hooks: NamedHooks = ()) -> Iterator[Any]:
        """Within this context the hooks are attached; they are gone after it, also when it raises."""
        removals: list[Callable[[], None]] = []
        try:
            for name, hook in fwd_hooks:
                removals.append(self.add_hook(name, hook, "fwd"))
            for name, hook in bwd_hooks:
                removals.append(self.add_hook(name, hook, "bwd"))
            yield self
        finally:
            for undo in removals:
                undo()

    def run_with_hooks(self, *args: Any, fwd_hooks: NamedHooks = (), bwd_hooks: NamedHooks = (), **kwargs: Any) -> Any:
        """One call with hooks attached; for `bwd_hooks`, run the backward pass inside `hooks(...)` instead."""
        with self.hooks(fwd_hooks, bwd_hooks):
            return self(*args, **kwargs)

    def run_with_cache(
        self,
        *args: Any,
        names_filter: NamesFilter = None,
        stop_at_layer: int | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        pos_slice: SliceInput = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Cache]:
        """One call and the activations at the points that `names_filter` selects (None: all of them), each a copy.

        The arguments are TransformerLens's. `stop_at_layer=n` runs blocks 0 … n-1 only and returns the residual stream
        before block n; negative values count from the end. `remove_batch_dim` drops the batch axis of a batch of one
        from the activations. `pos_slice` is what to take of the positions (of a pattern: of the queries). `incl_bwd`
        calls `backward()` on the output, which must be a single number (`return_type="loss"`), and puts the gradients
        beside the activations, as in `cache["blocks.0.hook_resid_pre_grad"]`. `device` is where to put the activations.
        Raises ValueError where these do not fit together.
        """
        if incl_bwd and stop_at_layer is not None:
            raise ValueError("incl_bwd needs the loss, and stop_at_layer ends before it; leave one of them out")
        if incl_bwd and not torch.is_grad_enabled():
            raise ValueError("incl_bwd needs gradients, which are switched off here; leave torch.no_grad()")
        cache = Cache(cast("Shard", self))
        chosen = with_axis(pos_slice)

        def record(activation: Tensor, name: str) -> None:
            axis = position_axis(name)
            part = sliced(activation.detach(), chosen, axis)
            # A copy, because what was seen may be part of something larger, and be written into later. Only scores and
            # patterns, which are large, are made for those who watch and belong to nobody else but a gradient.
            ours = axis < 0 and chosen is None and not torch.is_grad_enabled()
            cache[name] = part.to(device, copy=not ours)

        def see(activation: Tensor, /, *, hook: HookPoint) -> None:
            record(activation, hook.name)

        def see_gradient(gradient: Tensor, /, *, hook: HookPoint) -> None:
            record(gradient, f"{hook.name}_grad")

        names = [point.name for point in self._select(names_filter)]
        backwards = [(name, see_gradient) for name in names] if incl_bwd else []
        with self.hooks(fwd_hooks=[(name, see) for name in names], bwd_hooks=backwards):
            output = self(*args, stop_at_layer=stop_at_layer, **kwargs)
            if incl_bwd:
                if not isinstance(output, Tensor) or output.numel() != 1:
                    raise ValueError('incl_bwd calls backward() on a single number; pass return_type="loss", too')
                output.backward()
        return output, cache.remove_batch_dim() if remove_batch_dim else cache

    def _select(self, names_filter: NamesFilter) -> list[HookPoint]:
        if names_filter is None:
            return list(self.hook_dict.values())
        if isinstance(names_filter, str):
            names_filter = [names_filter]
        if callable(names_filter):
            selected = [point for name, point in self.hook_dict.items() if names_filter(name)]
            if not selected:
                raise KeyError(f"the filter selects none of the {len(self.hook_dict)} hook points")
            return selected
        unknown = [name for name in names_filter if name not in self.hook_dict]
        if unknown:
            raise KeyError(f"no hook point {unknown[0]!r}; the names are the keys of model.hook_dict")
        return [self.hook_dict[name] for name in names_filter]
