"""Where `nvg` starts: the command line, or what to install where its own packages are missing."""

from __future__ import annotations

import sys

from cluster.versions import say_missing


def main() -> None:
    """Entry point of the console script."""
    try:
        from pipelines.cli.main import main as run
    except ModuleNotFoundError as error:
        message = say_missing(error)
        if message is None:
            raise
        sys.stderr.write(f"nvg: {message}\n")
        sys.exit(2)  # as `pipelines.entry.guard` ends, which cannot be imported here
    run()


if __name__ == "__main__":
    main()
