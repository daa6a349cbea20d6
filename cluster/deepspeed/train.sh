#!/usr/bin/env bash
# Train through the deepspeed launcher, without Ray.
#
#   cluster/deepspeed/train.sh MODULE [key=value ...]
#   cluster/deepspeed/train.sh pipelines.train.generator --config FILE kind=structure run_folder=runs/structure
#
# Variables: NUM_RANKS (one node, default: all GPUs, or 2 without GPU), MASTER_PORT; two trainings on one node need
# different ones. Several nodes: HOSTFILE (see hostfile.example), from one of them over ssh and pdsh; or, without ssh, on
# each of them with NODE_RANK (0, 1, …) and MASTER_ADDR besides. Starting the same command again resumes.
set -euo pipefail

if [[ $# -lt 1 ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
module=$1
shift

refuse() {
    echo "nvg: $*" >&2
    exit 2
}

# The launcher would train on this node alone where the file is missing, and wait for ever for a host that is dead.
read_hosts() {
    [[ -r "$HOSTFILE" ]] || refuse "HOSTFILE: found no file $HOSTFILE, expected lines such as 'host slots=8'"
    mapfile -t hosts < <(sed -e 's/#.*//' "$HOSTFILE" | awk 'NF { print $1 }')
    ((${#hosts[@]})) || refuse "HOSTFILE: $HOSTFILE names no host, expected lines such as 'host slots=8'"
}

check_hosts() {
    local dead=() host
    ((${#hosts[@]} > 1)) || return 0
    command -v pdsh >/dev/null || refuse "HOSTFILE: found ${#hosts[@]} hosts in $HOSTFILE and no program pdsh, through" \
        "which deepspeed starts them; install it (Debian: pdsh), or start this on each host with NODE_RANK and MASTER_ADDR"
    for host in "${hosts[@]}"; do
        ssh -n -o BatchMode=yes -o ConnectTimeout=5 "$host" true >/dev/null 2>&1 || dead+=("$host")
    done
    ((${#dead[@]})) || return 0
    refuse "HOSTFILE: of the ${#hosts[@]} hosts in $HOSTFILE these cannot be reached by ssh without a password: ${dead[*]}." \
        "Try 'ssh ${dead[0]} true'; or take them out: a run goes on with fewer ranks from its newest checkpoint"
}

check_rank() {
    if [[ ! "$NODE_RANK" =~ ^[0-9]+$ ]] || ((NODE_RANK >= ${#hosts[@]})); then
        refuse "NODE_RANK is '$NODE_RANK', expected 0 to $((${#hosts[@]} - 1)), the line of this node in $HOSTFILE"
    fi
    [[ -n "${MASTER_ADDR:-}" ]] || refuse "MASTER_ADDR is not set, expected the first host's address with NODE_RANK"
}

launcher=(deepspeed --master_port "${MASTER_PORT:-29500}")
if [[ -n "${HOSTFILE:-}" ]]; then
    read_hosts
    launcher+=(--hostfile "$HOSTFILE")
    if [[ -n "${NODE_RANK:-}" ]]; then
        check_rank
        launcher+=(--no_ssh --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR")
    else
        check_hosts
    fi
elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    [[ -z "${NUM_RANKS:-}" ]] || launcher+=(--num_gpus "$NUM_RANKS")
else
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    launcher+=(--num_gpus "${NUM_RANKS:-2}")
fi
exec "${launcher[@]}" --module "$module" "$@" loop.engine=deepspeed launch.launcher=process
