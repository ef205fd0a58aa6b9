"""The pretraining hyperparameters of the paper (arXiv 2010.11929, Table 3 and its caption).

vit_b16.py, vit_l16.py and vit_h14.py each select a model; their argument selects the data: jft,
imagenet21k or imagenet. Mesh and remat are the cheapest that fit all slices of benchmarks/plans/:
for B/16 and L/16 the defaults, in which every device holds a full model and keeps all activations.
How the paper evaluated pretraining is not published; here by the defaults of config.data.test
(shorter side to 256, bilinear and antialiased, cropped to 224).
"""

from typing import Any

from vit_jax.config import default_config

# Images in the training split, from Section 4.1 of the paper (JFT-300M: 303 million).
EXAMPLES = {'jft': 303_000_000, 'imagenet21k': 14_197_122, 'imagenet': 1_281_167}
# Released heads have 21,843 classes for ImageNet-21k; JFT-300M has 18,291 (arXiv 1707.02968).
NUM_CLASSES = {'jft': 18_291, 'imagenet21k': 21_843, 'imagenet': 1_000}
BATCH_SIZE, WARMUP_STEPS, IMAGE_SIZE = 4096, 10_000, 224


def get_config(
  variant: str, patch_size: int, data: str, epochs: dict[str, int], jft_learning_rate: float
) -> Any:
  """Table 3 for one model and data set."""
  if data not in EXAMPLES:
    raise ValueError(f'the data is {data!r}; choose one of {", ".join(EXAMPLES)}')
  config = default_config()
  config.batch_size = BATCH_SIZE
  config.total_steps = epochs[data] * EXAMPLES[data] // BATCH_SIZE
  config.eval_every = 5000
  config.checkpoint.every = 1000
  config.model.variant = variant
  config.model.patch_size = patch_size
  # In pretraining the head has one hidden layer (Section 3.1), as wide as in the released models.
  config.model.pre_logits = {'B': 768, 'L': 1024, 'H': 1280}[variant]
  config.data.image_size = IMAGE_SIZE
  config.data.num_classes = NUM_CLASSES[data]
  config.schedule.warmup_steps = WARMUP_STEPS
  config.optimizer.name = 'adamw'
  config.optimizer.clip_norm = 0.0

  # Neither JFT-300M nor the splits of ImageNet-21k are public under one name: set your own here.
  source = 'tfds:imagenet2012' if data == 'imagenet' else f'array_record:data/{data}'
  config.data.train.source = source
  config.data.test.split = 'validation'
  if data != 'imagenet':
    config.loss = 'sigmoid'  # several labels per image
    config.model.head_bias_init = -10.0  # each class starts with probability e^-10
  if data == 'jft':
    config.schedule.learning_rate, config.schedule.decay = jft_learning_rate, 'linear'
    config.optimizer.weight_decay = 0.1
  elif data == 'imagenet21k':
    config.schedule.learning_rate, config.schedule.decay = 1e-3, 'linear'
    config.optimizer.weight_decay = 0.03
    config.model.dropout_rate = 0.1
  else:
    config.schedule.learning_rate, config.schedule.decay = 3e-3, 'cosine'
    config.optimizer.weight_decay = 0.3
    config.optimizer.clip_norm = 1.0
    config.model.dropout_rate = 0.1
  return config
