"""Binary files that we read: cut off, with flipped bits, of other kinds; weights, arrays, shards, images."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from damaged_files import Damage, byte_damages, json_damages, put, random_damages
from made_records import NUM_IMAGES, manifest_of, write_records
from PIL import Image
from released_checkpoints import save_lightning
from robustness import Tally
from tiny_networks import save_tokenizer

from eval.features.extractors import SMALL_IMAGE, ExtractorSpec
from eval.image_files import FolderImages, NpzImages, open_images
from eval.pool.chunks import read_chunk, write_chunk
from eval.reference import complete_reference, read_reference
from nvg.checkpoints import load_network, save_weights
from nvg.checkpoints.frozen_weights import read_tensors
from nvg.checkpoints.release_files import read_release_file, read_release_note
from nvg.models import RepaHead, RepaHeadConfig
from nvg.records import JPEG_COLUMNS, JpegDataset, RecordDataset, ShardWriter
from nvg.tokenizer import Tokenizer
from pipelines.batches.records import _decoded
from pipelines.precompute.inputs import INPUTS_FILE, read_inputs, write_inputs
from pipelines.precompute.verify import verify_records
from pipelines.structure_control import ControlConfig, load_control

pytestmark = pytest.mark.slow  # half a minute of `make test`, not of `make quick`
long = [pytest.mark.long, pytest.mark.timeout(3600)]
AMOUNTS = [1, pytest.param(40, marks=long)]
SAME = "a bit that nothing reads, or a number that may be another one"
PIXELS = "still a picture of this size"


def damages_of(content: bytes, tolerated: str, amount: int, **places: Any) -> list[Damage]:
    return [*byte_damages(content, tolerated, **places), *random_damages(content, tolerated, 100 * amount)]


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def odd_arrays() -> dict[str, Any]:
    """Arrays of every kind that are no images, statistics or features."""
    return {
        "objects": np.array([{1}, None], dtype=object), "texts": np.array(["a", "b"]), "scalar": np.array(5),
        "empty": np.zeros(0), "none": np.zeros((0, 4, 4, 3), np.uint8), "flat": np.zeros(5, np.uint8),
        "complex": np.zeros((4, 4), complex), "bool": np.ones((4, 4), bool), "dates": np.zeros(3, "M8[s]"),
        "nan": np.full((4, 4), np.nan), "infinite": np.full(4, np.inf), "void": np.zeros(2, [("a", "i4")]),
        "wide": np.zeros((2, 2, 2, 2, 2), np.uint8), "negative": np.full((9, 4, 4, 3), -1), "half": np.zeros(4, "f2"),
        "tall": np.zeros((9, 0, 4, 3), np.uint8), "five": np.zeros((9, 4, 4, 5), np.uint8), "bytes": np.array([b"a"]),
    }  # fmt: skip


def npy_headers() -> Iterable[bytes]:
    """npy files whose header is no description of their bytes."""
    kind = "'descr': '|u1', 'fortran_order': False"
    for text in (
        f"{{{kind}, 'shape': (-1, 4)}}", f"{{{kind}}}", f"{{{kind}, 'shape': (99999999999, 4)}}", "{'descr': '|u1'",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", "{'descr': 5, 'fortran_order': 5, 'shape': 5}",
        "{'descr': '|u1', 'fortran_order': None, 'shape': (16,)}", f"{{{kind}, 'shape': (2.5,)}}", "None", "[", "{}",
        "{'descr': '<x9', 'fortran_order': False, 'shape': ()}", "__import__('os').getcwd()", "ü" * 50, "\0\0",
        "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (4,)}", "(" * 300, "{" + "1:" * 3000,
        "{'descr': '|V16', 'fortran_order': True, 'shape': (1,)}", f"{{{kind}, 'shape': (16, 0, {10**23})}}",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (True,)}",
    ):  # fmt: skip
        for version in (1, 2, 3, 4, 9):
            data = text.encode()
            size = struct.pack("<H" if version == 1 else "<I", len(data))
            yield b"\x93NUMPY" + bytes([version, 0]) + size + data + bytes(16)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_arrays_of_images_and_maps(amount: int, tally: Tally, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    path = tmp_path / "samples.npz"
    contents = [npz(arr_0=images)]
    file = io.BytesIO()
    np.savez_compressed(file, arr_0=images)
    contents.append(file.getvalue())

    def look() -> None:
        opened = open_images(str(path))
        assert isinstance(opened, NpzImages)
        opened.identity()
        opened.read(np.arange(len(opened)))

    for content in contents:
        put(path, content)
        damages = damages_of(content, PIXELS, amount, header=200, tail=150, cuts_tolerated="")
        damages += [Damage(name, npz(arr_0=array)) for name, array in odd_arrays().items()]
        damages += [Damage("no arr_0", npz(images=images)), Damage("no array", npz())]
        damages += [Damage(f"header {number}", _zip_of(head)) for number, head in enumerate(npy_headers())]
        tally.expect_refusals("npz of images", path, damages, look)
    tally.check("npz of images", at_least=2000)
    path = tmp_path / "map.npy"
    np.save(path, np.arange(16))
    damages = damages_of(path.read_bytes(), "another permutation", amount, header=128)
    damages += [Damage(f"header {number}", head) for number, head in enumerate(npy_headers())]
    for name, array in odd_arrays().items():
        file = io.BytesIO()
        np.save(file, array)
        damages.append(Damage(name, file.getvalue()))
    whole = np.arange(16)
    for values in (whole[:15], np.full(16, 3), whole - 1, whole + (1 << 40), whole.astype("u8") << np.uint64(60)):
        file = io.BytesIO()
        np.save(file, values)
        damages.append(Damage(str(values), file.getvalue()))
    tokenizer = load_network(Tokenizer, save_tokenizer(tmp_path / "tokenizer"))
    follow = partial(load_control, ControlConfig(structure_from=str(path)), tokenizer)
    tally.expect_refusals("npy of maps", path, damages, follow, names="structure")
    tally.check("npy of maps", at_least=500)


def _zip_of(array_file: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("arr_0.npy", array_file)
    return file.getvalue()


@pytest.mark.parametrize("amount", AMOUNTS)
def test_references(amount: int, tally: Tally, tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "model.safetensors").write_bytes(b"weights")
    extractor = ExtractorSpec(kind=SMALL_IMAGE, path=str(tmp_path / "network"))
    path = tmp_path / "reference.npz"
    features = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    facts = {
        "extractor": {"kind": SMALL_IMAGE, "sha256": extractor.weights_hash()}, "image_size": 16, "num_images": 9,
        "images": {"image_channels": 1, "pixels": "shown", "kind": "folder"}, "fid": "x",
    }  # fmt: skip
    sound: dict[str, Any] = {"mu": features.mean(0), "sigma": np.cov(features.T), "pool_3": features}
    whole = npz(**sound, facts=np.array(json.dumps(facts)))
    put(path, whole)

    def read() -> None:
        reference = read_reference(str(path), extractor)
        reference.check_size(16, 16)
        assert reference.read_as[0] in (1, 3)
        assert reference.facts.get("num_images", 0) >= 0
        complete_reference(reference, extractor, pool=None, folder=tmp_path, console=None)  # type: ignore[arg-type]

    damages = damages_of(whole, SAME, amount, header=120, tail=300, step=2)
    free = ("num_images", "images", "images.pixels", "extractor.kind", "images.kind", "fid")
    lack = ("extractor", "image_size", "images", "num_images", "extractor.sha256", "images.image_channels")
    lack += ("images.pixels",)
    unread = ("extractor.kind", "images.kind", "fid")
    for name, content, reason in json_damages(facts, may_be=(*free, "extractor"), may_lack=lack, unread=unread):
        text = content.decode("utf-8", "replace")
        reason = reason or ("another text" if "not UTF-8" in name else "")
        damages.append(Damage(f"facts: {name}", npz(**sound, facts=np.array(text)), reason))
    for name, array in odd_arrays().items():
        damages.append(Damage(f"facts are {name}", npz(**sound, facts=array)))
        fits = SAME if name == "half" else ""
        damages += [Damage(f"{key} is {name}", npz(**{**sound, key: array}), fits) for key in sound]
    for key in sound:
        rest = {name: array for name, array in sound.items() if name != key}
        damages.append(Damage(f"no {key}", npz(**rest)))
    tally.expect_refusals("references", path, damages, read)
    tally.check("references", at_least=900)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_safetensors(amount: int, tally: Tally, tmp_path):
    config = RepaHeadConfig(width=3, hidden=3, out=3)
    path = save_weights(tmp_path, RepaHead(config).state_dict(), vars(config), "repa", name="repa")
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    damages = damages_of(content, SAME, amount, header=8 + size)
    for name, text, _ in json_damages(header):
        damages.append(Damage(f"header: {name}", len(text).to_bytes(8, "little") + text + content[8 + size :]))
    for length in (0, 1, size - 1, size + 1, 1 << 31, 1 << 63, (1 << 64) - 1):
        damages.append(Damage(f"a header of {length}", length.to_bytes(8, "little") + content[8:]))
    tally.expect_refusals(
        "safetensors", path, damages, partial(load_network, RepaHead, tmp_path, "repa"), names=str(tmp_path)
    )
    origin = partial(read_tensors, path, "a network", "the file of its authors", "judges.x")
    tally.expect_refusals("safetensors", path, damages, origin, names=str(path))
    chunk = {"a": np.ones((3, 2), np.float32)}
    write_chunk(tmp_path, 0, chunk, ["a"], "key")
    path = tmp_path / "chunk-000000.safetensors"
    damages = damages_of(path.read_bytes(), "", 1, header=300)
    again = "a chunk that is not whole is computed again"
    for name, content, _ in damages:
        put(path, content)
        tally.expect_refusal("safetensors", name, partial(read_chunk, tmp_path, 0, ["a"], "key"), tolerated=again)
    tally.check("safetensors", at_least=2500)


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_checkpoints_of_others(amount: int, tally: Tally, tmp_path):
    """Lightning's .ckpt, which is imported, and the .pth files of frozen networks."""
    tensors = {"encoder.weight": torch.arange(6.0).view(2, 3), "decoder.bias": torch.ones(3)}
    ckpt = save_lightning(tmp_path / "a.ckpt", tensors)
    pth = tmp_path / "a.pth"
    torch.save(tensors, pth)

    def released() -> None:
        assert all(tensor.numel() >= 0 for tensor in read_release_file(ckpt).values())
        read_release_note(ckpt, "tokenizer_hash")

    origin = partial(read_tensors, pth, "a network", "the file of its authors", "judges.x")
    one, doubled = torch.ones(1), {"_orig_mod.a": torch.ones(1), "a": torch.ones(1)}
    objects: list[Any] = [{}, [], 5, None, "text", {5: one}, {"a": [one]}, _Hostile()]
    states = (5, {}, {"a": 5}, {5: one}, _Hostile(), {"a": one.to_sparse()}, doubled)
    objects += [{"state_dict": state} for state in states]
    for path, run in ((ckpt, released), (pth, origin)):
        content = path.read_bytes()
        damages = damages_of(content, SAME, amount, header=len(content), tail=300, step=1 + len(content) // 400)
        file = io.BytesIO()
        for number, root in enumerate(objects):
            file = io.BytesIO()
            torch.save(root, file)
            damages.append(Damage(f"object {number}", file.getvalue(), "" if number or path is ckpt else "no tensors"))
            damages.append(Damage(f"pickled object {number}", pickle.dumps(root)))
        tally.expect_refusals("checkpoints of others", path, damages, run)
    tally.check("checkpoints of others", at_least=2000)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_shards(amount: int, tally: Tally, tmp_path):
    folder = write_records(tmp_path / "records")
    labels = RecordDataset.open(folder).label
    histogram = np.bincount(labels, minlength=10).tolist()
    stored = {"store": "jpeg"}
    (folder / "manifest.json").write_text(json.dumps(manifest_of(NUM_IMAGES, class_histogram=histogram, repa=stored)))
    (folder / "sources.txt").write_text("".join(f"{image}.png\n" for image in range(NUM_IMAGES)))
    writer = ShardWriter(folder / "jpeg", JPEG_COLUMNS, shard_bytes=1 << 20)
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    for image in range(NUM_IMAGES):
        writer.write({"image": image, "view": 0, "jpeg": jpeg.getvalue()})
    writer.finish()
    path = folder / "shard.00000.mds"
    head = 4 * (NUM_IMAGES + 2)
    damages = damages_of(path.read_bytes(), "", amount, header=head + 400, tail=40, step=3)
    tally.expect_refusals("MDS shards", path, damages, partial(verify_records, str(folder)), names=path.name)

    def open_all() -> None:
        for mapped in (False, True):
            RecordDataset.open(folder, mapped=mapped).batch([0, NUM_IMAGES - 1])

    fits = "its hash, which `nvg verify` compares, tells; ids are in range"
    damages = damages_of(path.read_bytes(), fits, amount, header=head + 400, tail=40, step=3)
    tally.expect_refusals("MDS shards", path, damages, open_all, names=str(folder))

    def jpegs() -> None:
        dataset = JpegDataset.open(RecordDataset.open(folder))
        assert all(_decoded(data).size for data in dataset.batch([0, NUM_IMAGES - 1])[:1] if data == jpeg.getvalue())

    path = folder / "jpeg" / "shard.00000.mds"
    damages = damages_of(path.read_bytes(), fits, amount, header=head + 400, tail=400, step=3)
    tally.expect_refusals("MDS shards", path, damages, jpegs, names=str(folder))
    tally.check("MDS shards", at_least=1500)
    rows = 5
    write_inputs(folder, [bytes([row]) * 16 for row in range(rows)], np.arange(rows, dtype=np.uint64))
    path = folder / INPUTS_FILE
    damages = [Damage(f"{end} bytes", path.read_bytes()[:end]) for end in range(rows * 24)]
    damages += [Damage("more", path.read_bytes() + b"\0")]
    unknown = "nothing is known of inputs of an earlier version"
    tally.expect_refusals("inputs.bin", path, damages, partial(read_inputs, folder, rows), absent=unknown)
    tally.check("inputs.bin", at_least=100)


FORMATS = (
    "PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "JPEG2000", "SGI", "DDS", "MPO",
)  # fmt: skip
ENDINGS = {"JPEG2000": "jp2", "MPO": "jpg"}


@pytest.mark.parametrize("amount", AMOUNTS)
def test_images(amount: int, tally: Tally, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    picture.save(tmp_path / "0.png")
    for name in FORMATS:
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            try:
                picture.convert(mode).save(file, name)
            except (OSError, ValueError, KeyError):
                continue
            path = tmp_path / f"1.{ENDINGS.get(name, name.lower())}"
            path.write_bytes(file.getvalue())

            def read() -> None:
                opened = FolderImages(str(tmp_path))
                opened.read(np.arange(len(opened)))

            damages = damages_of(
                file.getvalue(), PIXELS, amount, header=64, num_cuts=15, bits=(0, 7), step=2, cuts_tolerated=PIXELS
            )
            names = str(tmp_path)
            damages = damages[:: 1 if mode == "RGB" else 3]
            tally.expect_refusals("images", path, damages, read, names=names, absent="one image alone")
            path.unlink()
    tally.check("images", at_least=1500)
