"""Every config builds at full size, and docs/systems.md says what describe says.

Nothing is computed: shapes only. Published counts are those of the papers and their code; operations
are counted by hand from the layers.
"""

import functools
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.facts import facts
from diffusion_jax.parsing import parse
from diffusion_jax.runtime import cost

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / 'docs' / 'systems.md').read_text()
# Configs of several sizes, the default first.
SIZES = {'cifar10': ('full', 'laptop'), 'dit_cfg': ('12', '8')}
CONFIGS = [
  f'{path.name}:{size}' if size else path.name
  for path in sorted((ROOT / 'configs').glob('*.py'))
  if 'def get_config' in path.read_text()
  and path.stem not in ('folder', 'report')  # Which need images, and describe no run.
  for size in SIZES.get(path.stem, ('',))
]
H200 = 0.4 * 790e12  # Operations a second that the documented hours assume.
# Millions as published, what of them we do not train or count, and what is ours alone.
PUBLISHED = {
  'the UNet of the eight as published': ('74.05', 0),
  'DDPM-CIFAR10': ('35.7', 0),
  'DDPM-256': ('113.67', 0),
  'ADM-128': ('421.53', -4 * 256),  # Our row for "no class".
  'KL-f4': ('55.31', 0),
  'KL-f8': ('83.65', 0),
  'DiT-S/2': ('32.96', 256 * 384),  # Frozen positions, of 256 tokens.
  'DiT-B/2': ('130.51', 256 * 768),
  'DiT-L/2': ('458.1', 256 * 1024),
  'DiT-XL/2': ('675.13', 256 * 1152),
}
ENCODE_F4, DECODE_F4 = 79.9e9, 161.2e9  # At 128 px.


def module_of(name):
  return importlib.import_module(f'configs.{name.split(".")[0]}')


@functools.cache
def experiment(name):
  """name: 'dit_cfg.py' or 'dit_cfg.py:8'."""
  size = name.partition(':')[2]
  return create(module_of(name).get_config(*([size] if size else [])).to_dict())


@functools.cache
def described(name):
  return facts(experiment(name))


@pytest.mark.parametrize('name', CONFIGS)
def test_builds(name):
  f = described(name)
  assert f['parameters'] > 1e4 and f['flops_per_image'] > 1e6


@pytest.mark.parametrize('name', sorted({name.split(':')[0] for name in CONFIGS}))
def test_has_its_command_and_its_sizes(name):
  module = module_of(name)
  assert name == 'base.py' or f'--config=configs/{name} ' in module.__doc__
  parameters = list(inspect.signature(module.get_config).parameters.values())
  sizes = SIZES.get(module.__name__.split('.')[-1], ())
  assert [p.default for p in parameters] == list(sizes[:1])
  if sizes:
    with pytest.raises(ValueError, match=', '.join(repr(size) for size in sizes)):
      module.get_config('no such size')


ROWS = re.findall(
  r'^\| ([^|]+) \| `([^`]+)` \| ([^|]+) \| ([\d,]+) \| ([\d.]+) \| ([^|]+) \| ([\d.]+) \|',
  DOCS,
  flags=re.M,
)


def test_systems_table_is_whole():
  assert len(ROWS) == 11
  documented = {config.replace('dit_cfg.py:12', 'dit_cfg.py') for _, config, *_ in ROWS}
  assert documented >= {'ddpm.py', 'ddim.py', 'dit_cfg.py', 'dit_cfg.py:8', 'vae.py'}


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[0])
def test_systems_table(row):
  _, name, what, parameters, gflop, shape, hours = row
  f, config = described(name), experiment(name).config
  assert parameters == f'{f["parameters"]:,}'
  assert gflop == f'{f["flops_per_image"] / 1e9:.1f}'
  x0_shape, options = 'x'.join(map(str, f['x0_shape'])), config.model.options
  if f['model'] == 'dit':
    x0_shape += f', {(f["x0_shape"][0] // options["patch_size"]) ** 2} tokens'
  assert shape == x0_shape
  diffusion = config.objective.name == 'denoising'
  passes = 4 if diffusion and options['remat'] != 'none' else 3
  reckoned = passes * f['flops_per_image'] * f['batch_size'] * f['steps'] / H200 / 3600
  assert hours == f'{reckoned:.{0 if reckoned >= 10 else 1}f}'
  assert re.search(rf'\b{re.escape(hours)}\b', module_of(name).__doc__)
  if diffusion:
    sample, learned = config.sample, ' and variance' if config.process.learned_variance else ''
    guidance = f', guidance {sample.cfg_scale:g}' if config.num_classes else ''
    assert what.endswith(
      f'; {config.schedule.name}, {config.process.prediction_type}{learned}, '
      f'{config.sampler.name.upper()} {sample.num_steps}{guidance}'
    )
    assert (', latents' in what) == (config.space == 'latent') == (not sample.clip_x0)
    assert ('classes' in what) == (config.num_classes > 0)


COMMANDS = re.findall(
  r'^# ([^(\n]+) \(.*?([\d.]+)M\): ([\d,]+) parameters, ([\d.]+) GFLOP\n'
  r'python main\.py ((?:.*\\\n)*.*)$',
  DOCS,
  flags=re.M,
)


