"""Bad inputs in process: each ends as a user's mistake or is named as tolerated; counted for a table at the end."""

from __future__ import annotations

import io
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from damaged_files import Damage, put

from pipelines.entry import EXIT_USER_ERROR, guard


@dataclass
class Area:
    """What was tried of one kind of input, such as "settings" or "tar shards".

    Attributes:
        refused: inputs that ended with exit code 2 and a message.
        tolerated: reason to number of inputs that did no harm.
        messages: distinct ones, with numbers and quoted parts left out.
        faults: inputs that ended otherwise, and how.
    """

    refused: int = 0
    tolerated: Counter[str] = field(default_factory=Counter)
    messages: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_inputs(self) -> int:
        return self.refused + sum(self.tolerated.values()) + len(self.faults)


class Tally:
    """Every area that a session of tests tried."""

    def __init__(self) -> None:
        self.areas: dict[str, Area] = {}

    def expect_refusal(
        self, area: str, name: str, run: Callable[[], object], *, names: str = "", tolerated: str = ""
    ) -> None:
        """Run a bad input as a command would: `run` reads it, and anything but a user's mistake is noted as a fault.

        Args:
            area: under which it is counted.
            name: of the input, for the report of a fault.
            run: gets the input to where its reader would use it.
            names: a text that the message must hold, such as the file or the key.
            tolerated: why it may be read all the same; empty where it may not.
        """
        found = self.areas.setdefault(area, Area())
        begun = time.perf_counter()
        said = io.StringIO()
        try:
            with redirect_stderr(said), redirect_stdout(io.StringIO()):
                code = guard(run)
        except BaseException as error:
            found.faults.append(f"{name}: {type(error).__name__}: {error}"[:300])
        else:
            message = said.getvalue().strip()
            if code == 0 and tolerated:
                found.tolerated[tolerated] += 1
            elif code != EXIT_USER_ERROR or names not in message or not message:
                found.faults.append(f"{name}: exit code {code}, {message!r}, which should name {names!r}"[:400])
            else:
                found.refused += 1
                found.messages.add(re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "…", message))
        found.seconds += time.perf_counter() - begun

    def expect_refusals(
        self,
        area: str,
        path: Path,
        damages: Iterable[Damage],
        run: Callable[[], object],
        *,
        names: str | None = None,
        tolerated: str = "",
        absent: str = "",
        missing: str = "",
    ) -> None:
        """Give a file every damage in turn, then none and a folder in its place; the sound file is there afterwards.

        Args:
            area: under which they are counted.
            path: of the sound file.
            damages: what it is replaced by.
            run: reads it.
            names: a text that every message must hold; None is the path.
            tolerated: why it may be read whatever is done to it.
            absent: why it may be gone, or a folder.
            missing: why it may be gone.
        """
        names = str(path) if names is None else names
        sound = path.read_bytes()
        run()
        for name, content, reason in damages:
            put(path, content)
            reason = reason or tolerated or ("the same bytes" if content == sound else "")
            self.expect_refusal(area, f"{path.name}: {name}", run, names=names, tolerated=reason)
        path.unlink(missing_ok=True)
        self.expect_refusal(area, f"{path.name}: none", run, names=names, tolerated=missing or absent or tolerated)
        path.unlink(missing_ok=True)  # some write a new one
        path.mkdir()
        self.expect_refusal(area, f"{path.name}: a folder", run, names=names, tolerated=absent or tolerated)
        if path.is_dir():
            path.rmdir()
        put(path, sound)
        run()

    def check(self, area: str, *, at_least: int = 1) -> None:
        """Fail with the faults of an area, or where it tried fewer inputs than it should."""
        found = self.areas[area]
        assert not found.faults, f"{len(found.faults)} faults in {area}:\n" + "\n".join(found.faults[:20])
        assert found.num_inputs >= at_least, f"{area} tried {found.num_inputs} inputs, expected {at_least}"

    def table(self) -> str:
        """The figures, as rows of Markdown."""
        rows = ["| area | inputs | refused | tolerated | distinct messages | faults | seconds |"]
        rows.append("|---|---|---|---|---|---|---|")
        for name, area in sorted(self.areas.items()):
            tolerated = ", ".join(f"{number} ({reason})" for reason, number in area.tolerated.items()) or "0"
            rows.append(
                f"| {name} | {area.num_inputs:,} | {area.refused:,} | {tolerated} | {len(area.messages):,} | "
                f"{len(area.faults)} | {area.seconds:.1f} |"
            )
        return "\n".join(rows)
