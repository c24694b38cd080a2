"""Results of runs as rows of tables and points of plots, with the name of each.

Two results are comparable if their protocols are the same, entry by entry: as many samples, the same
reference images, features and metrics. Everything here keeps to that.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FRECHET, SCORE = 'frechet_distance', 'inception_score'
STD = '_std'  # The suffix of a deviation over splits or subsets of one sample set.
# Metrics with a usual name that only Inception features earn, and their name with other features.
NAMES = {
  FRECHET: ('FID', 'Frechet distance'),
  SCORE: ('IS', 'score'),
  'kernel_distance': ('KID', 'kernel distance'),
}
LOWER = frozenset((FRECHET, 'kernel_distance', 'loss', 'holdout_loss'))
HIGHER = frozenset((SCORE, 'precision', 'recall', 'label_accuracy', 'psnr', 'holdout_psnr'))
# Entries of a protocol in its sentence, after those that always stand in it.
WORDED = ('num_samples', 'class_balance', 'reference', 'reference_size', 'features')
WORDS = {
  **{'features_digest': ' (digest {})', 'backend': '; backend {}', 'resize': '; resize {}'},
  **{'quantisation': '; quantised {}', 'metrics': '; metrics: {}'},
}
PUBLISHED_SAMPLES = 5000
UNCONDITIONAL = 'unconditional'


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A work directory.

  name: its name in the report. path: its path below the report's folder. config, data: config.json and
  data.json, which may be absent. results: the contents of eval/*.json, by the stem of their names.
  """

  name: str
  folder: Path
  path: str
  config: Mapping[str, Any]
  data: Mapping[str, Any]
  results: Mapping[str, Mapping[str, Any]]

  @property
  def data_name(self) -> str:
    return self.data.get('name') or self.config['data']['name']

  @property
  def published(self) -> Mapping[str, Any]:
    """Published numbers of the same system; 0 is not published."""
    return self.config['published']


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One result of a run; name tells it from the run's other results."""

  run: Run
  name: str
  result: Mapping[str, Any]

  @property
  def label(self) -> str:
    """The name of the run, with that of the result if the run has several."""
    return f'{self.run.name}, {self.name}' if len(self.run.results) > 1 else self.run.name

  @property
  def protocol(self) -> Mapping[str, Any]:
    return self.result['protocol']

  @property
  def metrics(self) -> Mapping[str, Any]:
    return self.result['metrics']

  @property
  def samples(self) -> Mapping[str, Any]:
    return self.result['samples']

  @property
  def features(self) -> str:
    return str(self.protocol.get('features', 'unknown features'))

  @property
  def is_reconstruction(self) -> bool:
    return is_autoencoder(self.run.config)

  @property
  def cfg_scale(self) -> float:
    """The scale of classifier-free guidance; 1 is none."""
    return self.samples.get('cfg_scale', 1.0)

  def spread(self, metric: str) -> float:
    """The deviation of a metric over seeds, else that over splits, else 0."""
    found = (self.result['deviation'].get(metric), self.metrics.get(metric + STD))
    return next((v for v in found if is_number(v) and math.isfinite(v) and v >= 0), 0.0)

  def value(self, metric: str) -> float | None:
    """A metric that was measured and is a finite number, or None."""
    value = self.metrics.get(metric)
    return value if is_number(value) and math.isfinite(value) else None


def is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_autoencoder(config: Mapping[str, Any]) -> bool:
  """Whether the config trains an autoencoder, which makes no samples."""
  return config['objective']['name'] == 'autoencoder'


def canonical(value: Any) -> str:
  """JSON by which two values are compared."""
  return json.dumps(value, sort_keys=True)


def natural(text: str) -> list[tuple[int, int | str]]:
  """A sorting key by which 'cfg2' comes before 'cfg10'."""
  parts = re.split(r'(\d+)', text)
  return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def comparable(protocol: Mapping[str, Any]) -> dict[str, Any]:
  """The protocol with the classes of an unconditional model as if balanced: the two stand in one table."""
  balance = protocol.get('class_balance')
  return {**protocol, 'class_balance': 'balanced' if balance == UNCONDITIONAL else balance}


def balances(group: Sequence[Record]) -> list[str]:
  """How the classes of samples were chosen in a group, each way once."""
  found = dict.fromkeys(_plain(record.protocol.get('class_balance') or '') for record in group)
  return sorted(balance for balance in found if balance)


