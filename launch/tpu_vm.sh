#!/bin/bash
# Starts a run on all hosts of a Cloud TPU slice; it keeps running when this terminal is closed:
#
#   TPU=my-slice ZONE=us-west4-a launch/tpu_vm.sh configs/vit_l16.py --workdir=gs://bucket/run
#
# Set up all hosts once (gcloud … ssh --worker=all --command=…): a checkout at ~/vit_jax, and in it
#   pip install -e '.[tpu]'
set -u
: "${TPU:?set it to the name of the slice}" "${ZONE:?set it to the zone of the slice}"

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

on_all_hosts "cd vit_jax && nohup launch/retry.sh python3 -m vit_jax.main --config=$(
  printf '%q ' "$@"
) --start_timeout=600 > run.log 2>&1 < /dev/null &"

# Only process 0 prints.
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=0 --command='tail -F vit_jax/run.log'
