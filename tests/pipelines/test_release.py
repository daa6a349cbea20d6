"""The authors' checkpoints through the commands: they compute the vectors and come out as they went in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from reference_vectors import vectors
from released_checkpoints import (
    random_autoencoder,
    random_d16,
    reference_autoencoder,
    reference_generator,
    save_lightning,
)
from typer.testing import CliRunner

from nvg.checkpoints import load_config, load_network, load_weights, save_weights, weights_hash
from nvg.checkpoints.release_files import read_release_file
from nvg.checkpoints.runs import tokenizer_of
from nvg.errors import UserError
from nvg.granularity import cluster_latents, stage_map, structure_embedding
from nvg.models import ContentGenerator, RepaHead, StructureGenerator
from nvg.sampling import SamplingConfig
from nvg.tokenizer import Tokenizer, quantize_ids
from pipelines.cli.main import app
from pipelines.release import (
    LICENCE_NOTICE,
    ExportReleaseConfig,
    ImportReleaseConfig,
    export_release,
    import_release,
)
from pipelines.sample import SampleConfig, sample_images

IMPORT_AND_MEASURE = """
import sys
from pathlib import Path
from pipelines.release import ImportReleaseConfig, import_release

autoencoder, generator, output = sys.argv[1:]
import_release(ImportReleaseConfig(autoencoder=autoencoder, generator=generator, output=output), print)
# Of this program alone; getrusage also counts what the starting process held.
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def run_nvg(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def quiet(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Autoencoder and generator of the vectors as Lightning files."""
    folder = tmp_path_factory.mktemp("released")
    return (
        save_lightning(folder / "ae.ckpt", reference_autoencoder()),
        save_lightning(folder / "d2.ckpt", reference_generator()),
    )


@pytest.fixture(scope="module")
def run(files, tmp_path_factory) -> Path:
    """Both imported into one run, one after the other: their codebooks are of different sizes."""
    folder = tmp_path_factory.mktemp("imported") / "run"
    assert LICENCE_NOTICE in run_nvg("import-release", "--autoencoder", files[0], "--output", folder)
    shown = run_nvg("import-release", "--generator", files[1], "--output", folder)
    assert LICENCE_NOTICE in shown
    assert "ignored 65 tensor(s) of nvgformer.*" in shown
    assert "ignored 1 tensor(s) of repa_encoder.*" in shown
    return folder


@torch.no_grad()
def test_the_tokenizer_computes_the_vectors(run):
    tokenizer = load_network(Tokenizer, run / "tokenizer")
    data = vectors("autoencoder_ch32")
    latent = tokenizer.encoder(data["in.image"])
    torch.testing.assert_close(latent, data["out.latent"], rtol=0, atol=1e-4)
    torch.testing.assert_close(tokenizer.decoder(latent), data["out.image"], rtol=0, atol=1e-4)
    data = vectors("quantizer")
    latent_BLC = rearrange(data["latent"], "b c h w -> b (h w) c").contiguous()
    structure = cluster_latents(latent_BLC)
    ids = quantize_ids(latent_BLC, structure, tokenizer.dequantizer)
    assert torch.equal(stage_map(structure, 8, 8), data["maps"][:, 8])
    assert torch.equal(ids, data["tokens"])
    torch.testing.assert_close(tokenizer.dequantizer.canvases(ids, structure), data["canvases"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_generators_compute_the_vectors(run):
    content = load_network(ContentGenerator, run / "content")
    data = vectors("generator_d2_io")
    for stage in (0, 4, 8):
        maps, canvas = data[f"content.{stage}.structure"] << (8 - stage), data[f"content.{stage}.canvas"]
        final = content(canvas, maps, torch.full((4,), stage), data["in.class"])
        torch.testing.assert_close(final, data[f"content.{stage}.final"], rtol=0, atol=1e-4)
        logits = content.token_logits(final, canvas, maps, stage)
        torch.testing.assert_close(logits, data[f"content.{stage}.logits"], rtol=0, atol=1e-4)
    structure = load_network(StructureGenerator, run / "structure")
    for stage in (0, 3, 6):
        maps = data[f"structure.{stage}.structure"] << (8 - stage)
        clean = (structure_embedding(maps, stage, 8) - 1).float()
        noisy = torch.where(torch.arange(8) < stage, clean, data["in.noise"])
        canvas, times = data[f"structure.{stage}.canvas"], data[f"structure.{stage}.t"]
        velocity = structure(noisy, canvas, maps, torch.full((4,), stage), times, data["in.class"])
        torch.testing.assert_close(velocity, data[f"structure.{stage}.velocity"], rtol=0, atol=1e-4)


def test_repa_head_and_card_lie_beside_the_weights(run, files):
    head = load_network(RepaHead, run / "content", "repa")
    released = reference_generator()
    assert torch.equal(head.state_dict()["layers.4.weight"], released["ema_model.nvgformer.projector.4.weight"])
    assert head(torch.zeros(2, 5, 128)).shape == (2, 5, 768)
    card = json.loads((run / "content" / "release.json").read_text())
    assert card["licence"] == LICENCE_NOTICE
    assert (card["file"], card["bytes"], card["weights"]) == ("d2.ckpt", files[1].stat().st_size, "ema")
    assert card["ignored"] == {"first_stage_model.": 1, "nvgformer.": 65, "repa_encoder.": 1}
    assert json.loads((run / "tokenizer" / "release.json").read_text())["licence"] == LICENCE_NOTICE
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(("option", "beginning"), [("--ema", "ema_model.nvgformer."), ("--no-ema", "nvgformer.")])
def test_out_again_comes_what_went_in(files, tmp_path, option, beginning):
    run = tmp_path / "run"
    run_nvg("import-release", "--generator", files[1], option, "--output", run)
    run_nvg("import-release", "--autoencoder", files[0], "--output", run)
    back = tmp_path / "d2.ckpt", tmp_path / "ae.ckpt"
    shown = run_nvg("export-release", run, "--output", back[0], "--autoencoder-output", back[1])
    assert LICENCE_NOTICE in shown
    generator = {name: t for name, t in reference_generator().items() if name.startswith(beginning)}
    autoencoder = {name: t for name, t in reference_autoencoder().items() if name.startswith(("enc", "dec", "quant"))}
    for path, expected in zip(back, (generator, autoencoder), strict=True):
        found = torch.load(path, weights_only=True)["state_dict"]
        assert found.keys() == expected.keys()
        assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in expected.items())


@pytest.mark.slow
def test_an_imported_run_is_sampled_without_records(run, tmp_path):
    # Dequantiser and content generator of the vectors are of two codebook sizes: the first 512 entries serve here.
    tensors, config = load_weights(run / "tokenizer", "tokenizer", "ema")
    tensors["dequantizer.codebook"] = tensors["dequantizer.codebook"][:512]
    save_weights(tmp_path / "run/tokenizer", tensors, {**config, "codebook_size": 512}, "tokenizer", "ema")
    for kind in ("content", "structure"):
        (tmp_path / "run" / kind).symlink_to(run / kind)
    output = str(tmp_path / "samples")
    settings = {"num_per_class": 1, "output": output, "classes": [7], "sampling": SamplingConfig(num_flow_steps=1)}
    sample_images(SampleConfig(run=str(tmp_path / "run"), **settings))
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        *("7-000.png", "grid.png", "samples.json", "stages.png")
    ]
    with pytest.raises(UserError, match="expected ids from 0 to 9"):
        sample_images(SampleConfig(run=str(tmp_path / "run"), **{**settings, "classes": [10]}))


def test_exports_and_imports_keep_the_hash_of_the_tokenizer(run, tmp_path):
    """Of generators of an own training, whose export is imported beside its tokenizer's."""
    own, back = tmp_path / "own", tmp_path / "back"
    tensors, config = load_weights(run / "tokenizer", "tokenizer", "ema")
    tensors["dequantizer.codebook"] = tensors["dequantizer.codebook"][:512].clone()
    save_weights(own / "tokenizer", tensors, {**config, "codebook_size": 512}, "tokenizer", "ema")
    hash_of_own = weights_hash(own / "tokenizer", "ema")
    for kind in ("content", "structure"):
        shutil.copytree(run / kind, own / kind)
        (own / kind / "release.json").unlink()
        (own / kind / "trainer.json").write_text(json.dumps({"data": {"tokenizer_hash": hash_of_own}}))
    files = tmp_path / "d2.ckpt", tmp_path / "ae.ckpt"
    config = ExportReleaseConfig(run=str(own), output=str(files[0]), autoencoder_output=str(files[1]))
    export_release(config, quiet)
    import_release(ImportReleaseConfig(autoencoder=str(files[1]), generator=str(files[0]), output=str(back)), quiet)
    assert weights_hash(back / "tokenizer", "ema") == hash_of_own
    assert {tokenizer_of(back / kind) for kind in ("content", "structure")} == {hash_of_own}
    alone = tmp_path / "alone"
    import_release(ImportReleaseConfig(generator=str(files[0]), output=str(alone)), quiet)
    assert tokenizer_of(alone / "content") == hash_of_own
    tensors["dequantizer.codebook"] += 1
    save_weights(alone / "tokenizer", tensors, load_config(own / "tokenizer", "tokenizer", "ema"), "tokenizer", "ema")
    with pytest.raises(UserError, match=rf"whose ema weights have the hash(.|\n)*{hash_of_own[:12]}"):
        export_release(replace(config, run=str(alone), autoencoder_output=None), quiet)


def test_a_compiled_generator_is_imported_as_the_plain_one(files, run, tmp_path):
    named = {name.replace("nvgformer.", "nvgformer._orig_mod."): t for name, t in reference_generator().items()}
    path = save_lightning(tmp_path / "compiled.ckpt", named)
    run_nvg("import-release", "--generator", path, "--output", tmp_path / "run")
    for kind in ("content", "structure"):
        assert (
            load_weights(tmp_path / "run" / kind, kind, "ema")[0].keys()
            == load_weights(run / kind, kind, "ema")[0].keys()
        )


def test_bad_files_and_folders_leave_nothing_behind(files, run, tmp_path):
    output = str(tmp_path / "run")
    with pytest.raises(UserError, match="neither --autoencoder nor --generator"):
        ImportReleaseConfig(output=output)
    both = ImportReleaseConfig(autoencoder=str(files[0]), generator=str(files[1]), output=output)
    with pytest.raises(UserError, match="do not fit each other: codebook_size 4096 and 512"):
        import_release(both, quiet)
    with pytest.raises(UserError, match=r"d2\.ckpt has names that no release has: .*nvgformer"):
        import_release(ImportReleaseConfig(autoencoder=str(files[1]), output=output), quiet)
    text = tmp_path / "notes.ckpt"
    text.write_text("not a checkpoint")
    with pytest.raises(UserError, match=r"notes\.ckpt is no archive of torch\.save"):
        import_release(ImportReleaseConfig(generator=str(text), output=output), quiet)
    released = reference_generator()
    kept = {name: tensor for name, tensor in released.items() if "content_blocks.1" not in name}
    path = save_lightning(tmp_path / "d2.ckpt", kept)
    with pytest.raises(
        UserError, match=r"d2\.ckpt.*content_blocks\.1\.linear1\.bias: found nothing, expected \(896,\)"
    ):
        import_release(ImportReleaseConfig(generator=str(path), output=output), quiet)
    bare = {name: tensor for name, tensor in released.items() if not name.startswith("ema_model.")}
    path = save_lightning(tmp_path / "d2.ckpt", bare)
    with pytest.raises(UserError, match=r"has no tensor of ema_model\.nvgformer\.\*.*--no-ema"):
        import_release(ImportReleaseConfig(generator=str(path), output=output), quiet)
    assert not Path(output).exists()
    with pytest.raises(UserError, match=r"content, .*structure exists; remove it or choose another --output"):
        import_release(ImportReleaseConfig(generator=str(files[1]), output=str(run)), quiet)


def test_dry_runs_write_nothing(files, tmp_path):
    shown = run_nvg("import-release", "--generator", files[1], "--output", tmp_path / "run", "--dry-run")
    assert "read the EMA weights" in shown
    shown = run_nvg("export-release", tmp_path / "run", "--output", tmp_path / "d2.ckpt", "--dry-run")
    assert "write both generators" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_size_checkpoint_needs_little_memory(tmp_path, record_property):
    generator, autoencoder, run = tmp_path / "d16.ckpt", tmp_path / "ae.ckpt", tmp_path / "run"
    back = tmp_path / "back.ckpt"
    try:
        save_lightning(generator, random_d16())
        save_lightning(autoencoder, random_autoencoder())
        start = time.perf_counter()
        command = [sys.executable, "-c", IMPORT_AND_MEASURE, str(autoencoder), str(generator), str(run)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
        seconds = time.perf_counter() - start
        peak_gib = int(done.stdout.splitlines()[-1].split()[1]) / 2**20
        record_property("import_seconds", seconds)
        print(f"d16: {generator.stat().st_size / 1e9:.2f} GB in {seconds:.1f} s, peak {peak_gib:.2f} GiB")  # noqa: T201
        assert peak_gib <= 6
        run_nvg("export-release", run, "--output", back)
        source, again = read_release_file(generator), read_release_file(back)
        assert len(again) == 289
        assert all(torch.equal(tensor, source[name]) for name, tensor in again.items())
    finally:
        for path in (generator, autoencoder, back, *run.rglob("*.safetensors")):
            path.unlink(missing_ok=True)
