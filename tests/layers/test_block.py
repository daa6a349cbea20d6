import torch
import torch.nn.functional as F

from nvg.layers import SingleStreamBlock, branch_scales, drop_path_rates, rotary_table
from nvg.layers.block import _linear_gelu


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
