"""Muon for the block matrices, AdamW for embeddings and norms.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's Nesterov momentum by
the nearest orthogonal matrix, so that every direction of the matrix learns at one rate. The nearest orthogonal
matrix of U S Vᵀ is U Vᵀ; Newton–Schulz steps approach it with matrix products alone.

Every block matrix takes part (W_Q, W_K, W_V, W_O, W_gate, W_in, W_out), embeddings and norm scales do not.
W_Q, W_K and W_V [head d_model d_head] count as one d_model x (head d_head) matrix each, W_O [head d_head d_model]
as (head d_head) x d_model.

Where ours differs from the original: ten Newton–Schulz steps instead of five, eight that pull all singular values
up quickly and two that converge to exactly 1 (the form of DeepSeek-V4); the update is scaled by
0.18 sqrt(max(rows, cols)), which gives its entries AdamW's usual size, so both share one learning rate; weight
decay is decoupled. Matrices of one shape go through the steps as one batch. Clipping happens here too, and a step
whose gradient is not finite changes nothing, without the host ever waiting for the device.

By choice: the five steps of the Polar Express (Amsel et al. 2025, arXiv:2505.16932), each the best polynomial for the
singular values that the one before leaves; NorMuon (Li et al. 2025, arXiv:2510.05491), which divides each neuron's
part of the update by a running root mean square of it and keeps the whole update's norm; a momentum that rises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from shardscope.config import OptimizerConfig
from shardscope.model.kernels.capture import PLAIN, captured
from shardscope.train.sharding import as_sharded, is_sharded, local, part_of, whole

# (a, b, c) of each step. The Polar Express expects singular values up to 1/1.02, hence `_MARGIN`.
NEWTON_SCHULZ = {
    "deepseek-v4": 8 * ((3.4445, -4.7750, 2.0315),) + 2 * ((2.0, -1.5, 0.5),),
    "polar-express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}
_MARGIN = {"deepseek-v4": 1.0, "polar-express": 1.02}

_FUSED_HEADS = {
    "W_Q": "head d_model d_head -> d_model (head d_head)",
    "W_K": "head d_model d_head -> d_model (head d_head)",
    "W_V": "head d_model d_head -> d_model (head d_head)",
    "W_O": "head d_head d_model -> (head d_head) d_model",
}
_AS_IT_IS = "rows cols -> rows cols"

Function = Callable[..., Tensor]


def _plainly(function: Function) -> Function:
    return function


def newton_schulz(
    matrices: Float[Tensor, "matrix rows cols"], coefficients: str = "deepseek-v4"
) -> Float[Tensor, "matrix rows cols"]:
    """The orthogonal polar factor of every matrix: singular values become 1, singular vectors stay.

    A step maps each singular value s to a s + b s³ + c s⁵. Runs in bfloat16 on CUDA and in the given dtype elsewhere.
    """
    return _polar_factors(matrices, coefficients).to(matrices.dtype)


def _polar_factors(matrices: Tensor, coefficients: str, fused: Callable[[Function], Function] = _plainly) -> Tensor:
    """`newton_schulz`, in the dtype in which it is computed."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return _polar_factors(matrices.mT, coefficients, fused).mT
    x = fused(_normalised)(matrices, _MARGIN[coefficients])
    for a, b, c in NEWTON_SCHULZ[coefficients]:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _normalised(matrices: Tensor, margin: float) -> Tensor:
    """The matrices with singular values of at most 1 / margin."""
    x = matrices / (margin * torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    return x.bfloat16() if x.is_cuda else x


def _pattern(name: str) -> str:
    """How a block parameter is laid out as a matrix, in einops' words."""
    return _FUSED_HEADS.get(name.rsplit(".", 1)[-1], _AS_IT_IS)


def as_matrix(name: str, tensor: Tensor) -> Float[Tensor, "rows cols"]:
    """A block parameter, or its gradient, as the matrix that Muon orthogonalises."""
    return rearrange(tensor, _pattern(name))


def from_matrix(name: str, matrix: Float[Tensor, "rows cols"], like: Tensor) -> Tensor:
    """The inverse of `as_matrix`, in the shape of the parameter `like`."""
    return _all_from_matrices(matrix[None], _pattern(name), len(like))[0]


def _all_as_matrices(tensors: Tensor, pattern: str) -> Float[Tensor, "matrix rows cols"]:
    inside, outside = pattern.split(" -> ")
    return rearrange(tensors, f"matrix {inside} -> matrix {outside}")


def _all_from_matrices(matrices: Float[Tensor, "matrix rows cols"], pattern: str, heads: int) -> Tensor:
    inside, outside = pattern.split(" -> ")
    sizes = {} if pattern == _AS_IT_IS else {"head": heads}
    return rearrange(matrices, f"matrix {outside} -> matrix {inside}", **sizes)


def split_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """(the block matrices, which Muon takes; the rest: embeddings and norm scales), by name."""
    matrices: dict[str, nn.Parameter] = {}
    rest: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        takes = name.startswith("blocks.") and parameter.ndim >= 2
        (matrices if takes else rest)[name] = parameter
    return matrices, rest


def orthogonalise(
    updates: Float[Tensor, "matrix rows cols"],
    group: dist.ProcessGroup | None = None,
    coefficients: str = "deepseek-v4",
    fused: Callable[[Function], Function] = _plainly,
) -> Float[Tensor, "matrix rows cols"]:
    """The polar factors, in the dtype in which they are computed; the matrices are divided among the ranks of `group`.

    Every rank passes the same updates and gets all results. None: all of them are computed here.
    """
    ranks = 1 if group is None else dist.get_world_size(group)
    if ranks == 1:
        return _polar_factors(updates, coefficients, fused)
    share = -(-len(updates) // ranks)
    first = min(dist.get_rank(group) * share, len(updates))
    mine = updates[first : first + share]
    # Ranks exchange equal shares, so the last ones are filled up.
    done = updates.new_zeros(share, *updates.shape[1:], dtype=torch.bfloat16 if updates.is_cuda else updates.dtype)
    if len(mine):
        done[: len(mine)] = _polar_factors(mine, coefficients, fused)
    shares = [torch.empty_like(done) for _ in range(ranks)]
    dist.all_gather(shares, done, group=group)
    return torch.cat(shares)[: len(updates)]


class ShardOptimizer:
    """Muon for the block matrices and AdamW for the rest, or AdamW for everything (`config.name == "adamw"`).

    `step(lr_scale)` clips the gradient to `config.clip`, updates, and returns the gradient's norm before clipping.
    `group` are the ranks, each holding the same weights and gradients, that divide Newton–Schulz among themselves.
    `compiled`: the elementwise updates are run through torch.compile. `graphs`: a step is replayed as a CUDA graph
    while gradients lie where they lay, which spares Python the thousand kernels of it; for one process on CUDA.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        group: dist.ProcessGroup | None = None,
        compiled: bool = False,
        graphs: bool = False,
    ) -> None:
        self.config, self.graphs = config, graphs
        matrices, rest = split_parameters(model)
        self.parameters = [*matrices.values(), *rest.values()]
        self.inputs = _Inputs(*torch.zeros(3, device=self.parameters[0].device).unbind())
        self._addresses: tuple[int, ...] = ()
        self._calls = 0  # with gradients at these addresses
        self._graph: tuple[Callable[[], None], Tensor] | None = None
        self.updates: list[_Muon | _AdamW] = []
        if config.name == "muon":
            alike: dict[tuple[str, tuple[int, ...]], dict[str, nn.Parameter]] = {}
            for name, parameter in matrices.items():
                alike.setdefault((_pattern(name), tuple(parameter.shape)), {})[name] = parameter
            self.updates += [_Muon(members, config, group, compiled) for members in alike.values()]
            self.updates.append(_AdamW(rest, config, compiled, lr=config.lr * config.adamw_ratio, decay=0.0))
        else:
            self.updates.append(_AdamW(matrices, config, compiled, lr=config.lr, decay=config.weight_decay))
            self.updates.append(_AdamW(rest, config, compiled, lr=config.lr, decay=0.0))

    @torch.no_grad()
    def step(
        self, lr_scale: float = 1.0, loss: Float[Tensor, ""] | None = None, momentum: float | None = None
    ) -> Float[Tensor, ""]:
        """Update every parameter at `lr_scale` times its learning rate; returns the gradient's global norm.

        `momentum` is Muon's for this step (None: the config's). When the norm, or `loss` if it is given, is not finite,
        weights and optimizer state stay exactly as they were.
        Raises ValueError if a parameter has no gradient.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if len(gradients) < len(self.parameters):
            raise ValueError("a parameter has no gradient; call backward() before step()")
        self.inputs.rate.fill_(lr_scale)
        self.inputs.momentum.fill_(self.config.momentum if momentum is None else momentum)
        self.inputs.loss.copy_(torch.zeros(()) if loss is None else loss.detach())
        return self._replayed(gradients) if self.graphs else self._update(gradients)

    def _update(self, gradients: list[Tensor]) -> Float[Tensor, ""]:
        """The step, without a look at any number from the host."""
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        clipped = (self.config.clip / (norm + 1e-6)).clamp(max=1.0) if self.config.clip else torch.ones_like(norm)
        gradient = _Gradient(
            scale=clipped,
            finite=norm.isfinite() & self.inputs.loss.isfinite(),
            rate=self.inputs.rate,
            momentum=self.inputs.momentum,
        )
        for update in self.updates:
            update.step(gradient)
        return norm

    def _replayed(self, gradients: list[Tensor]) -> Float[Tensor, ""]:
        addresses = tuple(gradient.data_ptr() for gradient in gradients)
        if addresses != self._addresses:
            self._addresses, self._calls, self._graph = addresses, 0, None
        self._calls += 1
        if self._calls <= PLAIN:  # compiling is over by then
            return self._update(gradients)
        if self._graph is None:
            self._graph = captured(lambda: self._update(gradients), gradients[0].device)
        replay, norm = self._graph
        replay()
        return norm.clone()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def gradient_buffers(self) -> dict[nn.Parameter, Tensor]:
        """A tensor of zeros for every parameter's gradient, lying where a step reads it without gathering it first."""
        return {parameter: buffer for update in self.updates for parameter, buffer in update.buffers().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name, shaped like the parameter: `.momentum`, or `.exp_avg`, `.exp_avg_sq`; and `.steps`.

        What the ranks share, `sharding.gathered` makes whole.
        """
        state: dict[str, Tensor] = {}
        for update in self.updates:
            state |= update.state_dict()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave, made whole.

        Raises ValueError that names what is missing, left over, or misshapen.
        """
        own = self.state_dict()
        for verb, names in (("lacks", own.keys() - state.keys()), ("has an unknown", state.keys() - own.keys())):
            if names:
                raise ValueError(f"the optimizer state {verb} {sorted(names)[0]!r}; was it saved by another optimizer?")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"the optimizer state's {name!r} has shape {list(state[name].shape)}, "
                    f"the model needs {list(tensor.shape)}"
                )
        for update in self.updates:
            update.load_state_dict(state)


@dataclass(frozen=True)
class _Inputs:
    """What a step is told, on the device: tensors that stay, so that a captured step reads them."""

    rate: Float[Tensor, ""]  # share of the peak learning rate
    momentum: Float[Tensor, ""]
    loss: Float[Tensor, ""]


@dataclass(frozen=True)
class _Gradient:
    """What a step does with the raw gradients, as tensors on the device."""

    scale: Float[Tensor, ""]
    finite: Tensor  # a bool; False: this step changes nothing
    rate: Float[Tensor, ""]
    momentum: Float[Tensor, ""]  # Muon's


class _Together:
    """Parameters that are updated together: this rank's parts of all of them as one long vector."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], compiled: bool) -> None:
        self.parameters = dict(parameters)
        self._fused: Callable[[Function], Function] = _compiled if compiled else _plainly
        self._buffer: Tensor | None = None
        self._views: list[Tensor] = []

    @property
    def parts(self) -> list[Tensor]:
        return [local(p) for p in self.parameters.values()]

    def buffers(self) -> dict[nn.Parameter, Tensor]:
        self._buffer = self.zeros()
        self._views = list(self.named(self._buffer).values())
        return dict(zip(self.parameters.values(), self._views, strict=True))

    def gradients(self) -> Float[Tensor, " element"]:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self._buffer is not None and all(g is view for g, view in zip(gradients, self._views, strict=True)):
            return self._buffer
        return self._flat(gradients)

    def zeros(self) -> Float[Tensor, " element"]:
        return torch.zeros_like(self._flat(self.parts))

    def named(self, flat: Float[Tensor, " element"]) -> dict[str, Tensor]:
        """What `flat` holds for each parameter: a view in its shape, shared among the ranks as it is."""
        parts = flat.split([part.numel() for part in self.parts])
        return {name: as_sharded(part, p) for (name, p), part in zip(self.parameters.items(), parts, strict=True)}

    def take_over(self, flat: Float[Tensor, " element"], state: Mapping[str, Tensor], key: str) -> None:
        """Fill `flat` from whole tensors."""
        flat.copy_(self._flat(part_of(state[f"{name}.{key}"], p) for name, p in self.parameters.items()))

    def _flat(self, tensors: Iterable[Tensor]) -> Float[Tensor, " element"]:
        return torch.cat([local(tensor).reshape(-1) for tensor in tensors])


class _Muon(_Together):
    """Muon for matrices of one shape that are laid out alike."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        group: dist.ProcessGroup | None,
        compiled: bool,
    ) -> None:
        super().__init__(parameters, compiled)
        self.config, self.group = config, group
        self.momentum = self.zeros()
        name, first = next(iter(self.parameters.items()))
        self.pattern, self.shape = _pattern(name), first.shape
        rows, cols = as_matrix(name, torch.empty(self.shape, device="meta")).shape
        # A neuron is what a matrix has most of: an MLP's hidden channel, and of a square matrix an output.
        self.over = 1 if cols >= rows else 2
        neurons = (len(self.parameters), 1, cols) if self.over == 1 else (len(self.parameters), rows, 1)
        self.spread = self.momentum.new_zeros(neurons) if config.neuron_beta else None
        self.scale = 0.18 * max(rows, cols) ** 0.5

    def step(self, gradient: _Gradient) -> None:
        raw = self.gradients()
        update = self._fused(_nesterov)(raw, self.momentum, gradient.scale, gradient.finite, gradient.momentum)
        move = orthogonalise(self._as_matrices(update), self.group, self.config.newton_schulz, self._fused)
        lr = self.config.lr * gradient.rate
        factor = torch.where(gradient.finite, -lr * self.scale, 0.0)
        if self.spread is None:
            move = move * factor
        else:
            beta = self.config.neuron_beta
            move = self._fused(_evened_out)(move, self.spread, gradient.finite, factor, self.over, beta)
        torch._foreach_mul_(self.parts, torch.where(gradient.finite, 1 - lr * self.config.weight_decay, 1.0))
        torch._foreach_add_(self.parts, self._from_matrices(move))

    def _as_matrices(self, update: Float[Tensor, " element"]) -> Float[Tensor, "matrix rows cols"]:
        if any(map(is_sharded, self.parameters.values())):
            tensors = torch.stack([whole(part) for part in self.named(update).values()])
        else:
            tensors = update.view(-1, *self.shape)
        return _all_as_matrices(tensors, self.pattern)

    def _from_matrices(self, moves: Float[Tensor, "matrix rows cols"]) -> list[Tensor]:
        """Each parameter's, of this rank. In one piece, which is what adds fastest."""
        tensors = _all_from_matrices(moves, self.pattern, self.shape[0]).contiguous()
        return [part_of(move, p) for move, p in zip(tensors, self.parameters.values(), strict=True)]

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"{name}.momentum": tensor for name, tensor in self.named(self.momentum.clone()).items()}
        if self.spread is not None:
            state |= {f"{name}.neurons": self.spread[i].clone() for i, name in enumerate(self.parameters)}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.take_over(self.momentum, state, "momentum")
        if self.spread is not None:
            self.spread.copy_(torch.stack([state[f"{name}.neurons"] for name in self.parameters]))


