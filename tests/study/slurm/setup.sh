#!/bin/bash
# A Slurm cluster of one node on this machine, to run tests/study/slurm/test_slurm.py for real: Debian or Ubuntu, as root.
#
#   bash tests/study/slurm/setup.sh         installs Slurm, munge and MariaDB where they are missing, and starts the cluster
#   bash tests/study/slurm/setup.sh stop    ends its daemons; packages and /etc/slurm stay
#
# For a container or a virtual machine of its own. It refuses to touch a machine that already has a slurm.conf of somebody else.
# The daemons are started without systemd, which containers lack. Accounting (slurmdbd) is part of the cluster because
# submitit asks sacct how a job ended.
set -euo pipefail

CONF=/etc/slurm/slurm.conf
MARK="# written by tests/study/slurm/setup.sh of darts_sg"
STATE=/var/lib/slurm
PIDS=/run/slurm

say() { echo "setup.sh: $*"; }
fail() { echo "setup.sh: $*" >&2; exit 1; }

# Wait up to 30 seconds until a command succeeds.
until_true() {
    local what=$1; shift
    for _ in $(seq 60); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.5
    done
    fail "$what did not start within 30 seconds; its log is in /var/log/slurm or /var/log/munge"
}

# Whether the process that a file names is alive.
alive() { [[ -s $1 ]] && kill -0 "$(cat "$1")" 2>/dev/null; }

stop_daemon() {
    local pid
    if alive "$1"; then
        pid=$(cat "$1")
        kill "$pid"
        for _ in $(seq 60); do kill -0 "$pid" 2>/dev/null || break; sleep 0.5; done
    fi
    rm -f "$1"
}

[[ $(id -u) == 0 ]] || fail "needs root: sudo bash $0"

if [[ ${1:-} == stop ]]; then
    for daemon in slurmd slurmctld slurmdbd mariadbd munged; do stop_daemon "$PIDS/$daemon.pid"; done
    say "stopped"
    exit
fi
[[ $# == 0 ]] || fail "unknown argument $1; there is: stop"
if [[ -s $CONF ]] && ! grep -qF "$MARK" "$CONF"; then
    fail "$CONF is there already and not of this script: this machine belongs to a cluster"
fi

# --- packages ---------------------------------------------------------------------------------------------------------
if ! command -v slurmctld slurmd slurmdbd munged mariadbd >/dev/null; then
    command -v apt-get >/dev/null || fail "there is no apt-get: install slurm, slurmdbd, munge and mariadb by hand"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurm-wlm slurmdbd munge mariadb-server
fi

# --- folders and configuration ----------------------------------------------------------------------------------------
install -d -o slurm -g slurm "$PIDS" "$STATE" "$STATE/ctld" /var/log/slurm
install -d "$STATE/slurmd"
install -d -o munge -g munge /run/munge /var/log/munge
install -d -o mysql -g mysql /run/mysqld
if [[ ! -s /etc/munge/munge.key ]]; then
    dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
    chown munge: /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
fi

HOST=$(hostname -s)
CORES=$(nproc)
MEMORY=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo) # MB

cat >"$CONF" <<END
$MARK
ClusterName=one
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/slurmd
SlurmctldPidFile=$PIDS/slurmctld.pid
SlurmdPidFile=$PIDS/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
# no control groups, which a container may not have
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
# jobs start and end at once, for a test
SchedulerParameters=sched_interval=1,bf_interval=1
MinJobAge=60
KillWait=20
JobRequeue=1
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$CORES RealMemory=$MEMORY State=UNKNOWN
PartitionName=test Nodes=$HOST Default=YES MaxTime=60 DefMemPerCPU=$((MEMORY / CORES)) State=UP
END

cat >/etc/slurm/slurmdbd.conf <<END
$MARK
AuthType=auth/munge
DbdHost=localhost
SlurmUser=slurm
PidFile=$PIDS/slurmdbd.pid
LogFile=/var/log/slurm/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct_db
END
chown slurm: /etc/slurm/slurmdbd.conf
chmod 600 /etc/slurm/slurmdbd.conf

# --- daemons ----------------------------------------------------------------------------------------------------------
if ! munge -n </dev/null >/dev/null 2>&1; then
    runuser -u munge -- munged --pid-file /run/munge/munged.pid
    until_true munged munge -n
    ln -sf /run/munge/munged.pid "$PIDS/munged.pid"
fi

if ! mariadb-admin ping >/dev/null 2>&1; then
    [[ -d /var/lib/mysql/mysql ]] || mariadb-install-db --user=mysql >/dev/null
    # over its socket only: no network, no password
    setsid mariadbd --user=mysql --skip-networking --pid-file=/run/mysqld/mysqld.pid \
        </dev/null >/var/log/slurm/mariadbd.log 2>&1 &
    until_true mariadbd mariadb-admin ping
    ln -sf /run/mysqld/mysqld.pid "$PIDS/mariadbd.pid"
fi
mariadb -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db;
    CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED VIA unix_socket;
    GRANT ALL ON slurm_acct_db.* TO slurm@localhost;"

alive "$PIDS/slurmdbd.pid" || runuser -u slurm -- slurmdbd
until_true slurmdbd sacctmgr -n list cluster
[[ -n $(sacctmgr -n list cluster name=one) ]] || sacctmgr -i add cluster one >/dev/null
alive "$PIDS/slurmctld.pid" || runuser -u slurm -- slurmctld
until_true slurmctld scontrol ping
alive "$PIDS/slurmd.pid" || slurmd
until_true slurmd bash -c 'sinfo -h -o %t | grep -qx idle'
say "one node, $CORES cores, $MEMORY MB; try: sinfo; sbatch --wrap hostname; sacct"
