"""The typed config of a run. Config files import `default_config` from here."""

from vit_jax.config.field_help import config_help, section_names
from vit_jax.config.fields import flatten, replace_fields
from vit_jax.config.evals import EvalConfig
from vit_jax.config.reading import call_config_function, changed_fields, default_config
from vit_jax.config.reading import eval_config
from vit_jax.config.reading import from_config_dict, load_config
from vit_jax.config.runs import check_same_run, write_config
from vit_jax.config.optimization import NO_LORA, LoraConfig, OptimizerConfig, ScheduleConfig
from vit_jax.config.schema import AugmentConfig, CheckpointConfig, Config, DataConfig, MeshConfig
from vit_jax.config.schema import ModelConfig, OnBadExample, PositionResize, Preprocessing
from vit_jax.config.schema import StepConfig, choices, height_width

__all__ = ['Config', 'default_config', 'eval_config', 'from_config_dict', 'load_config']
