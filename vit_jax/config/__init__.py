"""The typed config of a run, and what config files import: `default_config`."""

from vit_jax.config.field_help import config_help, section_names
from vit_jax.config.fields import flatten, replace_fields
from vit_jax.config.reading import default_config, from_config_dict, load_config
from vit_jax.config.runs import check_same_run, write_config
from vit_jax.config.schema import (
  AugmentConfig,
  CheckpointConfig,
  Config,
  DataConfig,
  MeshConfig,
  ModelConfig,
  OnBadExample,
  OptimizerConfig,
  ScheduleConfig,
  StepConfig,
  choices,
  height_width,
)

__all__ = [
  'AugmentConfig',
  'CheckpointConfig',
  'Config',
  'DataConfig',
  'MeshConfig',
  'ModelConfig',
  'OptimizerConfig',
  'ScheduleConfig',
  'StepConfig',
  'check_same_run',
  'choices',
  'config_help',
  'default_config',
  'flatten',
  'from_config_dict',
  'OnBadExample',
  'height_width',
  'load_config',
  'replace_fields',
  'section_names',
  'write_config',
]
