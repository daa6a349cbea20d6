"""Where and how things run: Ray sessions, placement, job submission, manifests."""
