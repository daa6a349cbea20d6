"""Batches for the trainings: which images or records a rank sees in a step, the same for any number of ranks.

In reading order:

* `config`: the settings, `DataConfig` (records) and `ImageLoadingConfig` (images)
* `order`: epochs, views and each rank's rows of a global batch; what a `BatchSource` is
* `images`: the tokenizer's images, held or decoded ahead. Enter by `image_source`
* `records`: the generators' records and what lies beside them. Enter by `open_records`, then `generator_source`
* `streaming`: records in a store, through StreamingDataset
"""
