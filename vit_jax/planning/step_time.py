"""How long a train step takes: what the compiler's cycles predict, and three lower bounds."""

import dataclasses

from vit_jax.hardware import Chip
from vit_jax.planning.cycles import CycleEstimate

# By what published runs exceed the prediction: the geometric mean of the six in
# benchmarks/plans/calibration.csv is 1.26. Input, evaluation, checkpoints and waits for copies and
# collectives are in it.
PUBLISHED_FACTOR = 1.25
FACTOR_REASON = (
  'as six published runs on TPU v3, without the fused kernel, took 1.05 to 1.44 times theirs'
)


@dataclasses.dataclass(frozen=True)
class StepTime:
  """Seconds of a step; None where a figure of the chip is not published.

  Attributes:
    arithmetic: of the matrix products, and those that remat repeats, at the chips' peak.
    hbm: of what the program moves to and from HBM, at the chip's bandwidth.
    interconnect: of what a chip receives, over all its links at once.
    cycles: of the compiler's estimate at the chip's clock; custom calls without an estimate count
      as the FLOPs that they state, at the chip's peak.
  """

  arithmetic: float | None
  hbm: float | None
  interconnect: float | None
  cycles: float | None

  @property
  def predicted(self) -> float | None:
    """The cycles, or a lower bound that exceeds them; None without cycles."""
    if self.cycles is None:
      return None
    return max(self.cycles, self.arithmetic or 0, self.hbm or 0, self.interconnect or 0)

  @property
  def expected(self) -> float | None:
    """`predicted` times the factor by which published runs exceed it."""
    return self.predicted and self.predicted * PUBLISHED_FACTOR


def step_time(
  chip: Chip | None,
  num_chips: int,
  step_flops: int,
  hbm_bytes: int | None,
  received_bytes: int,
  cycles: CycleEstimate | None,
) -> StepTime:
  """The times of a step on `num_chips` chips.

  Args:
    chip: None for devices without published figures.
    num_chips: that share the step.
    step_flops: of all devices.
    hbm_bytes: of one device; None if the program was not compiled.
    received_bytes: by one device, from others.
    cycles: of one device; None if the compiler gives none.
  """
  if chip is None:
    return StepTime(None, None, None, None)

  def seconds(amount: float | None, chip_rate: float | None) -> float | None:
    """Of a device's share, at its share of what the chip can do in a second."""
    if amount is None or chip_rate is None:
      return None
    return amount * chip.num_devices / chip_rate

  compiled = hbm_bytes is not None
  clocked = None
  if cycles and chip.clock_hz:
    uncounted = seconds(cycles.uncounted_flops, chip.peak_flops) or 0.0
    clocked = cycles.total / chip.clock_hz + uncounted
  return StepTime(
    arithmetic=step_flops / (chip.peak_flops * num_chips),
    hbm=seconds(hbm_bytes, chip.bandwidth),
    interconnect=seconds(received_bytes if compiled else None, chip.interconnect),
    cycles=clocked,
  )
