"""Where and how things run.

    session      a Ray cluster, started here or joined: `cluster_session`
    head         a Ray head of one's own for jobs, on ports nobody else uses
    submit       a command as a Ray job: `submit`
    process      ending a process that was started here; keeping the memory of this one
    devices      which device a rank computes on
    ranks        who am I among the ranks of a training
    actors       the durable pool of actors: `run_units`; what a cluster has room for: `require_resources`
    progress     the progress bar: `ProgressBars`
    files        files that are there whole or not at all
    versions     of the packages, which every product of a run names

`docker/`, `kuberay/`, `slurm/`, `deepspeed/` hold recipes for clusters of those kinds: docs/clusters.md.
"""
