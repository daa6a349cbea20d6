import pytest
import torch
import torch.nn.functional as F

from nvg.layers import SingleStreamBlock, branch_scales, drop_path_rates, rotary_table
from nvg.layers.block import _linear_gelu, normed_and_turned


def make_block():
    torch.manual_seed(0)
    return SingleStreamBlock(128, 4)


def inputs(num=3):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 3, (num, 5, 11), generator=generator)
    return (
        torch.randn(num, 5, 128, generator=generator),
        torch.randn(num, 128, generator=generator),
        rotary_table(ids),
    )


def test_dropped_branch_leaves_the_sequence_untouched():
    x, vec, table = inputs()
    out = make_block()(x, vec, table, torch.tensor([0.0, 1.0, 2.0]))
    plain = make_block()(x, vec, table)
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1], plain[1])
    torch.testing.assert_close(out[2] - x[2], 2 * (plain[2] - x[2]), rtol=1e-4, atol=1e-5)


def test_sequences_are_independent():
    x, vec, table = inputs()
    whole = make_block()(x, vec, table)
    alone = make_block()(x[1:2], vec[1:2], table[1:2])
    torch.testing.assert_close(whole[1:2], alone)


def test_residual_stream_stays_float32_under_bfloat16():
    x, vec, table = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = make_block()(x, vec, table)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, make_block()(x, vec, table), rtol=0.05, atol=0.1)


def test_drop_path_rates_and_scales():
    rates = drop_path_rates(5, 24)
    torch.testing.assert_close(rates, torch.tensor([0.0, 0.025, 0.05, 0.075, 0.1]))
    scales = branch_scales(torch.tensor([[0.0, 0.01, 0.06, 0.5, 0.99]]), rates)
    torch.testing.assert_close(scales[:, 0], torch.tensor([1.0, 0.0, 1 / 0.95, 1 / 0.925, 1 / 0.9]))


def test_without_gradients_a_block_gives_what_it_gives_with_them():
    x, vec, table = inputs()
    block = make_block()
    with torch.no_grad():
        kept_nothing = block(x, vec, table)
    torch.testing.assert_close(kept_nothing, block(x, vec, table), rtol=0, atol=3e-6)


def test_gelu_of_a_product_in_one_operation_is_that_of_two():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2, 7, 64), (96, 64), (96,)))
    weight = weight / 4
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    with torch.no_grad():
        found = _linear_gelu(x, weight, bias)
        assert found.shape == (2, 7, 96)
        torch.testing.assert_close(found, exact.float(), rtol=0, atol=3e-6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert _linear_gelu(x, weight, bias).dtype == torch.bfloat16
        assert _linear_gelu(x.double(), weight.double(), bias.double()).dtype == torch.float64
        assert _linear_gelu(x.to("meta"), weight.to("meta"), bias.to("meta")).is_meta


def block_as_written(block, x, vec, table, scale):
    """The block by its formulas, in float64: heads apart, complex rotations, one concatenated product."""
    shift, shrink, gate = block.modulation(vec)
    modulated = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + shrink) + shift
    query, key, value, mlp = block.linear_in(modulated).split([128, 128, 128, 512], dim=-1)
    turns = torch.view_as_complex(table)[:, :, None]

    def heads(y, gain):
        y = y.unflatten(-1, (2, 64))
        y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
        turned = torch.view_as_complex(y.unflatten(-1, (32, 2)).contiguous()) * turns
        return torch.view_as_real(turned).flatten(-2)

    query, key = heads(query, block.query_norm.gain), heads(key, block.key_norm.gain)
    attention = (torch.einsum("nshd,nthd->nhst", query, key) / 8).softmax(-1)
    attended = torch.einsum("nhst,nthd->nshd", attention, value.unflatten(-1, (2, 64))).flatten(2)
    branch = block.linear_out(torch.cat([attended, F.gelu(mlp, approximate="tanh")], dim=-1))
    return x + scale[:, None, None] * gate * branch


def test_output_and_gradients_are_those_of_the_formulas():
    found, expected = make_block(), make_block().double()
    with torch.no_grad():
        for block in (found, expected):
            block.query_norm.gain.copy_(torch.linspace(0.5, 2.0, 64))
            block.key_norm.gain.copy_(torch.linspace(1.5, 0.2, 64))
    (x, vec, table), scale = inputs(), torch.tensor([1.25, 1.0, 0.0])
    exact = block_as_written(expected, x.double(), 0.3 * vec.double(), table.double(), scale.double())
    out = found(x, 0.3 * vec, table, scale)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-6)
    out.square().mean().backward()
    exact.square().mean().backward()
    for (name, ours), theirs in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        error = (ours.grad.double() - theirs.grad).abs().max() / theirs.grad.abs().max()
        assert error < 3e-6, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_turned_for_the_compiler_are_those_turned_in_eager(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    qk = torch.randn(2, 5, 2, 3, 64, generator=generator).to(dtype)
    gain, table = torch.rand(2, 64, generator=generator), inputs(2)[2]
    plain = normed_and_turned(qk, gain, table)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for ours, theirs in zip(normed_and_turned(qk, gain, table), plain, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)