def by_protocol(records: Sequence[Record]) -> list[list[Record]]:
  """Comparable records together, in the order of the first of each: samples, then reconstructions."""
  groups: dict[tuple, list[Record]] = {}
  for record in sorted(records, key=lambda r: r.is_reconstruction):
    key = (record.is_reconstruction, canonical(comparable(record.protocol)))
    groups.setdefault(key, []).append(record)
  return list(groups.values())


def metric_names(records: Sequence[Record]) -> list[str]:
  """All metrics of any record, FID and IS first; without the deviations of splits and subsets."""
  found = dict.fromkeys(name for record in records for name in record.metrics)
  first = [name for name in (FRECHET, SCORE) if name in found]
  others = [name for name in found if name not in (FRECHET, SCORE)]
  return first + [n for n in others if not (n.endswith(STD) and n.removesuffix(STD) in found)]


def metric_title(metric: str, features: str, *, is_reconstruction: bool = False) -> str:
  """How a metric is called: FID, IS and KID only with Inception features."""
  title = metric.replace('_', ' ')
  if metric in NAMES:
    usual, general = NAMES[metric]
    title = usual if features == 'inception' else f'{general} ({features})'
  return f'reconstruction {title}' if is_reconstruction and metric == FRECHET else title


def direction(metric: str) -> int:
  """1: higher is better, -1: lower is better, 0: not known."""
  return (metric in HIGHER) - (metric in LOWER)


def has_published(record: Record) -> bool:
  published = record.run.published
  return published['fid'] > 0 or published['inception_score'] > 0


def is_like_published(protocol: Mapping[str, Any]) -> bool:
  """Whether published numbers are at least of as many samples and of the same features."""
  return (
    protocol.get('features') == 'inception' and protocol.get('num_samples') == PUBLISHED_SAMPLES
  )


def headline(group: Sequence[Record]) -> str:
  """Names the data, the samples, the reference and the features in one line."""
  first = group[0]
  names = sorted({record.run.data_name for record in group}, key=natural)
  kinds = {'balanced': 'class-balanced ', UNCONDITIONAL: 'unconditional '}
  chosen = 'or '.join(kinds.get(balance, '') for balance in balances(group))
  what = 'reconstructions' if first.is_reconstruction else f'{chosen}samples'
  made = f'{", ".join(names)}: {count(first.protocol.get("num_samples"))} {what}'
  return f'{made} against {_references(first.protocol)}, {first.features} features'


def _references(protocol: Mapping[str, Any]) -> str:
  """'297 reference images'; given statistics may not say of how many."""
  return f'{count(protocol.get("reference_size") or None)} reference images'


def protocol_words(group: Sequence[Record]) -> str:
  """Every entry of the protocol in one sentence."""
  protocol, found = group[0].protocol, ' or '.join(balances(group))
  made = 'reconstructions' if group[0].is_reconstruction else 'samples'
  classes = f' (classes: {found})' if found else ''
  origin = _plain(protocol.get('reference', 'unknown origin'))
  words = f'{count(protocol.get("num_samples"))} {made}{classes} against {_references(protocol)}'
  words += f' of {origin}; {_plain(protocol.get("features", "unknown"))} features'
  for name, form in WORDS.items():
    words += form.format(_plain(protocol[name])) if protocol.get(name) else ''
  others = [name for name in protocol if name not in (*WORDED, *WORDS)]
  return words + ''.join(f'; {n.replace("_", " ")}: {_plain(protocol[n])}' for n in others) + '.'


def differences(groups: Sequence[Sequence[Record]]) -> list[str]:
  """The entries of the protocol in which groups differ."""
  protocols = [comparable(group[0].protocol) for group in groups]
  names = dict.fromkeys(name for protocol in protocols for name in protocol)
  return [name for name in names if len({canonical(p.get(name)) for p in protocols}) > 1]


def count(value: Any, unknown: str = 'unknown') -> str:
  """'1,000'"""
  return f'{value:,}' if is_number(value) else unknown


def _plain(value: Any) -> str:
  """A JSON value in words: 'kid (subsets 100, subset_size 1000), fid'."""
  if isinstance(value, Mapping):
    return ', '.join(_entry(str(name), inner) for name, inner in value.items())
  if isinstance(value, (list, tuple)):
    return ', '.join(map(_plain, value))
  return f'{value:g}' if isinstance(value, float) else str(value)


def _entry(name: str, value: Any) -> str:
  if isinstance(value, Mapping):
    return f'{name} ({_plain(value)})' if value else name
  return f'{name} {_plain(value)}'
