# A Ray cluster over the nodes of this allocation, then one command on it. The batch script runs on the first node, as
# does the head of the cluster. Nothing listens at a fixed port, so that several jobs may share a node.
set -euo pipefail
umask 077
: "${SLURM_JOB_ID:?expected to run as a batch job: sbatch FILE}"

# A folder that all nodes see, for the token and the address of the head; it is removed at the end.
shared=$(mktemp -d "${DRAY_SHARED_DIR:-$SLURM_SUBMIT_DIR}/.ray-$SLURM_JOB_ID-XXXXXX")
export shared RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$shared/token"
unset RAY_AUTH_TOKEN RAY_ADDRESS  # of another cluster
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"

# shellcheck disable=SC2329  # srun calls it
start_node() { # runs on every node, until it is stopped
    set -euo pipefail
    temp="/tmp/ray-$SLURM_JOB_ID-$SLURM_PROCID"
    mkdir -m 0700 "$temp" # fails if it exists: another user could have made it
    trap 'rm -rf "$temp"' EXIT
    options=(--temp-dir="$temp" --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --dashboard-agent-listen-port=0)
    options+=(--disable-usage-stats --log-color=false)
    if [ "${SLURM_MEM_PER_NODE:-0}" -gt 0 ]; then # in MiB: 70 % for tasks, 20 % for objects, the rest for Ray
        options+=(--memory=$((SLURM_MEM_PER_NODE * 734003)) --object-store-memory=$((SLURM_MEM_PER_NODE * 209715)))
    fi
    if [ "$SLURM_PROCID" = 0 ]; then
        options+=(--head --port=0 --include-dashboard=false)
    else
        until [ -e "$shared/address" ]; do sleep 0.5; done
        options+=(--address="$(<"$shared/address")")
    fi
    ray start --block "${options[@]}" </dev/null &
    ray=$!
    trap 'kill -TERM "$ray" 2>/dev/null || true' TERM
    if [ "$SLURM_PROCID" = 0 ]; then
        until [ -s "$temp/ray_current_cluster" ]; do # which Ray writes once it answers
            kill -0 "$ray"
            sleep 0.5
        done
        cp "$temp/ray_current_cluster" "$shared/address.part"
        mv "$shared/address.part" "$shared/address"
    fi
    while kill -0 "$ray" 2>/dev/null; do wait "$ray" || true; done # a signal ends `wait`, not Ray
}

# shellcheck disable=SC2329  # a trap calls it
end() {
    trap '' TERM
    kill -TERM "$nodes" 2>/dev/null || true
    wait "$nodes" 2>/dev/null || true
    rm -rf "$shared"
}

# --wait and --kill-on-bad-exit: the job goes on without a node that is lost. Since Slurm 22.05 a step does not have the
# --cpus-per-task of its job unless it asks for them.
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    --wait=0 --kill-on-bad-exit=0 bash -c "$(declare -f start_node); start_node" &
nodes=$!
trap end EXIT
trap 'exit 143' TERM

until [ -e "$shared/address" ]; do
    kill -0 "$nodes" 2>/dev/null || { echo "dray: error: Ray did not start: the lines above say why" >&2; exit 4; }
    sleep 0.5
done
RAY_ADDRESS=$(<"$shared/address")
export RAY_ADDRESS

# Slurm sends SIGTERM before the time limit, and dray then ends in good order: the next run does the rest.
"${command[@]}" &
driver=$!
trap 'kill -TERM "$driver" 2>/dev/null || true' TERM
code=0
while kill -0 "$driver" 2>/dev/null; do
    code=0
    wait "$driver" || code=$?
done
exit "$code"
