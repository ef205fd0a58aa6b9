"""Sends Ctrl-C to a small training run at random moments: each must end within 10 s with code 130.

python benchmarks/interrupt_drill.py --runs=500 --seed=0 --csv=drill.csv
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

CONFIG = """
total_steps=1000000 batch_size=16 eval_batch_size=120 log_every=7 eval_every=20 checkpoint.every=10
schedule.warmup_steps=2 model.width=16 model.depth=1 model.mlp_dim=32 model.num_heads=2
data.image_size=8
"""
LIMIT = 10  # seconds


def run_once(delay: float, workers: int) -> dict[str, object]:
  """Starts a run and interrupts it after `delay` seconds; what became of it."""
  with tempfile.TemporaryDirectory() as workdir, tempfile.TemporaryFile('w+') as log:
    flags = [f'--config.{field}' for field in CONFIG.split()]
    flags += [f'--workdir={workdir}', f'--config.data.workers={workers}']
    process = subprocess.Popen(
      [sys.executable, '-m', 'vit_jax.main', '--config=configs/quickstart.py', *flags],
      stdout=log,
      stderr=log,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    try:
      code = process.wait(6 * LIMIT)
    except subprocess.TimeoutExpired:
      process.kill()
      code = process.wait()
    seconds = time.monotonic() - sent
    log.seek(0)
    lines = log.read().splitlines() or ['']
  steps = sum(line.startswith('step ') for line in lines)
  is_fine = code == 130 and seconds < LIMIT and not any('Traceback' in line for line in lines)
  values = {'delay': round(delay, 3), 'workers': workers, 'code': code}
  return values | {'seconds': round(seconds, 2), 'logs': steps, 'ok': is_fine, 'last': lines[-1]}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--runs', type=int, default=500)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--first', type=float, default=0.5, help='seconds: the earliest moment')
  parser.add_argument('--last', type=float, default=20, help='seconds: the latest moment')
  parser.add_argument('--csv', help='file to write')
  args = parser.parse_args()
  # A shell without job control lets its background processes, and theirs, ignore SIGINT.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  rng, rows = random.Random(args.seed), []
  for _ in range(args.runs):
    rows.append(run_once(rng.uniform(args.first, args.last), rng.choice((0, 2))))
    print(rows[-1], flush=True)
  if args.csv:
    with open(args.csv, 'w', newline='') as file:
      writer = csv.DictWriter(file, rows[0].keys())
      writer.writeheader()
      writer.writerows(rows)
  failed = sum(not row['ok'] for row in rows)
  slowest = max(float(str(row['seconds'])) for row in rows)
  print(f'{len(rows)} runs, {failed} failed; the slowest took {slowest:.1f} s to end')
  sys.exit(failed > 0)


if __name__ == '__main__':
  main()
