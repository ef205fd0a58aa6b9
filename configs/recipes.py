"""The paper's recipes (arXiv 2010.11929v2) as tables: PRETRAINING (Table 3), FINE_TUNING (Table 4).

configs/pretrain.py and configs/finetune.py make configs of their rows. What holds for all rows:

Table 3: Adam with b1 = 0.9 and b2 = 0.999 (Section 4.1), batch 4096, 10,000 steps of linear warmup,
224 px; on ImageNet the gradient is clipped at global norm 1. A hybrid is trained as its Transformer
(Appendix B.1).

Table 4: SGD with momentum 0.9 (Appendix B.1.1), batch 512, cosine decay, no weight decay, clipping
at global norm 1, 384 px unless TABLE_2 has another size. The learning rate is chosen on a part of
the training data, the result is that of a run on all of it. For ResNets the paper also
tries the rule of BiT (arXiv 1912.11370) and takes the better of the two; that is left out here.
"""

from typing import NamedTuple

# name: (variant, pixels per token, units per ResNet stage of a hybrid). Hybrids: Section 4.1; their
# number is the total stride, 16 with stage 4 moved into stage 3.
MODELS = {
  'ti16': ('Ti', 16, None),
  's32': ('S', 32, None),
  's16': ('S', 16, None),
  'b32': ('B', 32, None),
  'b16': ('B', 16, None),
  'l32': ('L', 32, None),
  'l16': ('L', 16, None),
  'h14': ('H', 14, None),
  # Published as /16, but the stem and its 8 x 8 patches of features make it 32 pixels per token.
  'r_ti16': ('Ti', 32, ()),
  'r26_s32': ('S', 32, (2, 2, 2, 2)),
  'r26_b32': ('B', 32, (2, 2, 2, 2)),
  'r50_b32': ('B', 32, (3, 4, 6, 3)),
  'r50_b16': ('B', 16, (3, 4, 9)),
  'r50_l32': ('L', 32, (3, 4, 6, 3)),
  'r50_l16': ('L', 16, (3, 4, 9)),
  'r50x1': ('R50x1', 32, None),
  'r50x2': ('R50x2', 32, None),
  'r101x1': ('R101x1', 32, None),
  'r101x3': ('R101x3', 32, None),
  'r152x1': ('R152x1', 32, None),
  'r152x2': ('R152x2', 32, None),
  'r152x4': ('R152x4', 32, None),
  'r200x3': ('R200x3', 32, None),
  # arXiv 2105.01601; not in Table 4: fine-tuned at 224 px as in the original code (finetune.py).
  'mixer_b16': ('Mixer-B', 16, None),
  'mixer_l16': ('Mixer-L', 16, None),
}

# Images in the training split, from Section 4.1 (JFT-300M: 303 million).
EXAMPLES = {'jft': 303_000_000, 'imagenet21k': 14_197_122, 'imagenet': 1_281_167}
# Released heads have 21,843 classes for ImageNet-21k; JFT-300M has 18,291 (arXiv 1707.02968).
NUM_CLASSES = {'jft': 18_291, 'imagenet21k': 21_843, 'imagenet': 1_000}
BATCH_SIZE, WARMUP_STEPS, IMAGE_SIZE = 4096, 10_000, 224


class Pretraining(NamedTuple):
  """A row of Table 3."""

  epochs: tuple[int, ...]  # of the runs with this row; the first one is the default
  learning_rate: float
  decay: str
  weight_decay: float
  dropout_rate: float
  not_in_table_3: str = ''  # what stands in for a row that the paper does not have


_IMAGENET = Pretraining((300,), 3e-3, 'cosine', 0.3, 0.1)  # one row for all Transformers

