#!/bin/bash
# Prepares a data set on SLURM: an array job, one task per part, and then a job that merges them.
#
#   PARTS=64 launch/prepare_slurm.sh /shared/ILSVRC2012 /shared/imagenet --size=256
#
# Both folders are on a file system that all nodes mount. CPUS is the number of cores of a task (8);
# SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, … set options of sbatch. If a part fails, run
# the script again: all parts resume.
set -euo pipefail
parts=${PARTS:-64}
command=$(printf '%q ' python -m vit_jax.prepare_data "$@")

# submit COMMAND OPTION…: prints the number of the job.
submit() {
  sbatch --parsable --nodes=1 --ntasks=1 --requeue "${@:2}" <<< $'#!/bin/bash\n'"exec $1"
}

job=$(submit "$command --part=\$SLURM_ARRAY_TASK_ID/$parts" \
  --job-name=prepare --array="1-$parts" --cpus-per-task="${CPUS:-8}")
merge=$(submit "$command --merge" --job-name=merge \
  --dependency="afterok:${job%%;*}" --kill-on-invalid-dep=yes)
echo "parts: job ${job%%;*}, merge: job ${merge%%;*}"
