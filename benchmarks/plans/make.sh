#!/usr/bin/env bash
# Makes the tables in this folder, one a model: pretraining on JFT at batch 4096, 224 px.
#
#   bash benchmarks/plans/make.sh [b16 l16 h14 g14]
#
# Needs libtpu (pip install 'vit_jax[tpu]'), but no TPU. FLAGS='--config.…' sets further fields.
set -euo pipefail
cd "$(dirname "$0")/../.."

for model in ${@:-b16 l16 h14 g14}; do
  case $model in
    g14) config='--config=configs/vit_h14.py:jft --config.model.variant=g --config.model.pre_logits=0
        --config.model.scan_blocks=true' ;;
    *) config="--config=configs/vit_$model.py:jft" ;;
  esac
  python -m vit_jax.plan $config ${FLAGS:-} \
    --sweep=v3-256,v4-128,v5e-256,v5p-128,v6e-64 --out="benchmarks/plans/$model.csv"
done
