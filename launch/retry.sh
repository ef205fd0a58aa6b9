#!/bin/bash
# Reruns a command until it has finished, or until a rerun would fail in the same way:
#
#   launch/retry.sh python -m vit_jax.main --config=configs/vit_l16.py
#
# Exit codes (docs/pods.md): 0 to 4 are final; after 75, 76, 77 or a kill it reruns the command.
# SIGTERM and Ctrl-C stop the command, which saves a checkpoint first, and then this script.
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
  while [[ $interrupted ]]; do  # a signal makes `wait` return before the command has ended
    interrupted=
    wait "$child"
    code=$?
  done
  # Bash loses the exit code of a command that ends while it handles a signal; a rerun is then safe.
  [[ $code -lt 0 ]] && code=75
  if [[ $code -le 4 || ${stopping:-} ]]; then
    exit "$code"
  fi
  echo "exit code $code; rerunning the command" >&2
  sleep 2 &
  wait $!
  [[ ${stopping:-} ]] && exit "$code"
done
