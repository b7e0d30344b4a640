"""The Triton kernels, run by Triton's interpreter on the CPU, against plain PyTorch in float32."""

from __future__ import annotations

import pytest
import torch

from shardscope.model.kernels import fp8
from tests.interpreter import interpreted

ATTENTION = """
from shardscope.model.attention import attention_scores
from shardscope.model.kernels.windowed import windowed_attention

for pos, window, documents in [(150, None, 0), (200, 70, 0), (256, 128, 0), (300, None, 1), (300, 33, 1)]:
    q, k, v = (torch.randn(2, pos, 2, 16, requires_grad=True) for _ in range(3))
    starts = None
    if documents:
        begins = torch.zeros(2, pos, dtype=torch.bool)
        begins[0, [0, 40, 41, 170]] = begins[1, [0, 130, 290]] = True
        starts = torch.where(begins, torch.arange(pos), 0).cummax(dim=1).values
    z, dz = windowed_attention(q, k, v, window, starts), torch.randn(2, pos, 2, 16)
    true = torch.einsum("bhqk,bkhd->bqhd", attention_scores(q, k, window, starts).softmax(-1), v)
    torch.testing.assert_close(z, true, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(x, (q, k, v), dz) for x in (z, true))
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
"""
SWIGLU = """
from shardscope.model.kernels import swiglu

both = torch.randn(5, 7, 48, requires_grad=True)
post, true = swiglu._forward(both), F.silu(both[..., :24]) * both[..., 24:]
torch.testing.assert_close(post, true)
dpost = torch.randn_like(post)
torch.testing.assert_close(torch.autograd.grad(post, both, dpost), torch.autograd.grad(true, both, dpost))
"""
ROUNDING = """
from shardscope.model.kernels import fp8

x = torch.randn(130, 96) * torch.logspace(-6, 3, 96)
x[0, :5] = torch.tensor([0.0, -0.0, 1e9, -1e9, 2.0**-10])
for dtype in (fp8.VALUE, fp8.GRADIENT):
    as_is, turned = fp8.round_both(x, 8.0, dtype)
    true = (x * 8).clamp(-fp8._LARGEST[dtype], fp8._LARGEST[dtype]).to(dtype).float()
    assert torch.equal(as_is.float(), true)
    assert torch.equal(turned.float().T, true)
"""
FP8 = """
from shardscope.model.kernels import fp8

fp8._product = lambda a, b, scale, dtype, exact=False: ((a.float() @ b.float().T) / scale).to(dtype)
x = torch.randn(80, 64).bfloat16().requires_grad_()
shapes = [(64, 128), (64, 128), (128, 64)]
W_gate, W_in, W_out = (torch.randn(shape).mul_(shape[0] ** -0.5).requires_grad_() for shape in shapes)
y, true = fp8.fp8_mlp(x, W_gate, W_in, W_out), (F.silu(x.float() @ W_gate) * (x.float() @ W_in)) @ W_out
dy = (torch.randn(80, 64) / 80).bfloat16()
ours = torch.autograd.grad(y, (x, W_gate, W_in, W_out), dy)
theirs = torch.autograd.grad(true, (x, W_gate, W_in, W_out), dy.float())
for mine, other in zip((y, *ours), (true, *theirs)):
    assert (mine.float() - other).norm() / other.norm() < 0.12
"""
LOSS = """
from shardscope.train.loss import _kernel_gradient, _plain_gradient

logits, targets = torch.randn(9, 37) * 20, torch.randint(37, (9,))
targets[3] = -100
counted, plain = torch.tensor(8.0), logits.clone()
sums = _plain_gradient(plain, targets, counted, 30.0, 1e-2, -100)
torch.testing.assert_close(_kernel_gradient(logits, targets, counted, 30.0, 1e-2, -100), sums, atol=1e-4, rtol=1e-4)
torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)
"""


@pytest.mark.parametrize(
    "claim", [ATTENTION, SWIGLU, ROUNDING, FP8, LOSS], ids=["attention", "swiglu", "rounding", "fp8", "loss"]
)
def test_a_kernel_computes_what_plain_pytorch_does(claim: str) -> None:
    interpreted(claim)


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and fp8.available(torch.device("cuda"))),
    reason="needs a GPU that multiplies 8-bit floats",
)
@pytest.mark.parametrize("dtype", [fp8.VALUE, fp8.GRADIENT])
def test_the_gpu_rounds_to_8_bits_as_the_bits_say(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(300, 520, device="cuda") * torch.logspace(-9, 6, 520, device="cuda")
    found = {}
    for hardware in (False, True):
        monkeypatch.setattr(fp8, "HARDWARE", hardware)
        found[hardware] = fp8.round_both(x.bfloat16(), 8.0, dtype)
    for bits, instruction in zip(found[False], found[True], strict=True):
        assert torch.equal(bits.float(), instruction.float())
