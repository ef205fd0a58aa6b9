"""Measures tf.data for input_pipeline.py, in an environment with TensorFlow; prints images/s.

  python benchmarks/input_pipeline_tf.py FOLDER THREADS SECONDS

The standard pipeline: decode_and_crop_jpeg of an inception box, bilinear resize to 224, flip, uint8
batches of 128 as NumPy arrays. THREADS=0 means AUTOTUNE.
"""

import glob
import os
import sys
import time

os.environ |= {'CUDA_VISIBLE_DEVICES': '', 'TF_CPP_MIN_LOG_LEVEL': '3'}
import tensorflow as tf  # noqa: E402

BATCH_SIZE, SIZE = 128, 224


def load_example(path):
  data = tf.io.read_file(path)
  begin, size, _ = tf.image.sample_distorted_bounding_box(
    tf.io.extract_jpeg_shape(data),
    tf.zeros([0, 0, 4]),
    area_range=(0.05, 1.0),
    min_object_covered=0,
    use_image_if_no_bounding_boxes=True,
  )
  window = tf.stack([begin[0], begin[1], size[0], size[1]])
  image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
  image = tf.image.random_flip_left_right(tf.image.resize(image, [SIZE, SIZE]))
  return tf.cast(tf.round(image), tf.uint8)


def main() -> None:
  folder, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
  files = sorted(glob.glob(f'{folder}/**/*.*', recursive=True))
  data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
  data = data.map(load_example, num_parallel_calls=threads or tf.data.AUTOTUNE)
  data = data.batch(BATCH_SIZE, drop_remainder=True).prefetch(2)
  batches = data.as_numpy_iterator()
  for _ in range(10):  # warmup, also of AUTOTUNE
    next(batches)
  num_images, start = 0, time.perf_counter()
  while (elapsed := time.perf_counter() - start) < seconds:
    next(batches)
    num_images += BATCH_SIZE
  print(num_images / elapsed)


if __name__ == '__main__':
  main()
