"""Every field of a config, with its default. The other configs override a few of them."""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.seed = 0  # of initialisation, order, augmentation and dropout
  config.total_steps = 10_000
  config.epochs = 0.0  # passes over the training data; setting one of the two sets the other to 0
  config.batch_size = 512  # global: over all devices and processes
  config.eval_batch_size = 0  # global; 0: the same as batch_size
  config.accumulation_steps = 1  # micro-batches a step; the result is that of the whole batch
  config.log_every = 50  # steps
  config.eval_every = 1000  # steps, 0: ten times a run; its end is always evaluated
  # Weights to start from, with a new head: a released name, a file, the folder of a run or of
  # Transformers.
  config.init_from = ''
  config.position_resize = 'corners'  # as released, or half_pixel: how init_from's are resized
  config.polyak_decay = 0.0  # of the parameter average that is evaluated and kept; 0: none
  config.loss = 'softmax'  # softmax, or sigmoid (multi-label)
  config.label_smoothing = 0.0
  # Of the Beta distribution that mixes pairs of examples; 0: off; both: each in half of the steps.
  config.mixup_alpha = 0.0
  config.cutmix_alpha = 0.0

  config.model = ml_collections.ConfigDict()
  config.model.variant = 'B'  # Ti, S, B, L, H, g; R50x1 … R152x4: a row of models/variants.py
  config.model.patch_size = 16  # pixels
  config.model.width = 0  # these four override the variant's; 0: as the variant
  config.model.depth = 0
  config.model.mlp_dim = 0
  config.model.num_heads = 0
  config.model.pool = 'token'  # token, gap or map
  config.model.pre_logits = 0  # width of the tanh layer before the head; 0: none
  config.model.dropout_rate = 0.0
  config.model.attention_dropout_rate = 0.0
  config.model.stochastic_depth_rate = 0.0  # of the last block; grows linearly with depth
  config.model.head_bias_init = 0.0
  config.model.gelu = 'tanh'  # tanh (the released JAX weights) or exact (most of PyTorch's)
  config.model.layer_norm_epsilon = 1e-6
  config.model.resnet_width = 0  # a hybrid's ResNet under the Transformer (64); 0: none
  config.model.resnet_blocks = ()  # units of each of its stages; none: only the stem
  # What the backward pass keeps of each block: none rematerialises nothing, dots keeps the
  # dense layers, full keeps nothing.
  config.model.remat = 'none'
  # One block compiled for all: far faster to compile, somewhat slower to run.
  config.model.scan_blocks = False
  config.model.attention = 'einsum'  # einsum, or xla (that of jax.nn)
  config.model.dtype = 'auto'  # float32, bfloat16, or auto: bfloat16 on accelerators

  config.data = ml_collections.ConfigDict()
  # Pixels, or (height, width).
  config.data.image_size = config_dict.FieldReference(224, field_type=object)
  config.data.num_classes = 0  # what the data must have; 0: what it has
  config.data.crop_fraction = 0.875  # tests see the central part of the image
  config.data.channels = 3  # 1 (gray), 3 (RGB), 4 (RGBA); what arrays have
  # Processes that read and augment; 0: threads of this one; -1: one a core, at most 16.
  config.data.workers = -1
  config.data.threads = 0  # without workers; 0: one a core, at most three
  # error: an example that cannot be read ends the run (of a folder: before it starts);
  # skip: another one takes its place in training, and tests do without it.
  config.data.on_bad_example = 'error'
  config.data.most_bad = 0.01  # with skip: a larger share of bad examples ends the run
  config.data.train = ml_collections.ConfigDict()
  # digits, folder:/path, array_record:/path, tfds:name, hf:name, webdataset:/path, synthetic:jft,
  # or a mixture such as '3*folder:/a + 1*hf:b'.
  config.data.train.source = 'digits'
  config.data.train.split = 'train'  # or 'train[:98%]', 'train[:800]+validation[:200]'
  config.data.test = ml_collections.ConfigDict()
  config.data.test.source = 'digits'
  config.data.test.split = 'test'
  config.data.augment = ml_collections.ConfigDict()
  # inception, resize (the whole image), random or central (resized, then cut at whole pixels)
  config.data.augment.crop = 'inception'
  config.data.augment.area = (0.05, 1.0)  # inception: share of the image
  config.data.augment.resize_small = 0  # random, central: the shorter side; 0: just enough
  config.data.augment.pad = 0  # random, central: gray pixels on each side
  config.data.augment.antialias = False  # of resizing; the released models were trained without
  # JPEGs twice as large as needed are decoded at 1/2, large ones at 1/4 or 1/8.
  config.data.augment.reduced_decoding = True
  config.data.augment.shift = 0.0  # share of the image
  config.data.augment.scale = 0.0  # relative change
  config.data.augment.rotate = 0.0  # degrees
  config.data.augment.flip = True  # left and right
  config.data.augment.randaugment = 'none'  # none, augreg, timm or timm_increasing
  config.data.augment.randaugment_layers = 2
  config.data.augment.randaugment_magnitude = 10.0  # timm: 0 to 10; AugReg goes up to 20
  config.data.augment.randaugment_std = 0.0  # timm: of the magnitude
  # Largest changes of brightness, contrast, saturation (relative) and hue (up to 0.5).
  config.data.augment.jitter = (0.0, 0.0, 0.0, 0.0)
  config.data.augment.erase_probability = 0.0  # of a rectangle
  config.data.augment.erase_area = (0.02, 0.33)  # share of the image
  config.data.augment.erase_ratio = (0.3, 3.3)  # height by width
  config.data.augment.erase_noise = True  # rather than gray

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'adamw'  # adamw, sgd or adafactor
  config.optimizer.b1 = 0.9  # momentum
  config.optimizer.b2 = 0.999  # adamw
  config.optimizer.epsilon = 1e-8  # adamw
  config.optimizer.weight_decay = 0.0  # times the learning rate, on kernels
  config.optimizer.clip_norm = 1.0  # global norm of the gradient; 0: no clipping

  config.schedule = ml_collections.ConfigDict()
  config.schedule.decay = 'cosine'  # cosine, linear, rsqrt or constant
  config.schedule.learning_rate = 1e-3  # the highest one
  config.schedule.warmup_steps = 0
  config.schedule.end = 0.0  # linear: the last learning rate
  config.schedule.timescale = 10_000.0  # rsqrt: steps
  config.schedule.cooldown_steps = 0  # linearly to zero at the end

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.every = 1000  # steps, 0: ten times a run; its end is always saved
  config.checkpoint.keep = 3  # the last ones; the best one is kept besides

  config.mesh = ml_collections.ConfigDict()  # devices along each axis; -1: what is left
  config.mesh.data = -1
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  config.mesh.num_slices = 1  # of TPU pods, which the data axis spans
  return config.lock()
