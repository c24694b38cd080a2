"""Finds the configs that come with the package: configs/ of a checkout, diffusion_jax/configs installed."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / 'configs'


def names() -> list[str]:
  """Returns the names, as in --config=quickstart."""
  return sorted(path.stem for path in FOLDER.glob('*.py'))


def resolved(given: str) -> str:
  """Puts the path of a shipped config in place of NAME in 'NAME' or 'NAME:ARGUMENT'.

  Returns anything else as it is, also the name of a file in the current directory.
  """
  name, colon, argument = given.partition(':')
  if Path(name).is_file() or name not in names():
    return given
  return f'{FOLDER / name}.py{colon}{argument}'
