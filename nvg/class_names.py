"""Classes as a user asks for them: names and labels, and which samples of the whole set their images are."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvg.bounds import refuse

_SIMILAR = 0.4
_MOST_NAMED = 20


def labels_of(classes: Any, names: Sequence[str]) -> list[int]:
    """Labels of classes.

    Args:
        classes: a text is a name, a number a label; one, or several of either; None is all of them.
        names: of all classes, by label.

    Raises:
        UserError: there is no such class (names the nearest), or several are called so.
    """
    if classes is None:
        return list(range(len(names)))
    several = list(classes) if isinstance(classes, (list, tuple, range, np.ndarray)) else [classes]
    if not several:
        raise refuse("classes", classes, "at least one class, or None for all")
    return [_label_of(wanted, names) for wanted in several]


def number_samples(
    labels: Sequence[int], per_class: int, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which samples some images of some classes are.

    Args:
        labels: classes in order; one that comes twice goes on with other images.
        per_class: images of each.
        num_classes: that there are.

    Returns:
        labels; number of each image within its class; sample indices: the k-th image of class c is sample
        c + k · classes of the evaluation pool, whichever classes are asked for. int64 (images,) each.
    """
    labels_B, counters = np.repeat(np.asarray(labels, np.int64), per_class), defaultdict[int, count](count)
    numbers_B = np.array([next(counters[label]) for label in labels_B.tolist()], np.int64)
    return labels_B, numbers_B, labels_B + numbers_B * num_classes


def _label_of(wanted: Any, names: Sequence[str]) -> int:
    if isinstance(wanted, str):
        found = [label for label, name in enumerate(names) if name == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise refuse("classes", wanted, f"one class; labels {found} are all called so", "give a label")
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=_SIMILAR)
        shown = f"did you mean {' or '.join(map(repr, near))}?" if near else ", ".join(names[:_MOST_NAMED])
        raise refuse("classes", wanted, f"the name of one of {len(names)} classes ({shown})")
    try:
        label = -1 if isinstance(wanted, bool) else index(wanted)
    except TypeError:
        label = -1
    if not 0 <= label < len(names):
        raise refuse("classes", wanted, f"a label from 0 to {len(names) - 1}, or a name")
    return label
