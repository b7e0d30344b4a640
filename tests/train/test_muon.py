import pytest
import torch

from shardscope.config import OptimizerConfig, ScheduleConfig, ShardConfig
from shardscope.model.shard import Shard
from shardscope.train.muon import (
    NEWTON_SCHULZ,
    ShardOptimizer,
    as_matrix,
    from_matrix,
    newton_schulz,
    split_parameters,
)
from shardscope.train.schedule import momentum


def small_model(seed=0):
    torch.manual_seed(seed)
    return Shard(ShardConfig(vocab_size=60, n_ctx=16, d_model=16, n_layers=2, n_heads=2, d_head=4, d_mlp=24, window=4))


def give_gradients(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("coefficients", ["deepseek-v4", "polar-express"])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 12, 40), (2, 40, 12), (1, 1, 7)])
def test_newton_schulz_gives_the_orthogonal_factor_of_the_svd(shape, coefficients):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    U, _, Vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    found = newton_schulz(matrices, coefficients).double()
    torch.testing.assert_close(found, U @ Vh, atol=2e-2 if coefficients == "deepseek-v4" else 0.15, rtol=0)


def test_half_the_steps_of_the_polar_express_leave_singular_values_within_a_few_percent_of_one():
    matrices = torch.randn(4, 48, 96, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(newton_schulz(matrices, "polar-express"))
    assert len(NEWTON_SCHULZ["polar-express"]) == 5
    torch.testing.assert_close(values, torch.ones_like(values), atol=0.15, rtol=0)


@pytest.mark.parametrize("name", ["mlp.W_in", "mlp.W_out", "attn.W_V"])
def test_normuon_gives_every_neuron_an_equal_share_of_the_first_step(name):
    model = small_model()
    give_gradients(model)
    parameter = model.blocks[0].get_parameter(name)
    before = parameter.detach().clone()
    config = OptimizerConfig(lr=0.01, clip=0.0, weight_decay=0.0, neuron_beta=0.95)
    ShardOptimizer(model, config).step()
    move = as_matrix(f"blocks.0.{name}", parameter.detach() - before)
    rows, cols = move.shape
    sizes = move.norm(dim=0 if cols >= rows else 1)
    torch.testing.assert_close(sizes, sizes.mean().expand_as(sizes), rtol=1e-3, atol=0)
    # The whole step is as long as without: the norm of an orthogonal matrix, scaled.
    assert move.norm().item() == pytest.approx(0.01 * 0.18 * max(rows, cols) ** 0.5 * min(rows, cols) ** 0.5, rel=1e-2)


def test_the_momentum_rises_from_its_start_to_its_value():
    optimizer = OptimizerConfig(momentum=0.95, momentum_start=0.85, momentum_warmup=0.1)
    schedule = ScheduleConfig(steps=100)
    assert [round(momentum(step, optimizer, schedule), 3) for step in (0, 5, 10, 99)] == [0.85, 0.9, 0.95, 0.95]
    assert momentum(0, OptimizerConfig(), schedule) == 0.95


def test_singular_values_over_three_decades_all_become_one():
    generator = torch.Generator().manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(1, 32, 32, generator=generator, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(1, 32, 32, generator=generator, dtype=torch.float64))
    spread = torch.logspace(-3, 0, 32, dtype=torch.float64)
    values = torch.linalg.svdvals(newton_schulz(U * spread @ V.mT))
    assert values.min() > 0.99
    assert values.max() < 1.01


def test_muon_takes_every_block_matrix_and_no_embedding_or_norm():
    matrices, rest = split_parameters(small_model())
    kinds = {"attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O", "mlp.W_gate", "mlp.W_in", "mlp.W_out"}
    assert set(matrices) == {f"blocks.{layer}.{kind}" for layer in (0, 1) for kind in kinds}
    assert set(rest) == {"embed.W_E", "ln_final.w"} | {f"blocks.{i}.ln{n}.w" for i in (0, 1) for n in (1, 2)}


def test_heads_are_columns_of_a_query_matrix_and_rows_of_an_output_matrix():
    W_Q, W_O = torch.randn(2, 16, 4), torch.randn(2, 4, 16)
    x = torch.randn(16)
    torch.testing.assert_close(x @ as_matrix("blocks.0.attn.W_Q", W_Q), torch.cat([x @ W_Q[0], x @ W_Q[1]]))
    assert as_matrix("blocks.0.attn.W_O", W_O).shape == (8, 16)
    for name, tensor in (("a.W_Q", W_Q), ("a.W_O", W_O), ("a.W_in", torch.randn(3, 5))):
        assert torch.equal(from_matrix(name, as_matrix(name, tensor), tensor), tensor)


def test_the_first_muon_step_moves_along_the_svd_of_the_gradient():
    model = small_model()
    give_gradients(model)
    gradient, before = model.blocks[0].mlp.W_in.grad.clone(), model.blocks[0].mlp.W_in.detach().clone()
    ShardOptimizer(model, OptimizerConfig(lr=0.01, clip=0.0)).step()
    U, _, Vh = torch.linalg.svd(gradient, full_matrices=False)
    expected = before * (1 - 0.01 * 0.1) - 0.01 * 0.18 * 24**0.5 * (U @ Vh)
    torch.testing.assert_close(model.blocks[0].mlp.W_in.detach(), expected, atol=1e-4, rtol=0)


def test_the_rest_moves_as_torch_adamw_at_a_quarter_of_the_rate_without_decay():
    model, twin = small_model(), small_model()
    ours = ShardOptimizer(model, OptimizerConfig(lr=0.02, clip=0.0))
    theirs = torch.optim.AdamW(split_parameters(twin)[1].values(), lr=0.005, betas=(0.9, 0.95), weight_decay=0.0)
    for seed in range(3):
        give_gradients(model, seed), give_gradients(twin, seed)
        ours.step()
        theirs.step()
    for (name, mine), other in zip(split_parameters(model)[1].items(), split_parameters(twin)[1].values(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


def test_adamw_for_everything_is_torch_adamw_with_decay_on_matrices_alone():
    model, twin = small_model(), small_model()
    ours = ShardOptimizer(model, OptimizerConfig(name="adamw", lr=0.02, clip=0.0))
    matrices, rest = split_parameters(twin)
    groups = [{"params": matrices.values(), "weight_decay": 0.1}, {"params": rest.values(), "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95))
    for seed in range(3):
        give_gradients(model, seed), give_gradients(twin, seed)
        ours.step(lr_scale=0.5)
        for group in theirs.param_groups:
            group["lr"] = 0.01
        theirs.step()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_momentum_is_nesterovs():
    model = small_model()
    optimizer = ShardOptimizer(model, OptimizerConfig(lr=1e-3, clip=0.0))
    gradients, momentum = [], torch.zeros(16, 24)
    for seed in range(2):
        give_gradients(model, seed)
        gradients.append(model.blocks[0].mlp.W_in.grad.clone())
        before = model.blocks[0].mlp.W_in.detach().clone()
        optimizer.step()
    for gradient in gradients:
        momentum = 0.95 * momentum + gradient
    U, _, Vh = torch.linalg.svd(0.95 * momentum + gradients[-1], full_matrices=False)
    expected = before * (1 - 1e-3 * 0.1) - 1e-3 * 0.18 * 24**0.5 * (U @ Vh)
    torch.testing.assert_close(model.blocks[0].mlp.W_in.detach(), expected, atol=1e-5, rtol=0)


def test_step_returns_the_norm_and_clips_what_adamw_sees():
    model = small_model()
    give_gradients(model)
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    optimizer = ShardOptimizer(model, OptimizerConfig(lr=1e-3, clip=1.0))
    torch.testing.assert_close(optimizer.step(), expected)
    seen = optimizer.state_dict()["embed.W_E.exp_avg"] / 0.1
    torch.testing.assert_close(seen, model.embed.W_E.grad / expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_state(bad, name):
    model = small_model()
    optimizer = ShardOptimizer(model, OptimizerConfig(name=name))
    give_gradients(model)
    optimizer.step()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = optimizer.state_dict()
    give_gradients(model, seed=2)
    model.blocks[1].ln1.w.grad[3] = bad
    assert not optimizer.step().isfinite()
    for n, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[n]), n
    for key, tensor in optimizer.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_a_saved_optimizer_goes_on_as_if_never_stopped():
    model, twin = small_model(), small_model()
    optimizer = ShardOptimizer(model, OptimizerConfig(lr=1e-2))
    for seed in range(2):
        give_gradients(model, seed)
        optimizer.step()
    twin.load_state_dict(model.state_dict())
    resumed = ShardOptimizer(twin, OptimizerConfig(lr=1e-2))
    resumed.load_state_dict({key: tensor.clone() for key, tensor in optimizer.state_dict().items()})
    for m, o in ((model, optimizer), (twin, resumed)):
        give_gradients(m, 7)
        o.step()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_state_of_another_optimizer_is_refused_by_name():
    optimizer = ShardOptimizer(small_model(), OptimizerConfig())
    state = optimizer.state_dict()
    first = sorted(state)[0]
    with pytest.raises(ValueError, match=f"lacks '{first}'"):
        optimizer.load_state_dict({k: v for k, v in state.items() if k != first})
    with pytest.raises(ValueError, match=r"has an unknown 'zzz'"):
        optimizer.load_state_dict({**state, "zzz": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has shape \[1\]"):
        optimizer.load_state_dict({**state, first: torch.zeros(1)})


def test_a_parameter_without_gradient_is_an_error():
    model = small_model()
    with pytest.raises(ValueError, match="no gradient"):
        ShardOptimizer(model, OptimizerConfig()).step()


def test_a_loss_that_is_not_finite_skips_the_step_even_with_finite_gradients():
    model = small_model()
    optimizer = ShardOptimizer(model, OptimizerConfig())
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    give_gradients(model)
    assert optimizer.step(1.0, torch.tensor(torch.nan)).isfinite()
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    optimizer.step(1.0, torch.tensor(1.0))
    assert not all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_gradients_that_lie_where_a_step_reads_them_give_the_step_of_those_that_are_gathered() -> None:
    model, twin = small_model(), small_model()
    config = OptimizerConfig(lr=1e-2, neuron_beta=0.95)
    lying, gathered = ShardOptimizer(model, config), ShardOptimizer(twin, config)
    buffers = lying.gradient_buffers()
    assert set(buffers) == set(model.parameters())
    for seed in range(3):
        give_gradients(twin, seed)
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            mine.grad = buffers[mine].copy_(theirs.grad)
        lying.step()
        gathered.step()
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_each_group_of_muon_holds_matrices_that_are_laid_out_alike() -> None:
    optimizer = ShardOptimizer(small_model(), OptimizerConfig())
    kinds = [{name.rpartition(".")[2] for name in update.parameters} for update in optimizer.updates[:-1]]
    assert kinds == [{"W_Q", "W_K", "W_V"}, {"W_O"}, {"W_gate", "W_in"}, {"W_out"}]
