"""The part of `gpu_campaign.py` that asks whether a GPU has the results of the CPU and of the reference vectors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_campaign import Campaign
from gpu_speed import batch_of, built, dequantizer, noise_of, objective_of
from reference_vectors import reference_dequantizer, reference_generators, vectors
from torch import Tensor

from nvg.checkpoints.release_names import autoencoder_from_release
from nvg.granularity import balanced_split, cluster_latents, clustering, stage_map, structure_embedding
from nvg.granularity.clustering import merge_in_rounds
from nvg.sampling import SamplingConfig, integrate_flow, sample
from nvg.tokenizer import Tokenizer, TokenizerConfig, quantize_ids

BAR = {"fp32": 1e-4, "tf32": 0.1, "bf16": 0.5}  # largest error against the vectors, whose values are of order 1 to 10

LATENTS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "random": lambda g: torch.randn(32, 256, 32, generator=g),
    "tied": lambda g: torch.randint(0, 3, (32, 256, 2), generator=g).float(),
    "constant": lambda g: torch.randn(4, 1, 3, generator=g).repeat(1, 256, 1),
    "half constant": lambda g: torch.cat(
        [torch.randn(32, 1, 8, generator=g).repeat(1, 128, 1), torch.randn(32, 128, 8, generator=g)], dim=1
    ),
    "hub": lambda g: torch.linspace(10, 1, 256)[:, None] * F.normalize(torch.randn(32, 256, 8, generator=g), dim=2),
    "denormal": lambda g: torch.randn(32, 256, 8, generator=g) * 2.0**-130,
}


def parity(campaign: Campaign) -> None:
    """Reference vectors, clustering, losses and gradients, samples, and what waits for the device."""
    for name, call in (
        ("quantiser vectors", _quantizer),
        ("generator vectors", _generators),
        ("autoencoder vectors", _autoencoder),
        ("clustering", _clustering),
        ("loss and gradients", _gradients),
        ("samples", _samples),
        ("waits", _waits),
    ):
        campaign.attempt(name, lambda call=call: call(campaign))


def _precisions(campaign: Campaign) -> list[str]:
    return ["fp32"] if campaign.tiny else list(BAR)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().float() - expected.cpu().float()).abs().max())


def _close(campaign: Campaign, what: str, precision: str, error: float, **more: Any) -> None:
    campaign.note("parity", f"{what}, {precision}", error, "largest error", passed=error <= BAR[precision], **more)


@torch.no_grad()
def _quantizer(campaign: Campaign) -> None:
    data, quantizer = vectors("quantizer"), copy.deepcopy(reference_dequantizer()).to(campaign.device)
    maps = vectors("structure_maps")
    equal = torch.equal(cluster_latents(maps["points"].to(campaign.device)).cpu(), maps["leaf"].long())
    campaign.note("parity", "reference maps", float(equal), "equal", passed=equal)
    latent_BLC = data["latent"].flatten(2).transpose(1, 2).contiguous().to(campaign.device)
    structure_BL = cluster_latents(latent_BLC)
    for precision in _precisions(campaign):
        with campaign.products(precision):
            ids_BT = quantize_ids(latent_BLC, structure_BL, quantizer).cpu()
            canvases = quantizer.canvases(data["tokens"].long().to(campaign.device), structure_BL)
        share = float((ids_BT == data["tokens"]).float().mean())
        _close(campaign, "canvases", precision, _error(canvases, data["canvases"]), ids_equal=share)


@torch.no_grad()
def _generators(campaign: Campaign) -> None:
    content, structure = copy.deepcopy(reference_generators())
    content, structure = content.to(campaign.device), structure.to(campaign.device)
    data = {name: value.to(campaign.device) for name, value in vectors("generator_d2_io").items()}
    classes_N = data["in.class"].long()

    def at(stage: int) -> Tensor:
        return torch.full((4,), stage, device=campaign.device)

    for precision in _precisions(campaign):
        worst, splits = {"content": 0.0, "velocity": 0.0}, []
        with campaign.products(precision):
            for stage in (0, 8) if campaign.tiny else (0, 1, 4, 8):
                maps, canvas = data[f"content.{stage}.structure"].long() << (8 - stage), data[f"content.{stage}.canvas"]
                logits = content.token_logits(content(canvas, maps, at(stage), classes_N), canvas, maps, stage)
                worst["content"] = max(worst["content"], _error(logits, data[f"content.{stage}.logits"]))
            for stage in (3,) if campaign.tiny else (0, 3, 6):
                name = f"structure.{stage}"
                maps, canvas = data[f"{name}.structure"].long() << (8 - stage), data[f"{name}.canvas"]
                clean = (structure_embedding(maps, stage, 8) - 1).float()
                noisy = torch.where(torch.arange(8, device=campaign.device) < stage, clean, data["in.noise"])
                velocity = structure(noisy, canvas, maps, at(stage), data[f"{name}.t"], classes_N)
                worst["velocity"] = max(worst["velocity"], _error(velocity, data[f"{name}.velocity"]))
                start, how = data["in.noise"], {"stage": stage, "guidance_scale": 1.7, "num_steps": 5}
                flow = integrate_flow(structure, start, canvas, maps, classes_N, **how)
                split = stage_map(balanced_split(maps, flow[..., stage], stage, 8), stage + 1, 8)
                splits.append(float((split == data[f"{name}.next_structure"]).float().mean()))
        _close(campaign, "content logits", precision, worst["content"])
        _close(campaign, "structure velocity", precision, worst["velocity"], splits_equal=min(splits))


@torch.no_grad()
def _autoencoder(campaign: Campaign) -> None:
    data = vectors("autoencoder_ch32")
    config = TokenizerConfig(image_size=64, base_width=32, width_multipliers=[1, 1, 2, 2, 2], codebook_size=8)
    tokenizer = Tokenizer(config).eval()
    names = {key: value for key, value in data.items() if key.startswith(("encoder", "decoder"))}
    tokenizer.load_state_dict(tokenizer.state_dict() | autoencoder_from_release(names, num_levels=5))
    tokenizer.to(campaign.device)
    latent_BLC = data["out.latent"].flatten(2).transpose(1, 2)
    for precision in _precisions(campaign):
        with campaign.products(precision):
            found = tokenizer.encode(data["in.image"].to(campaign.device))
            image = tokenizer.decode(latent_BLC.to(campaign.device))
        _close(campaign, "encoder", precision, _error(found, latent_BLC))
        _close(campaign, "decoder", precision, _error(image, data["out.image"]))


def _clustering(campaign: Campaign) -> None:
    """Rounds and, on a GPU, Triton against the rounds of the CPU."""
    triton = clustering._merge_on_device(campaign.device)
    campaign.note("parity", "Triton", "used" if triton else "not used", passed=bool(triton) if campaign.cuda else None)
    for name, make in LATENTS.items():
        latent_BLC = make(torch.Generator().manual_seed(0))[: 1 if campaign.tiny else None]
        expected = merge_in_rounds(latent_BLC, 8)
        equal = {"rounds": torch.equal(merge_in_rounds(latent_BLC.to(campaign.device), 8).cpu(), expected)}
        if triton:
            members, failed_B = triton(latent_BLC.to(campaign.device), 8)
            equal["Triton"] = torch.equal(members.cpu(), expected) and not bool(failed_B.any())
        for way, same in equal.items():
            campaign.note("parity", f"clustering, {name}, {way}", float(same), "equal", passed=same)


def _gradients(campaign: Campaign) -> None:
    for kind in ("content", "structure"):
        found = []
        for device in (torch.device("cpu"), campaign.device):
            network = built(kind, 2, device, width=64 if campaign.tiny else 128, drop_path_rate=0.1)
            objective = objective_of(kind, network, device).train()
            with campaign.products("fp32"):
                loss, _ = objective(batch_of(2, device), noise_of(objective, 2, device))
            loss.backward()
            gradients = [weight.grad.flatten().cpu() for weight in network.parameters() if weight.grad is not None]
            found.append((float(loss.detach()), torch.cat(gradients)))
        (loss, expected), (other, gradient) = found
        off = float((gradient - expected).norm() / expected.norm())
        passed = off <= 1e-3 and abs(loss - other) <= 1e-4 * abs(loss)
        campaign.note("parity", f"{kind}, gradient", off, "of its norm", passed=passed, loss=other, loss_of_cpu=loss)


@torch.no_grad()
def _samples(campaign: Campaign) -> None:
    drawn = []
    for device in (torch.device("cpu"), campaign.device):
        content, structure = (built(kind, 2, device, width=64).eval() for kind in ("content", "structure"))
        config = SamplingConfig(num_flow_steps=1, gumbel_split=False)
        number = torch.arange(1 if campaign.tiny else 8)
        with campaign.products("fp32"):
            drawn.append(
                sample(
                    content=content, structure=structure, dequantizer=dequantizer(device), labels_B=number,
                    sample_indices_B=number, seed=0, config=config,
                )
            )  # fmt: skip
    share = float((drawn[0].content_ids_BT == drawn[1].content_ids_BT.cpu()).float().mean())
    maps = float((drawn[0].structure_BL == drawn[1].structure_BL.cpu()).float().mean())
    campaign.note("parity", "samples, fp32, ids of the CPU", share, "equal", passed=share > 0.99, maps_equal=maps)


def _waits(campaign: Campaign) -> None:
    """Places of a forward and backward pass, and of a clustering, where the host waits for the device."""
    if not campaign.cuda:
        return

    def places(call: Callable[[], Any]) -> list[str]:
        call()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        at = {
            f"{Path(one.filename).name}:{one.lineno}" for one in found if "called a synchronizing" in str(one.message)
        }
        return sorted(at)

    latent_BLC = torch.randn(8, 256, 32, device=campaign.device)
    calls: dict[str, Callable[[], Any]] = {"clustering": lambda: cluster_latents(latent_BLC, checked=False)}
    for kind in ("content", "structure"):
        objective = objective_of(kind, built(kind, 2, campaign.device, width=128), campaign.device).train()
        batch, noise = batch_of(2, campaign.device), noise_of(objective, 2, campaign.device)
        calls[f"{kind} step"] = lambda objective=objective, batch=batch, noise=noise: objective(batch, noise)[
            0
        ].backward()
    for name, call in calls.items():
        with campaign.products("bf16"):
            found = places(call)
        campaign.note("parity", f"{name}, waits", ", ".join(found) or "none", passed=not found)
