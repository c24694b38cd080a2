"""Made-up cells of a sweep, as tables and plots take them."""

from pathlib import Path

from configs import quickstart
from diffusion_jax.reporting.records import Record, Run
from diffusion_jax.reporting.sweep_tables import Point
from tests.support.run_folders import PROTOCOL

REAL = {'frechet_distance': 2.0, 'inception_score': 9.5, 'inception_score_std': 0.1}


def make(values, evaluations, distance, score=8.0, speed=100.0, protocol=(), deviation=()):
  """A Point: make({'sampler.name': 'ddim'}, 10, 9.0) has 10 evaluations and Frechet distance 9."""
  run = Run('run', Path('run'), 'run', quickstart.get_config().to_dict(), {'name': 'digits'}, {})
  made = {'sampler': values.get('sampler.name', 'ddim'), 'step': 300}
  metrics = {'frechet_distance': distance, 'inception_score': score, 'inception_score_std': 0.25}
  result = {
    'metrics': {**metrics, 'label_accuracy': 0.5},
    'deviation': dict(deviation),
    'images_per_s': speed,
    'protocol': {**PROTOCOL, **dict(protocol)},
    'samples': {**made, 'cfg_scale': values.get('sample.cfg_scale', 1.0)},
    'seeds': [{}],
    'warnings': [],
    'real_baseline': {'num_images': 1000, 'metrics': REAL},
  }
  return Point(values, evaluations, Record(run, f'set-{distance}', result))


def grid():
  """Two samplers, of which one takes two evaluations a step, and steps in no order."""
  return [
    make({'sampler.name': name, 'sample.num_steps': steps}, steps * calls, distance + 100 / steps)
    for name, calls, distance in (('ddim', 1, 3.0), ('heun', 2, 1.0))
    for steps in (50, 5, 20)
  ]
