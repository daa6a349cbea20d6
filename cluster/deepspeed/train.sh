#!/usr/bin/env bash
# Train through the deepspeed launcher, without Ray.
#
#   cluster/deepspeed/train.sh MODULE [key=value ...]
#   cluster/deepspeed/train.sh pipelines.train.generator --config FILE kind=structure run_folder=runs/structure
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

# The launcher would train on this node alone where the file is missing, and wait for ever for a host that is dead.
check_hosts() {
    [[ -r "$HOSTFILE" ]] || { echo "nvg: HOSTFILE: found no file $HOSTFILE, expected lines such as 'host slots=8'" >&2; exit 2; }
    local hosts dead=() host
    mapfile -t hosts < <(sed -e 's/#.*//' "$HOSTFILE" | awk 'NF { print $1 }')
    ((${#hosts[@]})) || { echo "nvg: HOSTFILE: $HOSTFILE names no host, expected lines such as 'host slots=8'" >&2; exit 2; }
    ((${#hosts[@]} > 1)) || return 0
    for host in "${hosts[@]}"; do
        ssh -n -o BatchMode=yes -o ConnectTimeout=5 "$host" true >/dev/null 2>&1 || dead+=("$host")
    done
    ((${#dead[@]})) || return 0
    echo "nvg: HOSTFILE: of the ${#hosts[@]} hosts in $HOSTFILE these cannot be reached by ssh without a password: ${dead[*]}." \
        "Try 'ssh ${dead[0]} true'; or take them out: a run goes on with fewer ranks from its newest checkpoint" >&2
    exit 2
}

launcher=(deepspeed --master_port "${MASTER_PORT:-29500}")
if [[ -n "${HOSTFILE:-}" ]]; then
    check_hosts
    launcher+=(--hostfile "$HOSTFILE")
elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    [[ -z "${NUM_RANKS:-}" ]] || launcher+=(--num_gpus "$NUM_RANKS")
else
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    launcher+=(--num_gpus "${NUM_RANKS:-2}")
fi
exec "${launcher[@]}" --module "$module" "$@" loop.engine=deepspeed launch.launcher=process
