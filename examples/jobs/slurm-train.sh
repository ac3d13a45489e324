#!/bin/sh
# One training run on the GPUs of several Slurm nodes, one process per GPU:
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 examples/jobs/slurm-train.sh --sunseg /data/SUN-SEG --out /shared/run1
# A preempted job is requeued and continues from its checkpoint; after its time limit submit it again.
#SBATCH --job-name=autosam-train
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=autosam-train-%j.log
set -eu
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT="$((20000 + SLURM_JOB_ID % 10000))"
export MASTER_ADDR MASTER_PORT
out=""
previous=""
for word in "$@"; do
    [ "$previous" != --out ] || out="$word"
    previous="$word"
done
resume=""
[ ! -e "$out/checkpoint.safetensors" ] || resume="--resume"
# shellcheck disable=SC2086 # one word or none
exec srun autosam-video train "$@" $resume --log-format json
