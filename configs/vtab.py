"""Fine-tunes a model on a task of VTAB-1k; `python -m vit_jax.vtab --model=M` runs all 19.

  python -m vit_jax.main --config=configs/vtab.py:dtd,imagenet21k/ViT-L_16

The argument is task,model: a task of vit_jax/data/vtab_tasks.py and any model that vit_jax.load
reads, whose tensors give config.model.

One setting for all tasks, as in the paper (arXiv 2010.11929, Appendix B.1.1 and Table 4): SGD with
momentum 0.9, batch 512, 2,500 steps, rate 0.01, cosine decay, no weight decay, clipping at global
norm 1, 384 px, a new head without pre_logits. The authors chose rate and schedule by the
validation splits. The rest is google-research/scenic's (plainvit/configs/vtab_plainvit_config.py):
200 steps of warmup; images squashed, without antialiasing, to 448 px and cropped to 384 px at
random, and mirrored, where the task allows it, and squashed to 384 px in tests. Where patches do
not tile 384 px, the next smaller size is taken (378 px for H/14), as in configs/finetune.py.

Published for all 19 (Table 2), mean accuracy: H/14 JFT 77.63 %, L/16 JFT 76.28 %, L/16 ImageNet-21k
72.72 %.
"""

from vit_jax.config import default_config
from vit_jax.data.vtab_tasks import find_task
from vit_jax.models.model_fields import model_fields
from vit_jax.weights.load import open_weights


def get_config(argument='dtd,imagenet21k/ViT-L_16'):
  name, _, model = argument.partition(',')
  task = find_task(name)
  config = default_config()
  config.init_from = model
  config.model.update(model_fields(open_weights(model).model))

  config.total_steps = config.eval_every = 2500
  config.batch_size = 512
  config.checkpoint.every = 500
  config.checkpoint.keep = 1
  config.optimizer.name = 'sgd'
  config.optimizer.b1 = 0.9
  config.optimizer.clip_norm = 1.0
  config.schedule.decay = 'cosine'
  config.schedule.learning_rate = 0.01
  config.schedule.warmup_steps = 200 / 2500  # a share of the run

  patch = config.model.patch_size if config.model.variant[0] != 'R' else 1
  config.data.image_size = 384 // patch * patch
  if config.model.variant.startswith('Mixer'):  # which fits the size of its pretraining only
    config.data.image_size = 224
  config.data.num_classes = task.num_classes
  config.data.train.source = f'vtab:{name}'
  config.data.train.split = 'train+validation'
  config.data.test.split = 'test'
  config.data.test.update(
    resize='squash', crop_fraction=1.0, interpolation='bilinear', antialias=False
  )
  config.data.augment.crop = 'squash' if task.crop else 'resize'
  config.data.augment.resize_small = round(config.data.image_size * 448 / 384)
  config.data.augment.reduced_decoding = False
  config.data.augment.flip = task.flip
  return config
