"""Images of the tokenizer's training: lazily read batches are those held in memory, and what is read when."""

import threading
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from image_sources import write_class_folders, write_shards
from PIL import Image

from cluster.ranks import Ranks
from nvg.errors import UserError
from nvg.tokenizer import TokenizerConfig
from nvg.training import TokenizerLossConfig
from pipelines.batches import images
from pipelines.batches.config import ImageLoadingConfig
from pipelines.batches.images import LazyImageSource, image_source, memory_image_source
from pipelines.sources import BadImage, SourceConfig, open_source
from pipelines.sources.views import make_view
from pipelines.train.config import LoopConfig, OptimizerConfig
from pipelines.train.tokenizer import TokenizerRunConfig, train_tokenizer

LAZY = ImageLoadingConfig(loader="lazy", num_threads=3, prefetch_batches=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("images"), {"a": 6, "b": 5}, size=(40, 30))


def folder_config(root, **changes):
    return SourceConfig(
        **{"kind": "folder", "path": str(root), "split": "all", "image_size": 16, "image_channels": 3, **changes}
    )


def take(source, count, *, start_step=0, ranks=None):
    stream = source.batches(start_step=start_step, global_batch=4, seed=3, ranks=ranks or Ranks())
    return list(islice(stream, count))


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.global_rows == other.global_rows
        assert np.array_equal(one.sample_ids, other.sample_ids)
        assert torch.equal(one.tensors["image"], other.tensors["image"])
        assert one.tensors["image"].dtype == torch.uint8
        assert one.tensors["image"].is_contiguous()


@pytest.mark.parametrize("views_per_epoch", ["one", "in_turn", "all"])
@pytest.mark.parametrize(("view_policy", "num_views"), [("center", 1), ("crop", 3), ("shift", 2)])
def test_lazy_batches_are_those_of_memory_bitwise(folder, view_policy, num_views, views_per_epoch):
    source = open_source(folder_config(folder, view_policy=view_policy, num_views=num_views))
    lazy, memory = LazyImageSource(source, views_per_epoch, LAZY), memory_image_source(source, views_per_epoch)
    assert lazy.fingerprint == memory.fingerprint
    assert lazy.num_images == memory.num_images
    assert_same(take(lazy, 20), take(memory, 20))


def test_lazy_batches_of_tar_shards_are_those_of_memory(tmp_path):
    write_shards(tmp_path)
    source = open_source(SourceConfig(kind="webdataset", path=str(tmp_path), split="all", image_size=20))
    assert_same(take(LazyImageSource(source, "one", LAZY), 7), take(memory_image_source(source, "one"), 7))


def test_fresh_crops_are_new_in_each_epoch_and_follow_seed_key_and_epoch(folder):
    config = folder_config(folder, view_policy="fresh_crop")
    source = open_source(config)
    seen = {}
    for step, batch in enumerate(take(LazyImageSource(source, "one", LAZY), 11)):  # four epochs of eleven images
        for place, (row, pixels) in enumerate(zip(batch.sample_ids, batch.tensors["image"], strict=True)):
            epoch = (step * 4 + place) // 11
            with Image.open(folder / source.keys[row]) as image:
                expected = make_view(image, config=config, key=source.keys[row], view=epoch + 1)
            assert np.array_equal(pixels.numpy().transpose(1, 2, 0), expected)
            seen.setdefault(row, []).append(expected.tobytes())
    assert [len(crops) for crops in seen.values()] == [4] * 11
    assert sum(len(set(crops)) > 1 for crops in seen.values()) >= 10
    other = open_source(replace(config, seed=1))
    assert any(not np.array_equal(other.read(row, 1), source.read(row, 1)) for row in range(11))
    centred = open_source(folder_config(folder, view_policy="crop", num_views=2))
    assert all(np.array_equal(centred.read(row, 0), source.read(row, 0)) for row in range(11))


