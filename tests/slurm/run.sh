#!/usr/bin/env bash
# A real Slurm on this machine, on loopback, for as long as this script runs: `make slurm`.
#
# It starts munged, slurmctld and slurmd with a configuration of its own in a temporary folder, trains the digits with
# tools/dist_train.sh in two tasks, tests the student with tools/dist_test.sh, and compares methods as Slurm jobs.
# Needs root, or slurm-wlm and munge installed and a user slurmd can run as; where they cannot be had it is skipped.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-$root/.venv/bin/python}
export PYTHON
[ -x "$PYTHON" ] || { echo "slurm: there is no $PYTHON; \`make slurm\` makes it" >&2; exit 2; }

skip() {
    echo "slurm: skipped, $1"
    exit 0
}

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    [ "$(id -u)" -eq 0 ] || skip "slurm-wlm and munge are not installed, and this is not root"
    command -v apt-get >/dev/null || skip "slurm-wlm and munge are not installed, and there is no apt-get"
    echo "slurm: installing slurm-wlm and munge"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq slurm-wlm munge >/dev/null 2>&1 ||
        { apt-get update -qq >/dev/null && apt-get install -y -qq slurm-wlm munge >/dev/null; } ||
        skip "apt-get cannot install slurm-wlm and munge"
fi
[ "$(id -u)" -eq 0 ] || skip "slurmd needs root"

folder=$(mktemp -d /tmp/slurm-XXXXXX)
daemons=()
stop() {
    status=$?
    if [ "$status" -ne 0 ]; then
        echo "slurm: failed; the ends of the daemons' logs:" >&2
        tail -n 20 "$folder"/*.log "$folder"/*/slurm/*.err >&2 || true
    fi
    scancel --user root 2>/dev/null || true
    for daemon in "${daemons[@]}"; do
        kill -9 "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    done
    pkill -9 -f "slurmstepd.*$folder" 2>/dev/null || true
    rm -rf "$folder"
    exit "$status"
}
trap stop EXIT

free_port() { "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
host=$(hostname -s)
mkdir -p "$folder"/{state,spool}
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 700 "$folder"
chmod 600 "$folder/munge.key"
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
ReturnToService=2
SlurmdParameters=config_overrides
InactiveLimit=0
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --num-threads=2 \
    --log-file="$folder/munged.log" --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed" \
    2>"$folder/munged-errors.log" &
daemons+=($!)
for _ in $(seq 50); do [ -S "$folder/munge.socket" ] && break || sleep 0.1; done
slurmctld -D 2>/dev/null &
daemons+=($!)
slurmd -D 2>/dev/null &
daemons+=($!)
for _ in $(seq 100); do
    [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && break || sleep 0.2
done
sinfo
[ "$(sinfo --noheader --format=%T)" = idle ] || { echo "slurm: the node is not ready" >&2; exit 1; }

began=$(date +%s)
cd "$folder"
recipe="a recipe.toml" # with a space
cat >"$recipe" <<'TOML'
[data]
name = "digits"
[teacher]
model = "resnet8"
epochs = 2
batch_size = 64
[paraphraser]
epochs = 1
batch_size = 64
[student]
model = "resnet8"
args = { width = 4 }
epochs = 2
batch_size = 64
[transfer.factor]
beta = 50
TOML
echo "== two processes of torchrun"
GPUS=2 STAGE=teacher timeout 120 sh "$root/tools/dist_train.sh" local "a job" "$recipe" "by torchrun" >local.txt 2>&1 ||
    { cat local.txt; exit 1; }
grep "teacher  done in" local.txt
echo "== two tasks of srun train"
GPUS=2 GPUS_PER_NODE=0 SRUN_ARGS="--overcommit --time=2" timeout 120 \
    sh "$root/tools/dist_train.sh" test "a job" "$recipe" "a work dir" student.seed=3 | tee train.txt
grep -q "student, Factor Transfer" train.txt
[ "$(grep -c "epoch 2/2" train.txt)" -eq 2 ] # once each: teacher and student, by one of the two
echo "== two tasks of srun test, against one process"
GPUS=2 GPUS_PER_NODE=0 SRUN_ARGS="--overcommit --time=2" timeout 60 \
    sh "$root/tools/dist_test.sh" test "a job" "$recipe" "a work dir" --eval accuracy,f1 >test.txt
timeout 60 "$PYTHON" -m factor_transfer test "$recipe" "a work dir" --eval accuracy,f1 >alone.txt
# All but the line that says what was found, for it counts the processes.
diff <(grep -v "^data " test.txt) <(grep -v "^data " alone.txt)
grep "top-1" test.txt
echo "== methods as jobs"
timeout 120 "$PYTHON" -m factor_transfer compare "$recipe" --work-dir "a work dir" --methods student,kd --seeds 1 \
    student.seed=3 --slurm test --slurm-args "time=10" | tee compare.txt
grep -Eq "[|] KD +[|] +[0-9]" compare.txt
echo "slurm: all seen to work, in $(($(date +%s) - began)) s"
