"""Environment variables that a launcher, a batch system or a shell left behind."""

from __future__ import annotations

import itertools
from functools import partial

from robustness import Tally

from cluster.ranks import Ranks
from cluster.session import SessionConfig, _resolve_address, settle_temporary_folder

NO_COUNTS = ["two", "", " ", "-1", "1.5", "1e3", "0x2", "½", "²", "1 0", "None", "9" * 30, "\udce9", "1\n"]
NO_ADDRESSES = [
    *("http://127.0.0.1:8265", "https://head:8265/", "localhost", "10.0.0.5", "head:", ":6379", "head:port", "ray://"),
    *(
        "ray://head",
        "tcp://head:6379",
        "head:6379/",
        "a b:1",
        "head:-1",
        "\udce9",
        "²:1:1",
        " ",
        "a:1,b:1",
    ),
]


def test_variables_of_launchers(tally: Tally):
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")
    sound = {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, text in itertools.product(names, NO_COUNTS):
        for others in ({}, sound):
            if name == "LOCAL_SIZE" and (others or not text):
                continue  # LOCAL_WORLD_SIZE wins
            environment = {**others, name: text}
            is_unset = name == "LOCAL_WORLD_SIZE" and not text and not others
            tally.expect_refusal(
                "environment",
                str(environment),
                partial(Ranks.read, environment),
                names=name if text else "",
                tolerated="an empty one counts as unset" if is_unset else "",
            )
    for rank, world, local, local_world in itertools.product(range(4), range(4), range(3), range(3)):
        if rank < world and local < local_world and world % local_world == 0:
            continue
        values = dict(zip(sound, map(str, (world, rank, local, local_world)), strict=True))
        tally.expect_refusal(
            "environment", str(values), partial(Ranks.read, values), names="expected rank < world size"
        )
    tally.check("environment", at_least=200)


def test_addresses_and_folders(tally: Tally, monkeypatch):
    for text in NO_ADDRESSES:
        monkeypatch.setenv("RAY_ADDRESS", text)
        tally.expect_refusal("environment", text, partial(_resolve_address, SessionConfig()), names="RAY_ADDRESS is ")
    for text in ("/" + "x" * 36, "/" + "ü" * 20, "relative/" * 10, "/" + "x" * 5000):
        monkeypatch.setenv("RAY_TMPDIR", text)
        tally.expect_refusal("environment", text, settle_temporary_folder, names="RAY_TMPDIR has ")
    tally.check("environment")
