"""The old name of `pipelines.train.generator`, for commands that people have written down."""

import sys

from pipelines.train.generator import main

if __name__ == "__main__":
    sys.stderr.write("pipelines.train_generator is called pipelines.train.generator now\n")
    sys.exit(main())