class _AdamW(_Together):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, compiled: bool, lr: float, decay: float
    ) -> None:
        super().__init__(parameters, compiled)
        self.betas, self.lr, self.decay = config.betas, lr, decay
        self.exp_avg, self.exp_avg_sq = self.zeros(), self.zeros()
        self.steps = torch.zeros((), device=self.exp_avg.device)

    def step(self, gradient: _Gradient) -> None:
        raw = self.gradients()
        self.steps += gradient.finite
        direction = self._fused(_adam)(
            raw, self.exp_avg, self.exp_avg_sq, self.steps, gradient.scale, gradient.finite, *self.betas
        )
        lr = self.lr * gradient.rate
        move = direction * torch.where(gradient.finite, -lr, 0.0)
        if self.decay:
            torch._foreach_mul_(self.parts, torch.where(gradient.finite, 1 - lr * self.decay, 1.0))
        torch._foreach_add_(self.parts, [local(part) for part in self.named(move).values()])

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"{name}.steps": self.steps.clone() for name in self.parameters}
        for key, flat in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)):
            state |= {f"{name}.{key}": tensor for name, tensor in self.named(flat.clone()).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.take_over(self.exp_avg, state, "exp_avg")
        self.take_over(self.exp_avg_sq, state, "exp_avg_sq")
        for name in self.parameters:
            self.steps.copy_(state[f"{name}.steps"])


def _evened_out(move: Tensor, spread: Tensor, finite: Tensor, factor: Tensor, over: int, beta: float) -> Tensor:
    """`factor` times `move`, every neuron's part of it over its running root mean square, `spread`, before.

    The norm of each matrix stays what it was.
    """
    move = move.float()
    square = move.square().mean(dim=over, keepdim=True)
    spread.copy_(torch.where(finite, beta * spread + (1 - beta) * square, spread))
    even = move / (spread.sqrt() + 1e-8)
    norms = [torch.linalg.matrix_norm(x, keepdim=True) for x in (move, even)]
    return even * (factor * norms[0] / (norms[1] + 1e-8))


def _nesterov(raw: Tensor, momentum: Tensor, scale: Tensor, finite: Tensor, mu: Tensor) -> Tensor:
    """Momentum in place; returns the look-ahead mu * momentum + gradient."""
    gradient = torch.where(finite, raw * scale, 0.0)
    momentum.copy_(torch.where(finite, mu * momentum + gradient, momentum))
    return mu * momentum + gradient


def _adam(
    raw: Tensor, mean: Tensor, square: Tensor, steps: Tensor, scale: Tensor, finite: Tensor, beta1: float, beta2: float
) -> Tensor:
    """Moments in place; returns the bias-corrected mean / (sqrt(square) + 1e-8)."""
    gradient = torch.where(finite, raw * scale, 0.0)
    mean.copy_(torch.where(finite, beta1 * mean + (1 - beta1) * gradient, mean))
    square.copy_(torch.where(finite, beta2 * square + (1 - beta2) * gradient.square(), square))
    steps = steps.clamp(min=1)
    root = (square / (1 - beta2**steps)).sqrt()
    return mean / (1 - beta1**steps) / (root + 1e-8)


@cache
def _compiled(function: Function) -> Function:
    # Not at import: the compiler's machinery takes a second to load.
    return torch.compile(function, dynamic=False)
