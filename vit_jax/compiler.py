"""How XLA compiles our programs: options of each backend."""


def compiler_options(platform: str) -> dict[str, bool] | None:
  """The `compiler_options` of `jax.jit` for devices of a platform: 'cpu', 'gpu' or 'tpu'.

  On a GPU, matrix products go to cuBLAS alone: Triton's, where they are chosen, keep the addition
  of biases and the GELU out of the product. On an H100, in bfloat16, the forward pass of B/16 is
  17 % faster (2026-11-26).
  """
  return {'xla_gpu_enable_triton_gemm': False} if platform == 'gpu' else None


def init_compiler_options(platform: str) -> dict[str, int] | None:
  """The `compiler_options` of `jax.jit` for a function that runs once: less of LLVM's optimization.

  On two CPU cores the initialization of the quickstart's model, the same bits, compiles in 3.2 s
  instead of 6.3 s (2026-11-27); B/16 runs as fast.
  """
  return {'xla_backend_optimization_level': 1} if platform == 'cpu' else None
