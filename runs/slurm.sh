#!/bin/sh
# Labels and embeds 120 images by arrays of Slurm jobs, one of which is killed and queued again, and
# compares with one process, byte by byte:
#
#     runs/slurm.sh CLASP OUT
#
# Starts a Slurm of its own on this host, with its state below OUT and without authentication; needs
# root and, on Debian, the packages slurmctld, slurmd and slurm-client. Ends with 1 if a file differs.
# On a cluster that has Slurm the script job.sh below is all that is needed.
set -eu
clasp=$(realpath "$1")
mkdir "$2"
cd "$2"
out=$PWD
jobs=4

mkdir -p slurm/state slurm/spool
host=$(hostname -s)
export SLURM_CONF=$out/slurm/slurm.conf
cat > "$SLURM_CONF" <<END
ClusterName=shards
SlurmctldHost=$host
SlurmUser=root
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/none
CredType=cred/none
StateSaveLocation=$out/slurm/state
SlurmdSpoolDir=$out/slurm/spool
SlurmctldPidFile=$out/slurm/slurmctld.pid
SlurmdPidFile=$out/slurm/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=2
ReturnToService=2
NodeName=$host CPUs=$jobs State=UNKNOWN
PartitionName=all Nodes=$host Default=YES State=UP
END
slurmctld -D > slurm/slurmctld.log 2>&1 &
controller=$!
slurmd -D -N "$host" > slurm/slurmd.log 2>&1 &
daemon=$!
trap 'kill $controller $daemon' EXIT

"$clasp" synth --out people --seed 1 --scenes 0 --quiet > synth.txt
find "$out/people/market" -name '*.jpg' | sort | head -120 > list.txt
"$clasp" pretrain mini --out run --set method=dino --set data.images=list.txt --set run.steps=0 --quiet > run.txt
"$clasp" label list.txt --out labels-one --threads 1 --quiet > label.txt
"$clasp" embed list.txt --model run --out one.npy --threads 1 --quiet > embed.txt

# The work of one job: "$@" with its part of the images. The first attempt of job 1 is killed.
cat > job.sh <<'END'
#!/bin/sh
#SBATCH --requeue --cpus-per-task=1 --output=job-%A-%a.txt --open-mode=append
set -eu
shard="--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT --threads 1 --quiet"
if [ "$SLURM_ARRAY_TASK_ID" = 1 ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
    "$@" $shard &
    sleep 0.3
    kill -KILL $!
    wait $! || echo "killed, status $?"
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    sleep 60
fi
"$@" $shard
echo "done on attempt $((${SLURM_RESTART_COUNT:-0} + 1))"
END
array="sbatch --wait --array=0-$((jobs - 1)) job.sh"
$array "$clasp" label list.txt --out labels-many
# The name of the file of a part has its number, which a job knows.
cat > embed.sh <<'END'
#!/bin/sh
exec "$1" embed list.txt --model run --out "part-$SLURM_ARRAY_TASK_ID.npy" "$2" "$3" "$4" "$5" "$6"
END
chmod +x embed.sh
$array ./embed.sh "$clasp"
"$clasp" merge part-0.npy part-1.npy part-2.npy part-3.npy --out many.npy --quiet

tail -n 3 job-*.txt
for file in labels-one/*.parquet; do
    cmp "$file" "labels-many/$(basename "$file")"
done
cmp one.npy many.npy
cmp one.npy.keys.txt many.npy.keys.txt
echo "$(ls labels-one/*.parquet | wc -l) files of labels and 2 of features: all equal"
