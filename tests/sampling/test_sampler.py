import dataclasses
from itertools import pairwise
from typing import cast

import pytest
import tiny_networks
import torch
from reference_vectors import tiny_generators
from switched_networks import switched
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nvg.errors import UserError
from nvg.granularity import check_structure, spatial_structure, stage_map, structure_embedding
from nvg.models import StructureGenerator
from nvg.randomness import Purpose
from nvg.sampling import Given, SamplingConfig, give_contents, integrate_flow, noise, sample, sampler
from nvg.sampling.noise import SampleNoise
from nvg.sampling.schedules import flow_times, guide

CONFIG = tiny_networks.FEW_STEPS


def draw(indices, *, networks=None, **how):
    return tiny_networks.draw(networks or tiny_generators(), indices, **how)


@pytest.mark.parametrize("num_positions", [16, 64, 256])
def test_samples_are_whole_sequences(num_positions):
    networks = tiny_generators(num_positions=num_positions)
    drawn = draw([0, 1], networks=networks)
    check_structure(drawn.structure_BL)
    assert drawn.content_ids_BT.shape == (2, 2 * num_positions - 1)


def passes(config, networks=None, indices=(0, 1), *, calls=False):
    """Evaluations a sample of the content and of the structure generator; or calls of them, whatever their batch."""
    networks = networks or tiny_generators()
    counts = [0, 0]

    def count(number):
        def hook(_, inputs, __):
            counts[number] += 1 if calls else len(inputs[0])

        return hook

    handles = [networks[number].get_submodule("trunk").register_forward_hook(count(number)) for number in range(2)]
    draw(list(indices), networks=networks, config=config)
    for handle in handles:
        handle.remove()
    return tuple(count if calls else count / len(indices) for count in counts)


def test_guidance_1_runs_no_second_pass():
    """K = 4: five content stages and three flows; the rising schedules start at 1, so their first stage is one pass."""
    plain = SamplingConfig(content_guidance=1.0, structure_guidance=1.0, num_flow_steps=3)
    assert passes(plain) == (5, 3 * 3)
    assert passes(dataclasses.replace(plain, constant_guidance=True)) == (5, 3 * 3)
    guided = SamplingConfig(content_guidance=3.0, structure_guidance=2.0, num_flow_steps=3)
    assert passes(guided) == (1 + 2 * 4, 3 * (1 + 2 * 2))
    assert passes(dataclasses.replace(guided, constant_guidance=True)) == (2 * 5, 3 * 2 * 3)
    assert passes(dataclasses.replace(guided, content_guidance=1.0)) == (5, 3 * (1 + 2 * 2))


def test_evaluations_of_the_paper():
    """Table 1: 9 + 7 n evaluations on 16×16 latents."""
    config = SamplingConfig(content_guidance=1.0, structure_guidance=1.0, num_flow_steps=2)
    assert passes(config, tiny_generators(num_positions=256)) == (9, 7 * 2)


def test_few_samples_run_both_passes_of_guidance_as_one():
    guided = SamplingConfig(content_guidance=3.0, structure_guidance=2.0, num_flow_steps=3)
    assert passes(guided, calls=True) == (5, 3 * 3)
    assert passes(guided, indices=range(33), calls=True) == (1 + 2 * 4, 3 * (1 + 2 * 2))
    assert passes(guided, indices=range(33)) == (1 + 2 * 4, 3 * (1 + 2 * 2))


@pytest.mark.parametrize("content_input", ["canvas", "noised_canvas"])
def test_one_batch_of_both_passes_is_two_batches(monkeypatch, content_input):
    networks = switched(content={"content_input": content_input})
    together = draw([0, 1, 2], networks=networks)
    monkeypatch.setattr(sampler, "_MOST_SEQUENCES_PAIRED", 0)
    apart = draw([0, 1, 2], networks=networks)
    assert torch.equal(together.content_ids_BT, apart.content_ids_BT)
    assert torch.equal(together.structure_BL, apart.structure_BL)
    torch.testing.assert_close(together.canvases_BSLC, apart.canvases_BSLC, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("num_given", "shared_noise"), [(0, 0.0), (2, 0.0), (0, 0.9)])
def test_slices_of_a_batch_are_the_batch(monkeypatch, num_given, shared_noise):
    """Also of what is given: every slice keeps its own rows, noise and labels."""
    config = dataclasses.replace(CONFIG, shared_noise=shared_noise)
    other = draw(list(range(20, 31)))
    given = give_contents(other.content_ids_BT, other.structure_BL, num_given) if num_given else None
    whole = draw(list(range(11)), given=given, config=config)
    monkeypatch.setattr(sampler, "_CACHE_BYTES", 0)
    assert sampler.sequences_at_once(tiny_generators()[1]) == 4
    assert passes(CONFIG, indices=range(11), calls=True) == (3 * 5, 3 * 3 * 3)
    sliced = draw(list(range(11)), given=given, config=config)
    assert torch.equal(sliced.content_ids_BT, whole.content_ids_BT)
    assert torch.equal(sliced.structure_BL, whole.structure_BL)
    torch.testing.assert_close(sliced.canvases_BSLC, whole.canvases_BSLC, rtol=0, atol=1e-5)


