"""Which records a generator is trained on, and in which order."""

from dataclasses import dataclass

from pipelines.configuration import check

VIEWS_PER_EPOCH = ("one", "in_turn", "all")  # a random view of each image, view (epoch mod their number), or all views
LOADERS = ("auto", "memory", "lazy")


def check_views_per_epoch(name: str, value: str) -> None:
    """Refuse what is no way of choosing views: ValueError names the key."""
    check(value in VIEWS_PER_EPOCH, f"{name} is {value!r}; choose one of {', '.join(VIEWS_PER_EPOCH)}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Records of a precompute.

    Attributes:
        path: folder with the MDS shards and manifest.json.
        remote: URL or path of where the records lie; ``path`` is then a folder of each node to which they are copied
            when they are first read (streaming).
        loader: "memory" holds all records in each rank (1.6 GB a view of ImageNet); "mapped" reads them where they lie,
            the ranks of a node sharing one copy; "streaming" uses StreamingDataset.
        views_per_epoch: "one" random view of each image per epoch, one after the other "in_turn" (epoch e takes view
            e mod their number), or "all" views (streaming always goes over all).
        num_canonical_nodes, shuffle_block_size, shuffle_algo: StreamingDataset's order; part of the
            fingerprint.
        num_workers: loader processes per rank (streaming).
    """

    path: str = ""
    remote: str = ""
    loader: str = "memory"
    views_per_epoch: str = "one"
    num_canonical_nodes: int = 8
    shuffle_block_size: int = 262_144
    shuffle_algo: str = "py1s"
    num_workers: int = 0

    def __post_init__(self) -> None:
        check(
            self.loader in ("memory", "mapped", "streaming"),
            f"data.loader is {self.loader!r}; choose memory, mapped or streaming",
        )
        check_views_per_epoch("data.views_per_epoch", self.views_per_epoch)
        check(
            self.loader != "streaming" or self.views_per_epoch == "all",
            "data.loader=streaming goes over all views: set data.views_per_epoch=all",
        )
        check(
            not self.remote or self.loader == "streaming",
            f"data.remote is {self.remote!r} and data.loader {self.loader!r}; set data.loader=streaming, or copy the "
            "records and leave data.remote out",
        )
        for name in ("num_canonical_nodes", "shuffle_block_size"):
            value = getattr(self, name)
            check(value > 0, f"data.{name} is {value}; it must be above 0")
        check(self.num_workers >= 0, f"data.num_workers is {self.num_workers}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class ImageLoadingConfig:
    """How a rank reads its images; no setting changes a batch.

    Attributes:
        loader: "memory" decodes every view once and holds the bytes (8 GiB a rank at most), "lazy" decodes each batch
            anew, "auto" takes memory where the views fit and lazy elsewhere.
        num_threads: threads of a rank that read and decode (lazy).
        prefetch_batches: batches of a rank that are read ahead (lazy).
    """

    loader: str = "auto"
    num_threads: int = 2
    prefetch_batches: int = 2

    def __post_init__(self) -> None:
        if self.loader not in LOADERS:
            raise ValueError(f"loading.loader is {self.loader!r}; choose one of {', '.join(LOADERS)}")
        for name in ("num_threads", "prefetch_batches"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"loading.{name} is {value}; it must be 1 or more")
