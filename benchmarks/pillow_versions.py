"""Compares two versions of Pillow by what this project gets from them: pixels, views, written files and records.

    .venv/bin/pip install --target /tmp/pillow --no-deps pillow==12.3.0
    .venv/bin/python benchmarks/pillow_versions.py /tmp/pillow

For a renewal of requirements.lock. One version writes the picture files; both decode them, and both write their own.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from PIL import ExifTags, Image, ImageCms
from sklearn.datasets import load_sample_images

from eval.decoding import decode_image, read_header
from eval.image_files import write_png_folder
from nvg.checkpoints import load_network, save_weights, weights_hash
from nvg.errors import BadImage
from nvg.tokenizer import Tokenizer, TokenizerConfig
from pipelines.precompute.beside import JpegStream
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.merge import merge_parts
from pipelines.precompute.plan import DatasetFolder, make_plan
from pipelines.precompute.unit import encode_unit
from pipelines.sources import SourceConfig, open_source
from pipelines.sources.views import make_views

POLICIES: dict[Any, int] = {"center": 1, "crop": 3, "ten_crop": 10, "random_crop": 3, "shift": 3}  # and how many views
SIZES = (16, 64, 256)
UNREAD = "YCbCr.tiff"  # uncompressed: refused by Pillow 12, so that records of it would be fewer
CHANNELS: tuple[Literal[1, 3], ...] = (1, 3)


def main() -> None:
    """Measures with both versions in processes of their own, and prints what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("other", type=Path, help="folder that holds another Pillow")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        json.dump(measure(given.measure), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        (pictures / "class").mkdir(parents=True)
        for name, data in picture_files():
            (pictures / "class" / name).write_bytes(data)
        here, there = measured(given.other, pictures, ""), measured(given.other, pictures, str(given.other.absolute()))
    versions = here.pop("version"), there.pop("version")
    assert versions[0] != versions[1], f"both are Pillow {versions[0]}"
    kinds, differ = Counter(name.split(":")[0] for name in here | there), sorted(set(here.items()) ^ set(there.items()))
    names = sorted({name for name, _ in differ})
    sys.stdout.write(f"Pillow {versions[0]} and {versions[1]}: {len(names)} of {len(here)} differ\n")
    for kind, count in kinds.items():
        sys.stdout.write(f"  {kind}: {count}, {sum(name.startswith(f'{kind}:') for name in names)} differ\n")
    for name in names:
        sys.stdout.write(f"  {name}: {here.get(name)} | {there.get(name)}\n")


def measured(other: Path, pictures: Path, site: str) -> dict[str, str]:
    """What a process finds that takes Pillow from `site`, or from the environment where that is empty."""
    path = os.pathsep.join(filter(None, [site, str(Path(__file__).resolve().parents[1])]))
    command = [sys.executable, __file__, str(other), "--measure", str(pictures)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def measure(pictures: Path) -> dict[str, str]:
    """Name of each thing that this Pillow makes to its hash, or to what it says of a file it refuses."""
    found = {"version": PIL.__version__}
    for file in sorted((pictures / "class").iterdir()):
        data = file.read_bytes()
        for channels in CHANNELS:
            for pixels in ("shown", "stored"):
                place = f"{file.name}, {channels} channels, {pixels}"
                try:
                    image = decode_image(data, channels, pixels=pixels)
                    found[f"pixels: {place}"] = digest(np.asarray(image), sorted(image.info), read_header(data))
                except BadImage as error:
                    found[f"refused: {place}"] = str(error)
                    continue
                if pixels == "shown":
                    found |= dict(views(image, channels, place))
    found |= {f"written: {name}": digest(data) for name, data in picture_files()}
    found |= dict(written_here())
    with tempfile.TemporaryDirectory() as folder:
        found |= {f"record bytes: {name}": value for name, value in records(pictures, Path(folder))}
    return found


def digest(*parts: Any) -> str:
    """Hash of arrays, bytes and texts."""
    total = hashlib.sha256()
    for part in parts:
        plain = part if isinstance(part, bytes) else repr(part).encode()
        total.update(
            repr((part.shape, part.dtype)).encode() + part.tobytes() if isinstance(part, np.ndarray) else plain
        )
    return total.hexdigest()[:16]


def views(image: Image.Image, channels: Literal[1, 3], place: str) -> Iterator[tuple[str, str]]:
    """Views of every policy and side, by the filter of training and by that of evaluation."""
    for size in SIZES:
        for policy, number in POLICIES.items():
            config = SourceConfig(
                image_size=size,
                image_channels=channels,
                view_policy=policy,
                num_views=number,
                flip=policy in ("crop", "random_crop"),
            )
            for resample in (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC):
                try:
                    cut = make_views(image, config=config, key=place, views=range(number), resample=resample)
                except BadImage as error:
                    yield f"refused: {place}, {policy} {size}", str(error)
                    continue
                yield f"views: {place}, {policy} {size} {resample.name}", digest(*cut)


def written_here() -> Iterator[tuple[str, str]]:
    """The files that commands write: JPEGs beside records, PNGs of samples."""
    photograph = np.asarray(photographs()[0].resize((256, 256)))
    batch_BCHW = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    for quality in (75, 95, 100):
        for channels in (1, 3):
            rows = JpegStream(quality).rows(batch_BCHW[:, :channels], 1)
            yield f"written: JPEG beside records, quality {quality}, {channels} channels", digest(rows[0]["jpeg"])
    for channels in (1, 3):
        with tempfile.TemporaryDirectory() as folder:
            write_png_folder(Path(folder), 1, [photograph[None, ..., :channels]])
            for file in sorted(Path(folder).glob("*.png")):
                yield f"written: PNG of a sample, {channels} channels", digest(file.read_bytes())


def records(pictures: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Every file of a record data set of the pictures, but those that name versions."""
    torch.manual_seed(0)
    read = folder / "pictures" / "class"
    read.mkdir(parents=True)
    for file in (pictures / "class").iterdir():
        if not file.name.endswith(UNREAD):
            (read / file.name).hardlink_to(file)
    settings = TokenizerConfig(
        image_size=32, image_channels=3, base_width=32, width_multipliers=[1, 1, 1], num_res_blocks=1,
        latent_channels=8, codebook_size=64,
    )  # fmt: skip
    network = Tokenizer(settings)
    torch.nn.init.normal_(network.dequantizer.codebook, std=0.3)
    save_weights(folder / "tokenizer", network.state_dict(), asdict(settings), kind="tokenizer", name="ema")
    source_config = SourceConfig(
        kind="folder", path=str(read.parent), split="all", image_size=32, image_channels=3, view_policy="crop",
        num_views=2, max_bad_fraction=1.0,
    )  # fmt: skip
    config = PrecomputeConfig(
        source=source_config, tokenizer=str(folder / "tokenizer"), output=str(folder / "records"), images_per_unit=40
    )
    source, tokenizer = open_source(source_config), load_network(Tokenizer, config.tokenizer)
    plan = make_plan(config, source, weights_hash(config.tokenizer, "ema"))
    target = DatasetFolder(Path(config.output))
    target.adopt(plan)
    for unit, indices in enumerate(plan.units):
        encode_unit(
            unit, indices, source=source, tokenizer=tokenizer, config=config, folder=target,
            plan_fingerprint=plan.fingerprint,
        )  # fmt: skip
    merged = merge_parts(target, plan, target.committed(plan), source=source, tokenizer=tokenizer)
    for file in sorted(merged.rglob("*")):
        if file.is_file() and file.suffix not in (".json", ".manifest"):
            yield file.relative_to(merged).as_posix(), digest(file.read_bytes())


def photographs() -> list[Image.Image]:
    """Two of scikit-learn's, at odd sides."""
    return [Image.fromarray(pixels).crop((40, 30, 371, 281)) for pixels in load_sample_images().images]


def picture_files() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of files of every colour model and option that this Pillow writes, and PNGs it does not write."""
    for number, photograph in enumerate(photographs()):
        for name, kind, mode, options in _kinds():
            image = _deep(photograph) if mode.startswith("I") else photograph.convert("RGB" if mode == "LAB" else mode)
            if mode == "P":
                image = photograph.quantize(200)
            elif mode == "LAB":
                image = Image.frombytes("LAB", photograph.size, photograph.tobytes())
            elif mode == "I":
                image = image.convert("I")
            elif mode in ("RGBA", "LA"):
                image.putalpha(photograph.getchannel("G"))
            if "transparency" in options and mode == "RGB":
                options = {**options, "transparency": photograph.getpixel((5, 5))}
            frames = {"append_images": [image.rotate(90)]} if options.get("save_all") else {}
            buffer = io.BytesIO()
            image.save(buffer, kind, **options, **frames)
            yield f"{number}-{name}.{kind}", buffer.getvalue()
        pixels = np.asarray(photograph).astype(np.uint16) * 257 - 3
        yield f"{number}-16bit-grey.png", _png(pixels[..., :1])
        yield f"{number}-16bit-grey-alpha.png", _png(pixels[..., :2])
        yield f"{number}-16bit-rgb.png", _png(pixels)
        yield f"{number}-16bit-rgba.png", _png(np.concatenate([pixels, pixels[..., :1]], -1))


def _kinds() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Name, format, mode and options of each."""
    for quality in (30, 75, 95):
        for subsampling in (0, 1, 2):
            yield f"q{quality}-s{subsampling}", "jpeg", "RGB", {"quality": quality, "subsampling": subsampling}
        yield f"grey-q{quality}", "jpeg", "L", {"quality": quality}
        yield f"cmyk-q{quality}", "jpeg", "CMYK", {"quality": quality}
    yield "progressive", "jpeg", "RGB", {"progressive": True, "optimize": True}
    yield "restarts", "jpeg", "RGB", {"restart_marker_blocks": 7}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for kind in ("jpeg", "png", "webp"):
            yield f"orientation{orientation}", kind, "RGB", {"exif": exif}
    for kind in ("jpeg", "png", "webp", "tiff"):
        yield "profile", kind, "RGB", {"icc_profile": _profile()}
    yield "profile-palette", "png", "P", {"icc_profile": _profile()}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield mode.replace(";", ""), "png", mode, {}
        yield f"best-{mode.replace(';', '')}", "png", mode, {"optimize": True}
    yield "transparent-palette", "png", "P", {"transparency": 3}
    yield "transparent-value", "png", "RGB", {"transparency": (0, 0, 0)}
    yield "palette", "gif", "P", {}
    yield "transparent", "gif", "P", {"transparency": 3}
    yield "grey", "gif", "L", {}
    for kind in ("gif", "webp", "png"):
        yield "animated", kind, "RGB", {"save_all": True}
    for quality in (30, 80, 100):
        yield f"q{quality}", "webp", "RGB", {"quality": quality}
        yield f"alpha-q{quality}", "webp", "RGBA", {"quality": quality}
    yield "lossless", "webp", "RGBA", {"lossless": True}
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "jpeg"):
        yield f"{compression}", "tiff", "RGB", {"compression": compression}
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I"):
        yield mode.replace(";", ""), "tiff", mode, {}
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg"):
        yield f"YCbCr-{compression}", "tiff", "YCbCr", {"compression": compression}
    for kind in ("bmp", "ppm", "jpeg2000", "avif", "mpo", "ico", "dds", "tga", "pcx", "sgi", "im"):
        yield "rgb", kind, "RGB", {}


def _deep(photograph: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 255 + 7)


def _profile() -> bytes:
    """sRGB with red and blue exchanged, so that every colour moves."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    table = [struct.unpack(">4sII", data[132 + 12 * n : 144 + 12 * n]) for n in range(int.from_bytes(data[128:132]))]
    place = {name: slice(start, start + size) for name, start, size in table}
    data[place[b"rXYZ"]], data[place[b"bXYZ"]] = bytes(data[place[b"bXYZ"]]), bytes(data[place[b"rXYZ"]])
    data[24:36] = bytes(12)  # the date of its making
    return bytes(data)


def _png(pixels_HWC: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads but for grey does not write."""
    height, width, channels = pixels_HWC.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels_HWC)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


if __name__ == "__main__":
    main()
