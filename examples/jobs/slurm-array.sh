#!/bin/sh
# Processes a folder of videos on the nodes of a Slurm cluster:
#   sbatch --array=0-15 examples/jobs/slurm-array.sh /archive/videos /archive/masks
# Each task takes every sixteenth video. A preempted task is requeued and continues. After its time limit submit it again;
# finished videos are skipped. A task whose videos include unreadable ones processes the others and then fails.
#SBATCH --job-name=autosam-archive
#SBATCH --cpus-per-task=4
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=autosam-%A_%a.log
set -eu
exec autosam-video run --input "$1" --output "$2" --write png,coco,dicom-seg \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --log-format json
