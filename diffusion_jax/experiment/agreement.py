"""Checks that all processes open the same data, which may be copies on each host."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from diffusion_jax.data import latents
from diffusion_jax.errors import InputError, listed
from diffusion_jax.experiment.datasets import Datasets
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.runtime import hosts

LISTED = 20  # Processes in a message.
ARRIVES_WITHIN = 90.0  # Seconds until all see what one wrote: NFS keeps listings for 60.
LOOKED_EVERY = 1.0  # Seconds.


def require_same_images(datasets: Datasets) -> None:
  """Compares the prepared sets of all processes, which make this call together.

  Raises: InputError on all of them if they differ, or some have none; DamagedError.
  """

  def find():
    folder, meta = datasets.prepared
    return {'fingerprint': meta['fingerprint'], 'folder': str(folder)}

  _require_same('prepared images', datasets.folder, find)


def require_same_latents(experiment: Experiment) -> None:
  """Compares the latents by this autoencoder as require_same_images does the images."""
  config, first = experiment.config, experiment.first_stage
  folder, meta = experiment.datasets.prepared

  def find():
    made = latents.find(folder, meta, first.fingerprint, mirrored=config.data.flip)
    digest = hashlib.sha256(json.dumps(made['chunk_digests']).encode()).hexdigest()[:16]
    return {'fingerprint': digest, 'folder': str(latents.folder_of(folder, made))}

  _require_same('latents', folder, find)


def _require_same(what: str, place: Path, find: Callable[[], dict[str, str]]) -> None:
  if hosts.count() == 1:
    return

  def look(until=0.0):
    while True:
      try:
        return find()
      except InputError as error:
        if time.monotonic() > until:
          return {'fingerprint': '', 'reason': str(error).splitlines()[0]}
      time.sleep(LOOKED_EVERY)

  found = hosts.together(lambda check: look())
  late = [number for number, each in enumerate(found) if not each['fingerprint']]
  if late and found[0]['fingerprint'] and not {*late} & {*_apart(place)}:
    found = hosts.together(lambda check: look(time.monotonic() + ARRIVES_WITHIN))
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


def _apart(place: Path) -> list[int]:
  """Lists the processes that see another folder there; where none may write, all of them."""
  try:
    return hosts.apart(place)
  except (OSError, InputError):
    return list(range(hosts.count()))