def of_command(arguments, monkeypatch):
  """The experiment that python main.py ARGUMENTS would make."""
  monkeypatch.chdir(ROOT)
  argv, values = ['main.py', *shlex.split(arguments.replace('\\\n', ''))], flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, '', values, sys_argv=argv)
  flags.DEFINE_string('mode', None, '', values)
  mapping, _ = parse(argv, values)
  assert values['mode'].value == 'describe'
  return create(mapping)


def test_published_architectures_are_all_there():
  assert [name for name, *_ in COMMANDS] == list(PUBLISHED)


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command[0])
def test_published_architectures(command, monkeypatch):
  name, published, parameters, gflop, arguments = command
  made = of_command(arguments, monkeypatch)
  params, objective = made.abstract_state.params['model'], made.objective
  count = cost.num_parameters(params)
  assert parameters == f'{count:,}'
  millions, elsewhere = PUBLISHED[name]
  assert published == millions
  decimals = len(millions.split('.')[1])
  assert f'{(count + elsewhere) / 1e6:.{decimals}f}' == millions
  counted = cost.flops(objective.forward, {'model': params}, *objective.forward_inputs(1))
  assert gflop == f'{counted / 1e9:.1f}'


def conv(side, inputs, outputs):
  """Operations of a 3x3 convolution whose output is side x side."""
  return 2 * side**2 * 9 * inputs * outputs


def dense(inputs, outputs, positions=1):
  return 2 * positions * inputs * outputs


def attention(positions, width):
  """Packed q, k, v; q k and its product with v; the output's matrix."""
  return dense(width, 4 * width, positions) + 2 * 2 * positions**2 * width


def dit_operations(tokens, width, depth, patch_inputs, patch_outputs):
  """One image; adaLN has 6 vectors a block and 2 at the end; mlp ratio 4."""
  block = attention(tokens, width) + 2 * dense(width, 4 * width, tokens) + dense(width, 6 * width)
  ends = dense(patch_inputs + patch_outputs, width, tokens) + dense(width, 2 * width)
  return depth * block + ends + dense(256, width) + dense(width, width)


@pytest.mark.parametrize(
  'name, sizes',
  [
    ('dit_cfg.py', (256, 768, 12, 12, 12)),
    ('dit_cfg.py:8', (256, 512, 8, 12, 12)),
    ('dit_pixel.py', (256, 768, 12, 192, 192)),
    ('dit_xl.py', (256, 1152, 28, 16, 32)),
  ],
)
def test_operations_of_dit(name, sizes):
  assert described(name)['flops_per_image'] == pytest.approx(dit_operations(*sizes), rel=1e-3)


@pytest.mark.parametrize(
  'name, gflop', [('DiT-S/2', 12.1), ('DiT-B/2', 46.0), ('DiT-L/2', 161.4), ('DiT-XL/2', 237.2)]
)
def test_documented_operations_of_dit(name, gflop):
  documented = {command[0]: float(command[3]) for command in COMMANDS}
  assert documented[name] == pytest.approx(gflop, rel=1e-2)


def unet_operations(side, mult, attention_sides, channels=128, num_res_blocks=2, image_channels=3):
  """One image, plain resampling, scale and shift: along the way down, the middle, the way up."""
  condition = 4 * channels

  def stage(side, inputs, outputs, attend):
    total = conv(side, inputs, outputs) + conv(side, outputs, outputs)
    total += dense(condition, 2 * outputs)
    total += dense(inputs, outputs, side**2) if inputs != outputs else 0
    return total + (attention(side**2, outputs) if attend else 0)

  widths = [channels * m for m in mult]
  total = dense(channels, condition) + dense(condition, condition)
  total += conv(side, image_channels, channels) + conv(side, channels, image_channels)
  skips, width = [channels], channels
  for level, out in enumerate(widths):
    here = side >> level
    for _ in range(num_res_blocks):
      total += stage(here, width, out, here in attention_sides)
      skips.append(width := out)
    if level < len(widths) - 1:
      total += conv(here // 2, width, width)
      skips.append(width)
  total += stage(here, width, width, True) + stage(here, width, width, False)
  for level, out in reversed(list(enumerate(widths))):
    here = side >> level
    for _ in range(num_res_blocks + 1):
      total += stage(here, width + skips.pop(), out, here in attention_sides)
      width = out
    if level > 0:
      total += conv(2 * here, width, width)
  assert not skips
  return total


@pytest.mark.parametrize('name, side', [('ddpm.py', 128), ('ddpm_vae_cfg.py', 32)])
def test_operations_of_unet(name, side):
  by_hand = unet_operations(side, (1, 2, 2, 4), (32, 16))
  assert described(name)['flops_per_image'] == pytest.approx(by_hand, rel=1e-3)


def test_operations_of_the_autoencoder():
  f = described('dit_cfg.py')
  assert f['autoencoder_parameters'] == described('vae.py')['parameters']
  assert f['encode_flops_per_image'] == pytest.approx(ENCODE_F4, rel=1e-2)
  assert f['decode_flops_per_image'] == pytest.approx(DECODE_F4, rel=1e-2)
  both = f['encode_flops_per_image'] + f['decode_flops_per_image']
  assert described('vae.py')['flops_per_image'] == both
