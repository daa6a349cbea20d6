"""Which records or images a training reads, and in which order."""

from dataclasses import dataclass
from typing import Literal

from nvg.bounds import at_least, check_fields, positive, refuse

ViewsPerEpoch = Literal["one", "in_turn", "all"]  # a random view of each image, view (epoch mod their number), or all


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Records of a precompute.

    Attributes:
        path: folder with the MDS shards and manifest.json.
        remote: URL or path of where the records lie; `path` is then a folder of each node to which they are copied
            when they are first read (streaming).
        loader: "memory" holds all records in each rank (1.6 GB a view of ImageNet); "mapped" reads them where they lie,
            the ranks of a node sharing one copy; "indexed" does so for 10^8 and more, of which it holds nothing, in an
            order of its own; "streaming" is StreamingDataset, for the records of `remote`.
        views_per_epoch: "one" random view of each image per epoch, one after the other "in_turn" (epoch e takes view
            e mod their number), or "all" views (streaming always goes over all).
        num_canonical_nodes, shuffle_block_size, shuffle_algo: StreamingDataset's order; part of the fingerprint.
        num_workers: loader processes per rank (streaming).
        num_threads: threads of a rank that decode the images beside the records (`repa.store=jpeg`).
    """

    path: str = ""
    remote: str = ""
    loader: Literal["memory", "mapped", "indexed", "streaming"] = "memory"
    views_per_epoch: ViewsPerEpoch = "one"
    num_canonical_nodes: int = positive(8)
    shuffle_block_size: int = positive(262_144)
    shuffle_algo: str = "py1s"
    num_workers: int = at_least(0, 0)
    num_threads: int = at_least(1, 2)

    def __post_init__(self) -> None:
        check_fields(self, "data")
        if self.loader == "streaming" and not self.remote:
            expected = "memory or mapped, as data.remote is empty"
            raise refuse("data.loader", self.loader, expected, "use mapped")
        if self.remote and self.loader != "streaming":
            advice = "set data.loader=streaming, or copy the records and leave data.remote out"
            raise refuse("data.loader", self.loader, f"streaming for data.remote {self.remote!r}", advice)
        if self.loader == "streaming" and self.views_per_epoch != "all":
            raise refuse("data.views_per_epoch", self.views_per_epoch, "all, which data.loader=streaming goes over")


@dataclass(frozen=True, kw_only=True)
class ImageLoadingConfig:
    """How a rank reads its images; no setting changes a batch.

    Attributes:
        loader: "memory" decodes every view once and holds the bytes (8 GiB a rank at most), "lazy" decodes each batch
            anew, "auto" takes memory where the views fit and lazy elsewhere.
        num_threads: threads of a rank that read and decode (lazy).
        prefetch_batches: batches of a rank that are read ahead (lazy).
    """

    loader: Literal["auto", "memory", "lazy"] = "auto"
    num_threads: int = at_least(1, 2)
    prefetch_batches: int = at_least(1, 2)

    def __post_init__(self) -> None:
        check_fields(self, "loading")
