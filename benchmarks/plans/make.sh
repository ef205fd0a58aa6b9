#!/usr/bin/env bash
# Writes the tables in this folder, one per model: pretraining on JFT at 224 px.
#
#   bash benchmarks/plans/make.sh [b16 l16 h14 g14]
#   SLICES=v5e-256 bash benchmarks/plans/make.sh b32 l32 r50_b32 r50_b16 r50_l32 g14_jft3b
#
# Needs libtpu (pip install 'vit_jax[tpu]'), but no TPU. FLAGS='--config.…' sets more fields.
set -euo pipefail
cd "$(dirname "$0")/../.."

for model in ${@:-b16 l16 h14 g14}; do
  case $model in
    g14) config='--config=configs/vit_h14.py:jft --config.model.variant=g --config.model.pre_logits=0
        --config.model.scan_blocks=true' ;;
    g14_jft3b) config='--config=configs/vit_g14.py' ;;
    *) config="--config=configs/pretrain.py:$model,jft" ;;
  esac
  python -m vit_jax.plan $config ${FLAGS:-} \
    --sweep="${SLICES:-v3-256,v4-128,v5e-256,v5p-128,v6e-64}" --out="benchmarks/plans/$model.csv"
done