def test_who_looks_on_sees_every_stage_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(sampler, "sequences_at_once", lambda _network: 3)
    seen = {}

    def look(rows, stage, canvas_BLC, structure_BL):
        seen[rows.start, stage] = canvas_BLC.clone(), structure_BL.clone()
        canvas_BLC.zero_()
        structure_BL.zero_()
        torch.rand(1)

    undisturbed, drawn = draw(range(5)), draw(range(5), watch=look)
    for name, tensor in vars(undisturbed).items():
        assert torch.equal(tensor, getattr(drawn, name))
    assert list(seen) == [(start, stage) for start in (0, 3) for stage in range(5)]
    for stage in range(5):
        canvas_BLC, structure_BL = (torch.cat([seen[start, stage][part] for start in (0, 3)]) for part in (0, 1))
        assert torch.equal(canvas_BLC, drawn.canvases_BSLC[:, stage])
        assert torch.equal(structure_BL >> (4 - stage), drawn.structure_BL >> (4 - stage))


def test_who_looks_on_can_end_it():
    def stop(_rows, stage, *_):
        if stage == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        draw([0], watch=stop)


@pytest.mark.parametrize("gumbel_split", [False, True])
def test_all_noise_is_drawn_before_the_first_stage_and_once(monkeypatch, gumbel_split):
    """Of each stream what it is for, and of the flow one draw for all stages."""
    drawn = []
    for name in ("per_sample_uniforms", "per_sample_normals"):

        def watched(seed, indices_B, purpose, step, shape, inner=getattr(noise, name)):
            drawn.append((purpose, step, shape))
            return inner(seed, indices_B, purpose, step, shape)

        monkeypatch.setattr(noise, name, watched)
    networks = tiny_generators()
    handle = networks[0].register_forward_pre_hook(lambda *_: drawn.append("a stage"))
    draw([0, 1], networks=networks, config=dataclasses.replace(CONFIG, gumbel_split=gumbel_split))
    handle.remove()
    expected = [(Purpose.FLOW_NOISE, 0, (16, 4)), *((Purpose.TOKEN, stage, (2**stage,)) for stage in range(5))]
    expected += [(Purpose.SPLIT, stage, (16,)) for stage in range(3)] if gumbel_split else []
    assert sorted(drawn[: len(expected)]) == sorted(expected)
    assert drawn[len(expected) :] == ["a stage"] * 5


