"""A signal is answered at once, and acted on between two steps."""

import signal

import pytest

from diffusion_jax.runtime.interruption import Interruption


@pytest.mark.parametrize('number', Interruption.signals)
def test_a_signal_is_acknowledged_at_once(capfd, number):
  before = signal.getsignal(number)
  with Interruption() as interruption:
    assert not interruption.requested
    signal.raise_signal(number)
    assert interruption.requested == number.name
    assert number.name in capfd.readouterr().err
    assert signal.getsignal(number) == before  # A second one acts as it always did.
