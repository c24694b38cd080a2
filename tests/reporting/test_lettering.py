"""Text on pictures fits, and has the letters of names."""

import pytest

from diffusion_jax.reporting import lettering


@pytest.mark.parametrize('text', ['x' * 200, 'a/b-c d' * 30, 'été', '', 'one-two-three'])
def test_wrapped_text_fits(text):
  font = lettering.font(13)
  lines = lettering.wrapped(text, font, 80, 3)
  assert 1 <= len(lines) <= 3 and all(font.getlength(line) <= 80 for line in lines)
  if len(text) > 60:
    assert '…' in ''.join(lines) and lines[0][0] == text[0] and lines[-1][-1] == text[-1]
  else:
    assert ''.join(lines) == text


def test_accents_are_drawn():
  boxes = [bytes(lettering.font(20).getmask(letter)) for letter in ('é', 'ü', 'ø')]
  assert len(set(boxes)) == 3  # A font without them draws the same box for all.
