"""The evaluations of a run: that of the test data, and those of `config.evals`."""

import dataclasses

from vit_jax.config import Config
from vit_jax.data.loading.loader import DataLoader, Stream
from vit_jax.data.sources import Source
from vit_jax.evaluation import classification
from vit_jax.evaluation.masked_patch_scores import MaskedPatchResult, evaluate_masked_patches
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.suite import Evaluation, open_evaluations, run_evaluations
from vit_jax.models.masked_patches import MaskedPatchPredictor, encoder
from vit_jax.training.program import Program
from vit_jax.training.same_data import check_same_on_all_processes
from vit_jax.training.step import TrainState

Result = classification.Result | MaskedPatchResult


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """What is evaluated, on what, and after which steps.

  Attributes:
    config: of the run, with whole numbers of steps.
    program: of the run.
    subject: its model, as the evaluations of `config.evals` see it.
    evaluations: those of `config.evals`.
  """

  config: Config
  program: Program
  subject: Subject
  evaluations: list[Evaluation]

  @property
  def streams(self) -> dict[str, Stream]:
    """The streams that a `DataLoader` needs beside 'test'."""
    return {key: stream for each in self.evaluations for key, stream in each.streams.items()}

  def _is_due(self, every: int, step: int) -> bool:
    return step % every == 0 or step == self.config.total_steps

  def run(
    self, step: int, state: TrainState, loader: DataLoader, only_test: bool = False
  ) -> tuple[Result | None, dict[str, float]]:
    """Runs the evaluations that are due after a step.

    Args:
      step: number of the step.
      state: after the step.
      loader: with the streams 'test' and those of the evaluations.
      only_test: whether the evaluations of `config.evals` are left out.

    Returns:
      (the result of the test data, if that is due; all metrics: {'test/accuracy': …}).

    Raises:
      UserError: for data that cannot be read, or that an evaluation cannot use.
      StoppedError: when the run must stop.
    """
    result, metrics = None, {}
    due = [] if only_test else [each for each in self.evaluations if self._is_due(each.every, step)]
    is_test_due = self._is_due(self.config.eval_every, step)
    if not due and not is_test_due:
      return result, metrics
    params = self.program.eval_params(state)
    if is_test_due:
      is_masked = isinstance(self.program.model, MaskedPatchPredictor)
      evaluate = evaluate_masked_patches if is_masked else classification.evaluate
      result = evaluate(self.program.eval_step, params, loader.batches('test'))
      metrics = {f'test/{name}': value for name, value in result.metrics.items()}
    for name, outcome in run_evaluations(due, self.subject, params, loader.batches).items():
      metrics |= {f'{name}/{metric}': value for metric, value in outcome.metrics.items()}
    return result, metrics


def open_evaluator(config: Config, program: Program, train: Source) -> Evaluator:
  """Opens the data of `config.evals`.

  Args:
    config: of the run, with whole numbers of steps.
    program: of the run.
    train: the training data, which has the classes of the model.

  Raises:
    UserError: for data that cannot be read, that an evaluation cannot use, or that differs
      between processes.
  """
  data, model = config.data, program.model
  subject = Subject(
    encoder(model) if isinstance(model, MaskedPatchPredictor) else model,
    program.mesh,
    program.param_shardings,
    train.class_names,
    data.height_width,
    data.channels,
    data.test.preprocessing,
    config.loss,
    data.on_bad_example,
    data.max_bad_fraction,
  )
  evaluations = open_evaluations(config.eval_configs, subject)
  for each in evaluations:
    check_same_on_all_processes({key: x.reader.source for key, x in each.streams.items()})
  return Evaluator(config, program, subject, evaluations)
