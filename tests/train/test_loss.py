import pytest
import torch
from torch.nn import functional as F

from shardscope.train import loss as loss_module
from shardscope.train.loss import capped_cross_entropy


def float64_loss(hidden, W_E, targets, cap, z_loss, ignore_index=-100):
    """The definition, by autograd in double precision."""
    logits = cap * torch.tanh(hidden.double() @ W_E.double().T / cap)
    z = logits.logsumexp(-1)[targets != ignore_index].square().mean()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=ignore_index) + z_loss * z


def example(batch=2, pos=37, d_model=16, vocab=301, seed=0, scale=6.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, pos, d_model, generator=generator) * scale
    W_E = torch.randn(vocab, d_model, generator=generator)
    targets = torch.randint(vocab, (batch, pos), generator=generator)
    return hidden.requires_grad_(), W_E.requires_grad_(), targets


@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 1 << 24])
def test_loss_and_gradients_are_the_definition_in_double_precision(ignored, chunk_bytes, monkeypatch):
    monkeypatch.setitem(loss_module._CHUNK_BYTES, "cpu", chunk_bytes)
    hidden, W_E, targets = example()
    targets[torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < ignored] = -100
    loss, metrics = capped_cross_entropy(hidden, W_E, targets, cap=30.0, z_loss=1e-2)
    ours = torch.autograd.grad(loss * 0.5, (hidden, W_E))
    reference = float64_loss(hidden, W_E, targets, 30.0, 1e-2)
    theirs = torch.autograd.grad(reference * 0.5, (hidden, W_E))
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    assert metrics["cross_entropy"].item() + 1e-2 * metrics["z"].item() == pytest.approx(loss.item(), rel=1e-5)
    for mine, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, true.float(), rtol=1e-4, atol=1e-7)


def test_without_cap_and_z_loss_it_is_torch_cross_entropy():
    hidden, W_E, targets = example(scale=0.1)
    loss, metrics = capped_cross_entropy(hidden, W_E, targets, cap=1e6, z_loss=0.0)
    torch.testing.assert_close(loss, F.cross_entropy((hidden @ W_E.T).flatten(0, 1), targets.flatten()))
    assert not metrics["cross_entropy"].requires_grad


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    loss, metrics = capped_cross_entropy(
        torch.zeros(1, 4, 8), torch.ones(50, 8), torch.zeros(1, 4, dtype=torch.long), 30.0, 0.0
    )
    assert loss.item() == pytest.approx(torch.tensor(50.0).log().item())
    assert metrics["z"].item() == pytest.approx(torch.tensor(50.0).log().item() ** 2)


def test_with_no_target_the_loss_and_its_gradient_are_zero():
    hidden, W_E, targets = example()
    loss, _ = capped_cross_entropy(hidden, W_E, torch.full_like(targets, -100), 30.0, 1e-4)
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.abs().max() == 0


def test_evaluation_keeps_no_gradients():
    hidden, W_E, targets = example()
    with torch.no_grad():
        loss, _ = capped_cross_entropy(hidden, W_E, targets, 30.0, 1e-4)
    assert not loss.requires_grad
