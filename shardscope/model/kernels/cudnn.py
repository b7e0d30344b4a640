"""Causal attention over a window by cuDNN's own kernels, through the optional package `nvidia-cudnn-frontend`.

PyTorch's `scaled_dot_product_attention` reaches cuDNN's causal kernel but not its window. The package does; where it
is missing, `available()` is False and the Triton kernel of `flash.py` computes the same.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

QKV = Float[Tensor, "batch pos head d_head"]
LogSumExp = Float[Tensor, "batch head pos"]


@functools.cache
def available() -> bool:
    """Whether the package can be used with the cuDNN that PyTorch has loaded."""
    if not torch.cuda.is_available() or torch.version.hip:
        return False
    try:
        import cudnn
    except (ImportError, OSError):
        return False
    # Sliding windows in the backward kernel need cuDNN 9.2.
    return bool(cudnn.backend_version() >= 90200)


def forward(q: QKV, k: QKV, v: QKV, window: int) -> tuple[QKV, LogSumExp]:
    """The contiguous output, and each row's natural logsumexp. bfloat16 or float16, any strides with the last 1.

    Query i sees keys max(0, i - window + 1) … i; window 0: all keys up to i. Scores are scaled by d_head ** -0.5.
    """
    batch, pos, head, _ = q.shape
    z = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    logsumexp = torch.empty(batch, head, pos, dtype=torch.float32, device=q.device)
    graph, names = _forward_graph(tuple(q.shape), q.stride(), k.stride(), v.stride(), q.dtype, window, q.device)
    _run(graph, names, {"q": q, "k": k, "v": v, "z": z, "logsumexp": logsumexp})
    return z, logsumexp


def backward(dz: QKV, q: QKV, k: QKV, v: QKV, z: QKV, logsumexp: LogSumExp, window: int) -> tuple[QKV, QKV, QKV]:
    """Gradients of q, k and v, contiguous, from what `forward` took and gave."""
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    strides = (q.stride(), k.stride(), v.stride(), dz.stride())
    graph, names = _backward_graph(tuple(q.shape), *strides, q.dtype, window, q.device)
    tensors = {"q": q, "k": k, "v": v, "z": z, "dz": dz, "logsumexp": logsumexp, "dq": dq, "dk": dk, "dv": dv}
    _run(graph, names, tensors)
    return dq, dk, dv


# ------------------------------------------------------------------------------------------- cuDNN's graphs


@functools.cache
def _handle(device: torch.device) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


def _run(graph: Any, names: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    import cudnn

    device = tensors["q"].device
    handle = _handle(device)
    cudnn.set_stream(handle, torch.cuda.current_stream(device).cuda_stream)
    workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=device)
    graph.execute({names[name]: tensor for name, tensor in tensors.items()}, workspace, handle=handle)


def _new_graph(dtype: torch.dtype, device: torch.device) -> Any:
    import cudnn

    io = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF}[dtype]
    wide = cudnn.data_type.FLOAT
    return cudnn.pygraph(io_data_type=io, intermediate_data_type=wide, compute_data_type=wide, handle=_handle(device))


def _by_head(shape: tuple[int, ...], stride: tuple[int, ...]) -> dict[str, list[int]]:
    """cuDNN's axis order is batch head pos d_head."""
    order = (0, 2, 1, 3)
    return {"dim": [shape[i] for i in order], "stride": [stride[i] for i in order]}


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    _, pos, head, d_head = shape
    return (pos * head * d_head, head * d_head, d_head, 1)


def _mask(window: int) -> dict[str, Any]:
    import cudnn

    mask = {"diagonal_alignment": cudnn.diagonal_alignment.TOP_LEFT, "diagonal_band_right_bound": 0}
    return mask | ({"diagonal_band_left_bound": window} if window else {})


def _build(graph: Any) -> None:
    import cudnn

    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()


@functools.cache
def _forward_graph(
    shape: tuple[int, ...],
    q_stride: Any,
    k_stride: Any,
    v_stride: Any,
    dtype: torch.dtype,
    window: int,
    device: torch.device,
) -> tuple[Any, dict[str, Any]]:
    import cudnn

    graph = _new_graph(dtype, device)
    strides = {"q": q_stride, "k": k_stride, "v": v_stride}
    names = {name: graph.tensor(name=name, **_by_head(shape, stride)) for name, stride in strides.items()}
    z, logsumexp = graph.sdpa(
        name="attention", q=names["q"], k=names["k"], v=names["v"], is_inference=False,
        attn_scale=shape[-1] ** -0.5, **_mask(window),
    )  # fmt: skip
    axes = _by_head(shape, _contiguous(shape))
    z.set_output(True).set_dim(axes["dim"]).set_stride(axes["stride"])
    logsumexp.set_output(True).set_data_type(cudnn.data_type.FLOAT)
    _build(graph)
    return graph, names | {"z": z, "logsumexp": logsumexp}


@functools.cache
def _backward_graph(
    shape: tuple[int, ...], q_stride: Any, k_stride: Any, v_stride: Any, dz_stride: Any, dtype: torch.dtype,
    window: int, device: torch.device,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    import cudnn

    graph = _new_graph(dtype, device)
    batch, pos, head, _ = shape
    strides = {"q": q_stride, "k": k_stride, "v": v_stride, "z": _contiguous(shape), "dz": dz_stride}
    names = {name: graph.tensor(name=name, **_by_head(shape, stride)) for name, stride in strides.items()}
    names["logsumexp"] = graph.tensor(
        name="logsumexp", dim=[batch, head, pos, 1], stride=[head * pos, pos, 1, 1], data_type=cudnn.data_type.FLOAT
    )
    gradients = graph.sdpa_backward(
        name="attention_backward", q=names["q"], k=names["k"], v=names["v"], o=names["z"], dO=names["dz"],
        stats=names["logsumexp"], attn_scale=shape[-1] ** -0.5, **_mask(window),
    )  # fmt: skip
    axes = _by_head(shape, _contiguous(shape))
    for name, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
        names[name] = gradient.set_output(True).set_dim(axes["dim"]).set_stride(axes["stride"])
    _build(graph)
    return graph, names