PRETRAINING = {
  'jft': {
    'b32': Pretraining((7,), 8e-4, 'linear', 0.1, 0.0),
    'b16': Pretraining((7,), 8e-4, 'linear', 0.1, 0.0),
    'l32': Pretraining((7,), 6e-4, 'linear', 0.1, 0.0),
    'l16': Pretraining((14, 7), 4e-4, 'linear', 0.1, 0.0),  # Tables 2 and 5 have the one of 14
    'h14': Pretraining((14,), 3e-4, 'linear', 0.1, 0.0),
    'r50x1': Pretraining((7,), 1e-3, 'linear', 0.1, 0.0),
    'r50x2': Pretraining((7,), 1e-3, 'linear', 0.1, 0.0),
    'r101x1': Pretraining((7,), 8e-4, 'linear', 0.1, 0.0),
    'r152x1': Pretraining((7,), 6e-4, 'linear', 0.1, 0.0),
    'r152x2': Pretraining((7, 14), 6e-4, 'linear', 0.1, 0.0),  # 14: Table 6
    'r200x3': Pretraining((14,), 6e-4, 'linear', 0.1, 0.0, 'the row of R152x2; epochs of Table 6'),
    'r50_b32': Pretraining((7,), 8e-4, 'linear', 0.1, 0.0),
    'r50_b16': Pretraining((7,), 8e-4, 'linear', 0.1, 0.0),
    'r50_l32': Pretraining((7,), 2e-4, 'linear', 0.1, 0.0),
    'r50_l16': Pretraining((14, 7), 4e-4, 'linear', 0.1, 0.0),
  },
  'imagenet21k': {
    'b32': Pretraining((90,), 1e-3, 'linear', 0.03, 0.1),
    'b16': Pretraining((90,), 1e-3, 'linear', 0.03, 0.1),
    # The 0.23k TPUv3-core-days of Table 2 are those of 90 epochs, beside 0.68k for JFT.
    'l32': Pretraining((90, 30), 1e-3, 'linear', 0.03, 0.1),
    'l16': Pretraining((90, 30), 1e-3, 'linear', 0.03, 0.1),
    'h14': Pretraining((90, 30), 1e-3, 'linear', 0.03, 0.1, 'the row of L/16'),
    'r50_b32': Pretraining((90,), 1e-3, 'linear', 0.03, 0.1, 'the row of B/32'),
    'r50_b16': Pretraining((90,), 1e-3, 'linear', 0.03, 0.1),  # as B/16 (Appendix B.1)
    'r50_l32': Pretraining((90,), 1e-3, 'linear', 0.03, 0.1, 'the row of L/32'),
    'r50_l16': Pretraining((90,), 1e-3, 'linear', 0.03, 0.1, 'the row of L/16'),
  },
  'imagenet': {
    'b32': _IMAGENET,
    'b16': _IMAGENET,
    'l32': _IMAGENET,
    'l16': _IMAGENET,
    'h14': _IMAGENET,
  },
}


class FineTuning(NamedTuple):
  """A row of Table 4, with the data that it stands for."""

  source: str
  train_split: str
  test_split: str
  # The rate is chosen on a part of the training data, after training on the rest (Appendix B.1.1).
  part_to_train: str
  part_to_choose: str
  steps: int
  # Not in the paper: 500 in google-research/vision_transformer (configs/common.py), 100 of 500
  # steps in big_vision (configs/transfer.py), 200 for VTAB in scenic (vtab_plainvit).
  warmup_steps: int
  learning_rates: tuple[float, ...]  # that the paper tries


# fmt: off
FINE_TUNING = {
  'cifar10': FineTuning(
    'tfds:cifar10', 'train', 'test', 'train[:98%]', 'train[98%:]',
    10_000, 500, (0.001, 0.003, 0.01, 0.03),
  ),
  'cifar100': FineTuning(
    'tfds:cifar100', 'train', 'test', 'train[:98%]', 'train[98%:]',
    10_000, 500, (0.001, 0.003, 0.01, 0.03),
  ),
  'pets': FineTuning(
    'tfds:oxford_iiit_pet', 'train', 'test', 'train[:90%]', 'train[90%:]',
    500, 100, (0.001, 0.003, 0.01, 0.03),
  ),
  # The paper does not name the split; these are 2,040 images, in train alone half of them.
  'flowers': FineTuning(
    'tfds:oxford_flowers102', 'train+validation', 'test',
    'train[:90%]+validation[:90%]', 'train[90%:]+validation[90%:]',
    500, 100, (0.001, 0.003, 0.01, 0.03),
  ),
  # Appendix B.1.1 has 0.06 for ResNets and hybrids only, Table 4 for all models.
  'imagenet': FineTuning(
    'tfds:imagenet2012', 'train', 'validation', 'train[:99%]', 'train[99%:]',
    20_000, 500, (0.003, 0.01, 0.03, 0.06),
  ),
  # One of the 19 tasks, of 1,000 examples each; all of them: python -m vit_jax.vtab.
  'vtab': FineTuning(
    'tfds:dtd', 'train[:800]+validation[:200]', 'test', 'train[:800]', 'validation[:200]',
    2500, 200, (0.01,),
  ),
}
# fmt: on

# Table 2, ImageNet and ReaL only (Section 4.1): image size, and decay of the parameter average.
TABLE_2 = {'l16': (512, 0.9999), 'h14': (518, 0.9999)}
