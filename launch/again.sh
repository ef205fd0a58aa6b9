#!/bin/bash
# Runs a command again until it has finished, or until running it again would not help:
#
#   launch/again.sh python -m vit_jax.main --config=configs/vit_l16.py
#
# Exit codes (docs/pods.md): 0 to 4 are final; 75 and 76, and being killed, are not.
set -u
trap 'kill -TERM "$child" 2>/dev/null' TERM  # what ends this ends the command, which saves first
trap 'exit 130' INT
while true; do
  "$@" &
  child=$!
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do  # `wait` was interrupted by a signal
    wait "$child"
    code=$?
    stopping=1
  done
  if [[ $code -le 4 || $code == 130 || ${stopping:-} ]]; then
    exit "$code"
  fi
  echo "ended with exit code $code; running it again" >&2
  sleep 2
done
