#!/usr/bin/env bash
# Train through the deepspeed launcher, without Ray.
#
#   cluster/deepspeed/train.sh MODULE [key=value ...]
#   cluster/deepspeed/train.sh pipelines.train_generator --config FILE kind=structure run_folder=runs/structure
#
# Variables: HOSTFILE (several nodes), NUM_RANKS (one node, default: all GPUs, or 2 without GPU), MASTER_PORT.
# Two trainings on one node need different MASTER_PORTs. Starting the same command again resumes.
set -euo pipefail

if [[ $# -lt 1 ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
module=$1
shift

launcher=(deepspeed --master_port "${MASTER_PORT:-29500}")
if [[ -n "${HOSTFILE:-}" ]]; then
    launcher+=(--hostfile "$HOSTFILE")
elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    [[ -z "${NUM_RANKS:-}" ]] || launcher+=(--num_gpus "$NUM_RANKS")
else
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    launcher+=(--num_gpus "${NUM_RANKS:-2}")
fi
exec "${launcher[@]}" --module "$module" "$@" loop.engine=deepspeed launch.launcher=process
