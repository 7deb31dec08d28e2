#!/usr/bin/env bash
# A Slurm of one node on this machine, in the folder given, until this script is ended; "ready" is printed when it takes
# jobs. Commands find it by SLURM_CONF=FOLDER/slurm.conf. It wants Debian's slurm-wlm and munge, and installs nothing:
#
#     tests/slurm/start.sh FOLDER PORT
#
# Two partitions on the same node: a job of "urgent" preempts one of "main", which is told to end (SIGTERM) and queued again.
set -euo pipefail
folder=$(realpath "$1")
port=$2 # and the next one
export PATH=$PATH:/usr/sbin SLURM_CONF=$folder/slurm.conf
user=$(id -un)
cores=$(nproc --all)
host=$(hostname -s)
umask 022
mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
# munged trusts no folder that others can write to, and its socket lies where others could look for it.
chmod 711 "$folder/munge"
(umask 077 && head -c 1024 /dev/urandom > "$folder/munge/key")

cat > "$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
# A job that is queued again waits until its old credential has expired: not 120 s here.
AuthInfo=socket=$folder/munge/socket,cred_expire=15
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# There may be no control groups that this user can write to.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/completed.txt
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
# Seconds, so that tests do not wait.
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
KillWait=10
MinJobAge=300
InactiveLimit=0
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores CoresPerSocket=$cores State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
# Nothing of control groups is used, which can be said from 23.11 on; before, a plugin that is loaded and not asked.
version=$(slurmd -V | grep -oE '[0-9]+\.[0-9]+' | head -n 1)
plugin=cgroup/v1
[[ $(printf '23.11\n%s\n' "$version" | sort -V | head -n 1) != 23.11 ]] || plugin=disabled
echo "CgroupPlugin=$plugin" > "$folder/cgroup.conf"

daemons=()
end() {
    trap - EXIT
    # Jobs first: what is left of one looks for its controller for long. A slurmd that waits for it is killed.
    timeout 10 scancel --user="$user" 2> /dev/null || true
    for _ in $(seq 100); do [[ -n $(timeout 5 squeue --noheader 2> /dev/null) ]] || break; sleep 0.2; done
    ((${#daemons[@]} == 0)) || kill "${daemons[@]}" 2> /dev/null || true
    for _ in $(seq 50); do jobs -pr | grep -q . || break; sleep 0.2; done
    ((${#daemons[@]} == 0)) || kill -9 "${daemons[@]}" 2> /dev/null || true
    wait
}
trap end EXIT
trap 'exit 0' TERM INT

munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" > "$folder/munged.out" 2>&1 &
daemons+=($!)
for _ in $(seq 100); do test ! -S "$folder/munge/socket" || break; sleep 0.1; done
slurmctld -D > "$folder/slurmctld.out" 2>&1 &
daemons+=($!)
slurmd -D -N "$host" > "$folder/slurmd.out" 2>&1 &
daemons+=($!)
for _ in $(seq 300); do
    if sinfo --noheader --format=%t 2> /dev/null | grep -q idle; then
        echo ready
        wait
    fi
    for daemon in "${daemons[@]}"; do
        kill -0 "$daemon" 2> /dev/null || break 2
    done
    sleep 0.1
done
tail -n 5 "$folder"/*.out > "$folder/why"
exit 1
