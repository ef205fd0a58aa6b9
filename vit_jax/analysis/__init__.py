"""What a Vision Transformer looks at, and what its parameters learned (Section 4.5)."""

from vit_jax.analysis.attention_weights import attention, pooling
from vit_jax.analysis.embeddings import filters, position_similarity
from vit_jax.analysis.figures import (
  draw_attention,
  draw_attention_distance,
  draw_calibration,
  draw_filters,
  draw_images,
  draw_learning_curve,
  draw_overlay,
  draw_patches,
  draw_position_similarity,
)
from vit_jax.analysis.relevance import relevance
from vit_jax.analysis.rollout import attention_distance, attention_map, rollout

__all__ = [
  'attention',
  'attention_distance',
  'attention_map',
  'draw_attention',
  'draw_attention_distance',
  'draw_calibration',
  'draw_filters',
  'draw_images',
  'draw_learning_curve',
  'draw_overlay',
  'draw_patches',
  'draw_position_similarity',
  'filters',
  'pooling',
  'position_similarity',
  'relevance',
  'rollout',
]
