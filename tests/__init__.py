"""The environment of every process of the tests, set before JAX loads; what is set outside stays.

Tests of tiny shapes wait for the compiler, not for what it makes: without its optimisations they
take half the time. tests/conftest.py turns them on again for the slow tests that need them. The cache
keeps what compiles in no time too: single operations, thousands of times.
"""

import gc
import os
from pathlib import Path

ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_COMPILATION_CACHE_DIR': str(Path(__file__).parents[1] / '.cache' / 'xla'),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  'TF_CPP_MIN_LOG_LEVEL': '2',
  'TF_ENABLE_ONEDNN_OPTS': '0',  # TensorFlow only reads data here.
}
for variable, value in ENVIRONMENT.items():
  os.environ.setdefault(variable, value)
# Tracing makes objects that live: looking for garbage among them took 13% of the time.
gc.set_threshold(50_000, 20, 50)
