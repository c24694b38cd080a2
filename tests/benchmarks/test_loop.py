"""--mode=bench with config.bench.name=loop: both run the same steps, and the interval is Student's."""

import json

import numpy as np
import pytest
from scipy import stats

from diffusion_jax.benchmarks import loop
from diffusion_jax.command import run_mode
from diffusion_jax.errors import Interrupted
from diffusion_jax.runtime.interruption import Interruption
from tests.conftest import tiny_mapping


def test_the_interval_is_that_of_a_t_test():
  bare = np.asarray([10.0, 11.0, 9.0, 10.5, 10.0])
  shares = np.asarray([0.02, 0.05, 0.01, 0.04, 0.03])
  low, mean, high = loop.cost(bare, bare * (1 + shares))
  assert mean == pytest.approx(0.03)
  # One-sided tests at 5% are just on the edge at both ends.
  for end, side in ((low, 'greater'), (high, 'less')):
    assert stats.ttest_1samp(shares, end, alternative=side).pvalue == pytest.approx(0.05)
  assert loop.cost([1.0], [1.1])[2] == float('inf')


@pytest.mark.slow
def test_loop_and_bare_step_run_in_turns(tmp_path, capsys):
  changes = {'bench.name': 'loop', 'bench.repeats': 2, 'bench.loop.length': 4}
  mapping = tiny_mapping(tmp_path, **changes)
  run_mode('bench', mapping, {}, tmp_path / 'run', as_json=True)
  out = capsys.readouterr().out
  found = json.loads(out)  # Nothing else is on standard output.
  assert {name: len(times) for name, times in found['milliseconds'].items()} == {
    loop.BARE: 2,
    loop.LOOP: 2,
  }
  assert min(min(times) for times in found['milliseconds'].values()) > 0


def test_a_signal_ends_it_and_nothing_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(Interruption, 'may_begin', lambda self: False)
  mapping = tiny_mapping(tmp_path, **{'bench.name': 'loop', 'bench.loop.length': 4})
  with pytest.raises(Interrupted, match='nothing was measured'):
    run_mode('bench', mapping, {}, tmp_path / 'run')
  assert not list((tmp_path / 'run').glob('bench-*'))
