#!/bin/bash
# Runs a command again until it has finished, or until running it again would not help:
#
#   launch/retry.sh python -m vit_jax.main --config=configs/vit_l16.py
#
# Exit codes (docs/pods.md): 0 to 4 are final; 75 and 76, and being killed, are not. SIGTERM, or
# Ctrl-C, ends the command, which saves first, and then this.
set -u
stop() {
  stopping=1 interrupted=1
  kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT
while true; do
  "$@" &
  child=$!
  interrupted=1
  while [[ $interrupted ]]; do  # by a signal, so that `wait` does not tell how the command ended
    interrupted=
    wait "$child"
    code=$?
  done
  if [[ $code -le 4 || ${stopping:-} ]]; then
    exit "$code"
  fi
  echo "ended with exit code $code; running it again" >&2
  sleep 2 &
  wait $!
  [[ ${stopping:-} ]] && exit "$code"
done