def test_fresh_crops_reach_every_place(folder):
    source = open_source(folder_config(folder, view_policy="fresh_crop"))
    resized = np.asarray(Image.open(folder / source.keys[0]).resize((24, 18), Image.Resampling.LANCZOS))
    possible = {resized[r : r + 16, c : c + 16].tobytes() for r in range(3) for c in range(9)}
    assert {source.read(0, view).tobytes() for view in range(1, 400)} == possible


def test_position_in_the_data_is_the_number_of_images_seen(folder):
    source = open_source(folder_config(folder, view_policy="fresh_crop"))
    lazy = LazyImageSource(source, "one", LAZY)
    assert_same(take(lazy, 4, start_step=5), take(lazy, 9)[5:])


def test_ranks_read_their_own_rows_only_and_together_the_global_batch(folder):
    config = folder_config(folder, view_policy="fresh_crop")
    whole = take(LazyImageSource(open_source(config), "one", LAZY), 2)
    parts = []
    for rank in range(2):
        source: Any = Recorder(open_source(config))
        one_ahead = replace(LAZY, prefetch_batches=1)
        ranks = Ranks(rank=rank, world_size=2, local_world_size=2)
        parts.append(take(LazyImageSource(source, "one", one_ahead), 2, ranks=ranks))
        assert {(int(row), 1) for batch in parts[-1] for row in batch.sample_ids} <= set(source.reads)
        assert len(source.reads) <= 3 * 2  # two batches taken, one ahead, two rows each
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].tensors["image"] for part in parts]), batch.tensors["image"])


def test_reading_ahead_is_bounded_and_ends_with_the_stream(folder):
    source: Any = Recorder(open_source(folder_config(folder)))
    before = threading.active_count()
    stream: Any = LazyImageSource(source, "one", LAZY).batches(start_step=0, global_batch=4, seed=0, ranks=Ranks())
    next(stream)
    assert threading.active_count() <= before + LAZY.num_threads
    assert len(source.reads) <= 4 * (1 + LAZY.prefetch_batches)
    stream.close()
    assert threading.active_count() == before


def test_unreadable_images_are_replaced_alike_by_both_loaders(tmp_path, caplog):
    root = write_class_folders(tmp_path, {"a": 5, "b": 5}, size=(40, 30))
    for name in ("a/001.png", "a/002.png", "b/004.png"):
        (root / name).write_bytes((root / name).read_bytes()[:-60])
    source = open_source(folder_config(root, max_bad_fraction=0.3, view_policy="crop", num_views=2))
    lazy, memory = LazyImageSource(source, "all", LAZY), memory_image_source(source, "all")
    assert_same(take(lazy, 12), take(memory, 12))
    assert lazy.fingerprint == memory.fingerprint
    named = [record.getMessage() for record in caplog.records]
    assert sorted(message.split(":")[0] for message in named) == ["a/001.png", "a/002.png", "b/004.png"]
    images = {
        int(row): pixels
        for batch in take(lazy, 5)
        for row, pixels in zip(batch.sample_ids, batch.tensors["image"], strict=True)
    }
    assert torch.equal(images[2], images[6])  # both views 0: image 1 is replaced by image 3
    assert torch.equal(images[18], images[0])  # the last by the first


def test_too_many_unreadable_images_stop_the_run(tmp_path):
    root = write_class_folders(tmp_path, {"a": 6})
    (root / "a/003.png").write_bytes(b"no image")
    source = open_source(folder_config(root))
    with pytest.raises(UserError, match=r"found 1 bad of 6 inputs(?s:.*)a/003\.png: not an image"):
        take(LazyImageSource(source, "one", LAZY), 2)


def test_a_file_that_is_gone_stops_the_run_by_name(tmp_path):
    root = write_class_folders(tmp_path, {"a": 4})
    source = open_source(folder_config(root))
    (root / "a/002.png").unlink()
    with pytest.raises(UserError, match=r"a/002\.png in .*cannot be reached any more"):
        take(LazyImageSource(source, "one", LAZY), 1)


