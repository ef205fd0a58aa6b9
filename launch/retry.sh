#!/bin/bash
# Reruns a command until it has finished, or until a rerun would fail in the same way:
#
#   launch/retry.sh python -m vit_jax.main --config=configs/vit_l16.py
#
# Exit codes (docs/pods.md): 0 to 5 are final; after 75 to 78 or a kill it reruns the command, after
# 2 s, and twice as long each time, up to 256 s, as long as the command ends within 10 minutes.
# SIGTERM and Ctrl-C stop the command, which saves a checkpoint first, and then this script.
# SIGUSR1 is passed on: it asks the command for a profile.
set -u
stop() {
  stopping=1 interrupted=1
  kill -TERM "$child" 2>/dev/null
}
profile() {
  interrupted=1
  kill -USR1 "$child" 2>/dev/null
}
trap stop TERM INT
trap profile USR1
pause=2
while true; do
  started=$SECONDS
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
  if [[ $code -le 5 || ${stopping:-} ]]; then
    exit "$code"
  fi
  ((SECONDS - started > 600)) && pause=2
  echo "exit code $code; rerunning the command in $pause s" >&2
  sleep "$pause" &
  child=$!  # a signal ends the pause
  wait "$child"
  [[ ${stopping:-} ]] && exit "$code"
  pause=$((pause < 256 ? 2 * pause : 256))
done
