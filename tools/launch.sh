# What dist_train.sh and dist_test.sh share: how the processes are started. Not to be run by itself.

refuse() {
    echo "Error: $1" >&2
    exit 2
}

number() {
    case $2 in
    '' | *[!0-9]*) refuse "$1 is $2; it must be a number" ;;
    esac
}

# launch PARTITION JOB_NAME COMMAND ...: several processes of `python -m factor_transfer COMMAND ...`, in this one's place.
launch() {
    partition=$1 job=$2
    shift 2
    beside=$(dirname "$0")/../.venv/bin/python
    if [ -z "${PYTHON:-}" ] && [ -x "$beside" ]; then PYTHON=$beside; fi
    python=${PYTHON:-python3}
    here=$(nvidia-smi --list-gpus 2>/dev/null | grep -c . || true)
    tasks=${GPUS:-$here}
    number GPUS "$tasks"
    gpus=${GPUS_PER_NODE:-$tasks} # of each node; 0: processes without
    number GPUS_PER_NODE "$gpus"
    [ "$tasks" -gt 0 ] || tasks=1
    nodes=${NNODES:-}
    if [ -z "$nodes" ] && [ "$gpus" -gt 0 ]; then nodes=$(((tasks + gpus - 1) / gpus)); fi
    nodes=${nodes:-1}
    number NNODES "$nodes"
    if [ "$nodes" -lt 1 ] || [ $((tasks % nodes)) -ne 0 ]; then
        refuse "GPUS=$tasks processes cannot be divided among $nodes nodes; give NNODES, or another GPUS_PER_NODE"
    fi
    beside=$((tasks / nodes))
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-${CPUS_PER_TASK:-1}}
    export OMP_NUM_THREADS

    if [ "$partition" = local ]; then
        if [ "$nodes" -eq 1 ]; then
            set -- --standalone -m factor_transfer "$@"
        else
            set -- --node_rank "${NODE_RANK:-0}" --master_addr "${MASTER_ADDR:?the first node, for NNODES=$nodes}" \
                --master_port "${PORT:-29500}" -m factor_transfer "$@"
        fi
        exec "$python" -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "$beside" "$@"
    fi

    command -v srun >/dev/null 2>&1 || refuse "srun is not here, so there is no partition $partition; the partition \`local\` trains on this machine"
    set -- "$python" -m factor_transfer "$@"
    if [ "$gpus" -gt 0 ]; then set -- --gres="gpu:$beside" "$@"; fi
    # One port for all processes: of another job on the same nodes it should be another one.
    if [ -n "${PORT:-}" ]; then export MASTER_PORT="$PORT"; fi
    # shellcheck disable=SC2086 # SRUN_ARGS is several arguments
    exec srun --partition="$partition" --job-name="$job" --ntasks="$tasks" --ntasks-per-node="$beside" \
        --cpus-per-task="${CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} "$@"
}
