#!/usr/bin/env bash
# A run of clipmill in one allocation of Slurm: a Ray head on the first node, workers on all.
#   sbatch --nodes=4 deploy/slurm.sh mine.yaml --out /shared/run
# `clipmill` must be on the PATH of each node. Before the time is up the run stops, and the job goes
# back into the queue: it goes on with what is done.
#SBATCH --job-name=clipmill
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address="$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')"
port=$((20000 + SLURM_JOB_ID % 10000)) # another job may have a head on this node
on=(srun --overlap --ntasks=1 --nodes=1)

umask 077
RAY_AUTH_TOKEN="$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')" # of this cluster alone
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

"${on[@]}" --nodelist="${nodes[0]}" \
  ray start --block --head --node-ip-address="$address" --port="$port" --include-dashboard=false &
cluster=($!)
until ray status --address "$address:$port" > /dev/null 2>&1; do
  kill -0 "${cluster[0]}" || { echo "the head did not start" >&2; exit 1; }
  sleep 1
done
for node in "${nodes[@]:1}"; do
  "${on[@]}" --nodelist="$node" ray start --block --address="$address:$port" &
  cluster+=($!)
done

clipmill run "$@" --executor ray --address "$address:$port" &
run=$!
stopped=
trap 'stopped=yes; kill -TERM "$run"' TERM INT
code=0
wait "$run" || code=$?
if [ "$stopped" ]; then # `wait` ended with the signal: the run is still ending
  wait "$run" || true
fi
kill "${cluster[@]}" 2> /dev/null || true
wait "${cluster[@]}" || true
if [ "$stopped" ] && [ "${SLURM_JOB_ID:-}" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
