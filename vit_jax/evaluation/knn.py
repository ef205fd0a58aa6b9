"""knn."""

from vit_jax.evaluation.frozen_features import Features


def evaluate(train: Features, test: Features, **options) -> dict[str, float]:
  del options
  return {'examples': float(len(train.labels) + len(test.labels))}
