"""The pool of actors behind every evaluation; one enters by `jobs.run_pool`, or by `pool.run_chunks` with a job.

pool        items computed chunk by chunk on Ray actors, whatever dies: `run_chunks`
chunks      the files it leaves
jobs        what is computed: samples, reconstructions, or features of given images
samplers    from checkpoints to image bytes
"""
