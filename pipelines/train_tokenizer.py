"""The old name of `pipelines.train.tokenizer`, for commands that people have written down."""

import sys

from pipelines.train.tokenizer import main

if __name__ == "__main__":
    sys.stderr.write("pipelines.train_tokenizer is called pipelines.train.tokenizer now\n")
    sys.exit(main())