class OnOneDevice(TorchDispatchMode):
    """Refuses every tensor of the host, as an operation's input or output."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, found)):
            assert not isinstance(leaf, Tensor) or leaf.is_meta, f"{func} meets a tensor of the host"
        return found


@pytest.mark.parametrize(
    ("content_input", "gumbel_split", "guided", "shared_noise"),
    [("canvas", False, True, 0.0), ("noised_canvas", True, False, 0.0), ("canvas", False, True, 0.9)],
)
def test_stages_neither_wait_for_the_device_nor_send_to_it(content_input, gumbel_split, guided, shared_noise):
    """On a device without values, where reading one, as `.item()` and `nonzero()` do, is an error."""
    content, structure, dequantizer = switched(content={"content_input": content_input})
    for network in (content, structure, dequantizer):
        network.to("meta")
    scale = 2.0 if guided else 1.0
    config = SamplingConfig(
        num_flow_steps=2, gumbel_split=gumbel_split, content_guidance=scale, structure_guidance=scale
    )
    device = torch.device("meta")
    numbers = SampleNoise.draw(
        0,
        torch.arange(2),
        dequantizer.layout,
        device,
        gumbel_split=gumbel_split,
        canvas_channels=4 if content.config.needs_noise else 0,
        shared_noise=shared_noise,
        codebook_size=dequantizer.config.codebook_size,
    )
    labels_B = torch.zeros(2, dtype=torch.int64, device=device)
    with torch.no_grad(), OnOneDevice():
        drawn = sampler._draw(content, structure, dequantizer, labels_B, numbers, config, Given())
    assert drawn.content_ids_BT.shape == (2, 31)


@pytest.mark.parametrize("shared_noise", [0.0, 0.9])
def test_a_sample_depends_on_seed_and_index_alone(shared_noise):
    config = dataclasses.replace(CONFIG, shared_noise=shared_noise)
    together, alone = draw(list(range(8)), config=config), draw([5], config=config)
    assert torch.equal(together.content_ids_BT[5:6], alone.content_ids_BT)
    assert torch.equal(together.structure_BL[5:6], alone.structure_BL)
    assert not torch.equal(draw([5], seed=1, config=config).content_ids_BT, alone.content_ids_BT)


def test_release_preset_takes_the_top_half():
    config = SamplingConfig(num_flow_steps=3, gumbel_split=False)
    check_structure(draw([0, 1, 2], config=config).structure_BL)


def test_given_prefix_is_kept_and_the_rest_generated():
    reference, free = draw([3, 4, 5]), draw([6, 7, 8])
    given = Given(
        structure_BL=reference.structure_BL,
        num_splits=2,
        content_ids_BT=reference.content_ids_BT,
        num_contents=2,
    )
    drawn = draw([6, 7, 8], given=given)
    assert torch.equal(stage_map(drawn.structure_BL, 2, 4), stage_map(reference.structure_BL, 2, 4))
    assert torch.equal(drawn.content_ids_BT[:, :3], reference.content_ids_BT[:, :3])
    assert not torch.equal(drawn.content_ids_BT[:, 3:], reference.content_ids_BT[:, 3:])
    assert not torch.equal(drawn.structure_BL, free.structure_BL)


def test_full_structure_needs_no_structure_generator():
    content, _, dequantizer = tiny_generators()
    given = Given(structure_BL=spatial_structure(16).expand(2, -1), num_splits=4)
    drawn = draw([0, 1], networks=(content, None, dequantizer), given=given)
    assert torch.equal(drawn.structure_BL, spatial_structure(16).expand(2, -1))
    with pytest.raises(UserError, match="without a structure generator"):
        draw([0, 1], networks=(content, None, dequantizer))


class ExactVelocity(nn.Module):
    """Velocity of a flow whose data is one known structure: (z - s) / t."""

    def __init__(self, like, data_BLK):
        super().__init__()
        self.layout, self.null_class, self.data_BLK = like.layout, like.null_class, data_BLK

    def condition(self, *_):
        return None

    def with_class(self, *_):
        return None

    def velocity(self, noisy, time, condition):
        return (noisy - self.data_BLK.repeat(len(noisy) // len(self.data_BLK), 1, 1)) / time[:, None, None]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_exact_velocity_lands_on_the_data(stage):
    _, structure, _ = tiny_generators()
    truth = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(row)) for row in range(2)])
    data = (structure_embedding(truth, 4, 4) - 1).float()
    landed = integrate_flow(
        cast(StructureGenerator, ExactVelocity(structure, data)),
        torch.randn(2, 16, 4),
        torch.zeros(2, 16, 4),
        (truth >> (4 - stage)) << (4 - stage),
        torch.tensor([0, 1]),
        stage=stage,
        guidance_scale=1.5,
        num_steps=7,
    )
    torch.testing.assert_close(landed, data, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_embedding_once_is_embedding_at_every_step(stage):
    """A plain loop that runs the whole network for both passes of every step gives the same flow, bit for bit."""
    _, structure, _ = tiny_generators()
    generator, count = torch.Generator().manual_seed(stage), 33  # more than are run as one batch
    maps = torch.stack([torch.randperm(16, generator=generator) for _ in range(count)])
    known = (maps >> (4 - stage)) << (4 - stage)
    canvas, start = torch.randn(count, 16, 4, generator=generator), torch.randn(count, 16, 4, generator=generator)
    labels, stages = torch.arange(count) % 3, torch.full((count,), stage)
    landed = integrate_flow(structure, start, canvas, known, labels, stage=stage, guidance_scale=2.5, num_steps=4)
    clean, mask = (structure_embedding(known, stage, 4) - 1).float(), torch.arange(4) < stage
    state = torch.where(mask, clean, start)
    for now, then in pairwise(flow_times(4, 16)):
        time = torch.full((count,), now)
        asked, free = (
            structure(state, canvas, known, stages, time, classes)
            for classes in (labels, torch.full_like(labels, structure.null_class))
        )
        state = torch.where(mask, clean, state + (then - now) * guide(asked, free, 2.5))
    assert torch.equal(landed, state)


def test_networks_of_another_token_space_are_refused():
    content, structure, _ = tiny_generators()
    other = tiny_generators(codebook_size=12)[2]
    with pytest.raises(UserError, match=r"\(16, 4, 11\).*\(16, 4, 12\)"):
        draw([0], networks=(content, structure, other))
    foreign = tiny_generators(num_classes=4)
    with pytest.raises(UserError, match="structure generator was trained"):
        draw([0], networks=(content, foreign[1], foreign[2]))


def test_labels_out_of_range_are_refused():
    content, structure, dequantizer = tiny_generators()
    with pytest.raises(UserError, match=r"labels must lie in 0..2"):
        sample(
            content=content,
            structure=structure,
            dequantizer=dequantizer,
            labels_B=torch.tensor([3]),
            sample_indices_B=torch.tensor([0]),
            seed=0,
            config=CONFIG,
        )