def test_no_readable_image_is_said_instead_of_searching_for_ever(folder):
    source: Any = Recorder(open_source(folder_config(folder, max_bad_fraction=1.0)), bad=True)
    with pytest.raises(UserError, match="no image could be read"):
        take(LazyImageSource(source, "one", LAZY), 1)


def test_auto_takes_memory_where_the_views_fit(folder, monkeypatch):
    source, auto = open_source(folder_config(folder)), ImageLoadingConfig()
    assert not isinstance(image_source(source, "one", auto), LazyImageSource)
    fresh = open_source(folder_config(folder, view_policy="fresh_crop"))
    assert isinstance(image_source(fresh, "one", auto), LazyImageSource)
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES_IN_MEMORY", 11 * 16 * 16 * 3 - 1)
    assert isinstance(image_source(source, "one", auto), LazyImageSource)
    with pytest.raises(UserError, match=r"GiB in memory, .*loading\.loader=lazy"):
        image_source(source, "one", replace(auto, loader="memory"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loader": "disk"}, "loading.loader is 'disk'; expected one of auto, memory, lazy"),
        ({"num_threads": 0}, "loading.num_threads is 0; expected 1 or more"),
        ({"prefetch_batches": 0}, "loading.prefetch_batches is 0"),
    ],
)
def test_impossible_loading_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        ImageLoadingConfig(**changes)


def test_fresh_crops_cannot_be_held(folder):
    source = folder_config(folder, view_policy="fresh_crop")
    with pytest.raises(ValueError, match=r"set loading\.loader to lazy or auto"):
        TokenizerRunConfig(source=source, loading=ImageLoadingConfig(loader="memory"))
    with pytest.raises(UserError, match=r"set loading\.loader=lazy"):
        memory_image_source(open_source(source), "one")


def test_resumed_training_on_fresh_crops_equals_the_straight_one_bitwise(folder, tmp_path):
    config = TokenizerRunConfig(
        run_folder=str(tmp_path / "straight"),
        source=folder_config(folder, view_policy="fresh_crop"),
        loading=LAZY,
        model=TokenizerConfig(
            image_size=16, image_channels=3, base_width=8, width_multipliers=[1, 2], num_res_blocks=1, norm_groups=4,
            latent_channels=4, codebook_size=16,
        ),
        loss=TokenizerLossConfig(perceptual_weight=0.0, adversarial_weight=0.0),
        optimizer=OptimizerConfig(global_batch=4, total_images=24),
        loop=LoopConfig(engine="plain", log_every_steps=1, checkpoint_every_steps=3, threads_per_rank=1),
    )  # fmt: skip
    straight = train_tokenizer(config)
    resumed = replace(config, run_folder=str(tmp_path / "resumed"))
    train_tokenizer(replace(resumed, loop=replace(config.loop, stop_after_steps=3)))
    newest = train_tokenizer(resumed)
    for file in ("model.safetensors", "ema.safetensors"):
        assert (newest / file).read_bytes() == (straight / file).read_bytes()


def test_one_class_is_enough_to_train_on_and_ranks_beyond_the_batch_are_named(tmp_path):
    source = open_source(folder_config(write_class_folders(tmp_path, {"only": 3}, size=(40, 30))))
    assert source.class_names == ["only"]
    assert {tuple(batch.tensors["image"].shape) for batch in take(LazyImageSource(source, "one", LAZY), 2)} == {
        (4, 3, 16, 16)
    }
    with pytest.raises(UserError, match="global_batch=4 does not divide over 8 ranks"):
        OptimizerConfig(global_batch=4).accumulation_steps(8)


class Recorder:
    """A source that notes what is read of it, and can claim that nothing is readable."""

    def __init__(self, source, *, bad=False):
        self.source, self.bad, self.reads = source, bad, []

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def read(self, index, view):
        return self.read_views(index, [view])[0]

    def read_views(self, index, views):
        self.reads += [(index, view) for view in views]
        if self.bad:
            raise BadImage("nothing")
        return self.source.read_views(index, views)
