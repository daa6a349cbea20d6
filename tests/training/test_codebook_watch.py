"""Usage and perplexity of the codebook, per stage and overall."""

from __future__ import annotations

import pytest
import torch

from nvg.granularity import StageLayout
from nvg.training.codebook_watch import CodebookWatch, codebook_use


def test_entries_of_a_step_are_those_of_its_whole_batch_however_it_is_cut():
    layout = StageLayout(4)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(0, 64, (4, layout.num_tokens), generator=generator) for _ in range(3)]
    for cut in (1, 2, 4):
        watch = CodebookWatch(layout, codebook_size=64)
        for batch in batches:
            for part in batch.chunk(cut):
                watch.add(part)
            watch.end_step()
        expected = sum(len(batch.unique()) for batch in batches) / 64 / 3
        assert watch.close()["codebook_used"] == pytest.approx(expected, rel=1e-6)


def test_usage_and_perplexity_are_their_definitions():
    counts = torch.tensor([[4, 0, 0, 0], [2, 2, 0, 0], [1, 1, 1, 1]])
    numbers = codebook_use(counts, "stage_{stage}")
    assert [numbers[f"stage_{stage}_usage"] for stage in range(3)] == [0.25, 0.5, 1.0]
    assert [numbers[f"stage_{stage}_perplexity"] for stage in range(3)] == pytest.approx([1.0, 2.0, 4.0])


def test_a_window_counts_every_batch_once_and_then_starts_anew():
    layout = StageLayout(4)
    watch = CodebookWatch(layout, codebook_size=8)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 8, (5, layout.num_tokens), generator=generator) for _ in range(3)]
    for batch in batches:
        watch.add(batch)
    found = watch.close()
    everything = torch.cat(batches)
    assert found["codebook_usage"] == len(everything.unique()) / 8
    for stage in range(layout.num_stages):
        drawn = everything[:, layout.tokens(stage)]
        assert found[f"codebook_{stage}_usage"] == len(drawn.unique()) / 8
    assert watch.close() == {}


def test_counts_are_no_part_of_a_checkpoint():
    assert CodebookWatch(StageLayout(4), codebook_size=8).state_dict() == {}


def test_a_stage_that_uses_far_fewer_entries_than_even_draws_is_named(caplog):
    layout = StageLayout(4)
    watch = CodebookWatch(layout, codebook_size=64, warn_below=0.5)
    ids = torch.randint(0, 64, (100, layout.num_tokens), generator=torch.Generator().manual_seed(0))
    watch.add(ids)
    watch.close()
    assert not caplog.records
    watch.add(torch.cat([ids[:, :1] % 3, ids[:, 1:]], dim=1))  # stage 0 draws three entries
    watch.close()
    assert "stage 0: 3 of 64" in caplog.text
    assert "stage 1" not in caplog.text


def test_a_warning_comes_once_for_each_fall(caplog):
    layout = StageLayout(4)
    watch = CodebookWatch(layout, codebook_size=64, warn_below=0.5)
    even = torch.randint(0, 64, (100, layout.num_tokens), generator=torch.Generator().manual_seed(0))
    collapsed = torch.cat([even[:, :1] % 3, even[:, 1:]], dim=1)
    warnings = []
    for ids in (collapsed, collapsed, even, collapsed):
        watch.add(ids)
        watch.close()
        warnings.append(len(caplog.records))
    assert warnings == [1, 1, 1, 2]


def test_a_codebook_that_settles_is_given_its_time(caplog):
    layout = StageLayout(4)
    watch = CodebookWatch(layout, codebook_size=64, warn_below=0.5)
    collapsed = torch.zeros(100, layout.num_tokens, dtype=torch.int64)
    watch.add(collapsed, is_settling=True)
    watch.add(collapsed)  # the window in which the warm-up ends
    assert watch.close()["codebook_usage"] == 1 / 64
    assert not caplog.records
    watch.add(collapsed)
    watch.close()
    assert "stage 0: 1 of 64" in caplog.text


def test_few_images_are_no_collapse(caplog):
    layout = StageLayout(4)
    watch = CodebookWatch(layout, codebook_size=4096, warn_below=0.5)
    watch.add(torch.arange(2 * layout.num_tokens).reshape(2, -1))
    watch.close()
    assert not caplog.records
