"""Checks that all processes open the same data, which may be copies on each host."""

import hashlib
import json
from collections.abc import Callable

from diffusion_jax.data import latents
from diffusion_jax.errors import InputError, listed
from diffusion_jax.experiment.datasets import Datasets
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.runtime import hosts

LISTED = 20  # Processes in a message.


def require_same_images(datasets: Datasets) -> None:
  """Compares the prepared sets of all processes, which make this call together.

  Raises: InputError on all of them if they differ, or some have none; DamagedError.
  """

  def find():
    folder, meta = datasets.prepared
    return {'fingerprint': meta['fingerprint'], 'folder': str(folder)}

  _require_same('prepared images', str(datasets.folder), find)


def require_same_latents(experiment: Experiment) -> None:
  """Compares the latents by this autoencoder as require_same_images does the images."""
  config, first = experiment.config, experiment.first_stage
  folder, meta = experiment.datasets.prepared

  def find():
    made = latents.find(folder, meta, first.fingerprint, mirrored=config.data.flip)
    digest = hashlib.sha256(json.dumps(made['chunk_digests']).encode()).hexdigest()[:16]
    return {'fingerprint': digest, 'folder': str(latents.folder_of(folder, made))}

  _require_same('latents', str(folder), find)


def _require_same(what: str, place: str, find: Callable[[], dict[str, str]]) -> None:
  if hosts.count() == 1:
    return

  def look(check):
    try:
      return find()
    except InputError as error:
      return {'fingerprint': '', 'reason': str(error).splitlines()[0]}

  found = hosts.together(look)
  if len({each['fingerprint'] for each in found}) == 1:
    return  # If no process has any, the caller reports it.
  lines = [
    f'  process {number}: {each["fingerprint"]} in {each["folder"]}'
    if each['fingerprint']
    else f'  process {number}: none ({each["reason"]})'
    for number, each in enumerate(found)
  ]
  raise hosts.of_all(
    InputError(
      f'config.data.dir: {place}: got different {what} on different processes, allowed the same on all:\n'
      f'{listed(lines, LISTED)}\n'
      'copy the folder of one process to the same place on every host, or give a folder that all share'
    )
  )
