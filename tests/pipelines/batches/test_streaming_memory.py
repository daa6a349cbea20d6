"""Shared memory of killed trainings is removed; that of living ones and of strangers stays."""

import json
import subprocess
import sys

import pytest

from pipelines.batches.streaming import claim, remove_dead


@pytest.fixture
def node(tmp_path):
    """Folders of segments, locks and notes, and the segments of three datasets."""
    folders = [tmp_path / name for name in ("shm", "locks", "claims")]
    for folder in folders[:2]:
        folder.mkdir()
        for number in range(3):
            for name in ("locals", "barrier"):
                (folder / f"{number:06}_{name}").write_text("x")
    return folders


def kill_owner(claims, number):
    """The noted process becomes one that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    file = claims / f"{number:06}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pid": ended.pid}))


def test_dead_owners_segments_go_and_all_others_stay(node):
    shm, locks, claims = node
    for number in (0, 1):
        claim(number, str(locks), claims, shm)
    kill_owner(claims, 0)
    assert remove_dead(claims, shm) == ["000000"]
    for folder in (shm, locks):
        assert sorted(path.name[:6] for path in folder.iterdir()) == ["000001"] * 2 + ["000002"] * 2
    assert remove_dead(claims, shm) == []


def test_prefix_that_a_stranger_has_taken_since_is_left_alone(node):
    shm, locks, claims = node
    claim(0, str(locks), claims, shm)
    kill_owner(claims, 0)
    (shm / "new").write_text("x")
    (shm / "new").rename(shm / "000000_locals")
    assert remove_dead(claims, shm) == []
    assert (shm / "000000_barrier").exists()
    assert not list(claims.iterdir())


def test_killed_ones_do_not_add_up(node):
    shm, locks, claims = node
    for _ in range(5):
        remove_dead(claims, shm)
        for name in ("locals", "barrier"):
            (shm / f"000000_{name}").write_text("x")
        claim(0, str(locks), claims, shm)
        kill_owner(claims, 0)
        assert len(list(claims.iterdir())) == 1
        assert len(list(shm.iterdir())) == 6
