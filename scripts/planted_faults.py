"""The faults that plant_faults.py plants: each runs without an exception and breaks a promise."""

from typing import NamedTuple

P = 'diffusion_jax/'


class Fault(NamedTuple):
  """title: what is wrong. old -> new in `file`. tests: the files beside it that should fail."""

  title: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...]


def _faults(room: str, tests: str, *rows: tuple[str, str, str, str]) -> tuple[Fault, ...]:
  """rows: (title, file in the room, old, new). tests: paths below tests/, separated by spaces."""
  paths = tuple(f'tests/{name}' for name in tests.split())
  return tuple(Fault(title, f'{P}{room}/{file}', old, new, paths) for title, file, old, new in rows)


TRAINING = _faults(
  'training',
  'training/test_step.py training/test_optimizer.py',
  (
    'the configured EMA decay is ignored',
    'state.py',
    'jnp.minimum(decay, (1 + step) / (10 + step))',
    '(1 + step) / (10 + step)',
  ),
  (
    'the EMA decay is capped at 0.99',
    'state.py',
    'jnp.minimum(decay, (1 + step) / (10 + step))',
    'jnp.minimum(min(decay, 0.99), (1 + step) / (10 + step))',
  ),
  (
    'every step draws the same dropout mask',
    'step.py',
    "jax.random.fold_in(purpose_key(seed, 'dropout'), step)",
    "jax.random.fold_in(purpose_key(seed, 'dropout'), 0)",
  ),
  (
    'an infinite gradient norm is not a reason to skip',
    'step.py',
    'finite += [*norms.values(), *(',
    'finite += [*(',
  ),
  (
    'an update to infinite parameters is taken',
    'step.py',
    "finite += [*norms.values(), *(optax.tree.norm(new['params'][part]) for part in grads)]",
    'finite += [*norms.values()]',
  ),
  (
    'weight decay acts on biases and norms too',
    'optimizer.py',
    "return path[-1].key in ('kernel', 'embedding')",
    'return True',
  ),
  (
    'the cosine forgets the warm-up',
    'optimizer.py',
    'max(total_steps - warmup_steps, 1)',
    'total_steps',
  ),
)
OBJECTIVES = _faults(
  'objectives',
  'objectives/test_denoising.py training/test_step.py diffusion/test_variational_bound.py',
  (
    'dropout is off in training',
    'denoising.py',
    "network_of(model, parts['model'], draws.dropout)",
    "network_of(model, parts['model'])",
  ),
  (
    'the held-out loss is computed as in training',
    'denoising.py',
    'keys, train=False, **settings',
    'keys, train=True, **settings',
  ),
  (
    'images are flipped upside down',
    'base.py',
    'x0[:, :, ::-1]',
    'x0[:, ::-1]',
  ),
  (
    'padding counts in the held-out loss',
    'denoising.py',
    'jnp.sum(jnp.where(valid, found, 0))',
    'jnp.sum(found)',
  ),
  (
    'latents are the posterior mean, not samples of it',
    'base.py',
    'scaling.normalise(posterior.sample(noise))',
    'scaling.normalise(posterior.mean)',
  ),
  (
    'labels are never dropped',
    'denoising.py',
    'if train and self.class_dropout > 0 and null_label:',
    'if train and self.class_dropout > 1 and null_label:',
  ),
  (
    'labels are dropped half as often',
    'denoising.py',
    'jax.random.bernoulli(key, self.class_dropout)',
    'jax.random.bernoulli(key, self.class_dropout / 2)',
  ),
  (
    'one decision drops the labels of the whole batch',
    'denoising.py',
    "labels = jnp.where(dropped, null_label, condition['label'])",
    "labels = jnp.where(dropped[0], null_label, condition['label'])",
  ),
  (
    'min-SNR weighting is never applied',
    'denoising.py',
    "if train and self.weighting == 'min_snr':",
    "if train and self.weighting == 'min-snr':",
  ),
  (
    'the variational bound trains the mean too',
    'denoising.py',
    'jax.lax.stop_gradient(process.to_prediction(output, x_t, t).x0)',
    'process.to_prediction(output, x_t, t).x0',
  ),
)
PROCESS = _faults(
  'diffusion',
  'diffusion',
  (
    'eta is not squared',
    'samplers/ddim.py',
    'variance = self.eta**2 * posterior_variance(n_t, n_s)',
    'variance = self.eta * posterior_variance(n_t, n_s)',
  ),
  (
    'DDPM adds noise in the last step',
    'samplers/ddpm.py',
    'variance = jnp.where(n_s.sigma > 0, variance, 0)',
    'variance = jnp.maximum(variance, 0)',
  ),
  (
    'trailing times are rounded down',
    'spacings/trailing.py',
    'on_table(schedule, np.round(indices))',
    'on_table(schedule, np.floor(indices))',
  ),
  (
    'training never draws the last timestep',
    'schedules/base.py',
    'jnp.clip(jnp.ceil(t * self.num_timesteps), 1, self.num_timesteps)',
    'jnp.clip(jnp.floor(t * self.num_timesteps), 1, self.num_timesteps)',
  ),
  (
    'DPM-Solver++ 2M extrapolates twice as far',
    'samplers/dpmpp_2m.py',
    'x0 + ratio / 2 * (x0 - carry.x0)',
    'x0 + ratio * (x0 - carry.x0)',
  ),
  (
    'DEIS weighs for a step of the other sign',
    'samplers/deis.py',
    'moments(-h)',
    'moments(h)',
  ),
  (
    'DEIS keeps its order to the end',
    'samplers/deis.py',
    'if self.lower_order_final:',
    'if False:',
  ),
  (
    'UniPC does not correct',
    'samplers/unipc.py',
    'x_t = jnp.where(carry.order > 0, corrected, x_t)',
    'x_t = jnp.where(carry.order > 9, corrected, x_t)',
  ),
  (
    'UniPC keeps its order to the end',
    'samplers/unipc.py',
    'if self.lower_order_final:',
    'if False:',
  ),
  (
    'Heun evaluates again after the last step',
    'samplers/heun.py',
    'jax.lax.cond(n_s.sigma > 0, heun, lambda: euler)',
    'jnp.where(n_s.sigma > 0, heun(), euler)',
  ),
  (
    'churn ignores its lowest level',
    'samplers/churn.py',
    '(self.s_tmin <= s) & ',
    '',
  ),
  (
    'Karras and log SNR spacing go below the table',
    'spacings/base.py',
    'return max(sigma_min, sigma / alpha)',
    'return sigma_min',
  ),
  (
    'zero terminal SNR changes the first noise level',
    'schedules/base.py',
    '* first / (first - last)',
    '',
  ),
  (
    'logit-normal times ignore their mean',
    'time_sampling/logit_normal.py',
    'jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, shape, jnp.float32))',
    'jax.nn.sigmoid(self.std * jax.random.normal(key, shape, jnp.float32))',
  ),
  (
    'the cosine schedule ignores its offset',
    'schedules/cosine.py',
    '(i / num_timesteps + offset) / (1 + offset)',
    '(i / num_timesteps)',
  ),
  (
    'guidance takes the variance of the unlabelled row',
    'guidance.py',
    'Prediction(x0, eps, cond.variance)',
    'Prediction(x0, eps, uncond.variance)',
  ),
  (
    'eps is not derived again from the clipped x0',
    'guidance.py',
    'Prediction(x0, (x_t - n.alpha * x0) / n.sigma, prediction.variance)',
    'prediction._replace(x0=x0)',
  ),
  (
    'pixels are floored instead of rounded',
    'pixels.py',
    'jnp.floor(127.5 * x + 128)',
    'jnp.floor(127.5 * x + 127.5)',
  ),
)
CHEAPER = _faults(
  'diffusion',
  'diffusion',
  (
    'the guidance scale is the w of the paper',
    'guidance.py',
    'first(uncond) + guidance.scale * (first(cond) - first(uncond))',
    'first(cond) + guidance.scale * (first(cond) - first(uncond))',
  ),
  (
    'guidance acts above its interval too',
    'guidance.py',
    ' & (level.sigma <= high * level.alpha)',
    '',
  ),
  (
    'autoguidance guides with the network itself',
    'guidance.py',
    'process.apply(guide, x_t, t, condition)',
    'process.apply(network, x_t, t, condition)',
  ),
  (
    'projected guidance keeps the wrong share of the parallel part',
    'guidance.py',
    '(guidance.parallel - 1) * along',
    'guidance.parallel * along',
  ),
  (
    'projected guidance lengthens short differences',
    'guidance.py',
    'jnp.minimum(1, guidance.norm_threshold / _positive(norm))',
    'guidance.norm_threshold / _positive(norm)',
  ),
  (
    'momentum remembers the difference before it was added',
    'guidance.py',
    'difference = memory = difference + guidance.momentum * memory',
    'difference, memory = difference + guidance.momentum * memory, difference',
  ),
  (
    'rescaling ignores its share',
    'guidance.py',
    '(share * wanted / _positive(own) + 1 - share)',
    '(wanted / _positive(own))',
  ),
  (
    'dynamic thresholding stretches images that are within range',
    'guidance.py',
    's = jnp.maximum(s, 1)',
    's = jnp.maximum(s, 0.1)',
  ),
  (
    'the cache runs the blocks one step late',
    'caching.py',
    '((step - self.first + 1) % self.interval == 0)',
    '((step - self.first) % self.interval == 0)',
  ),
  (
    'Taylor forecasts lack their factorials',
    'forecast.py',
    '(k**i / math.factorial(i))',
    'k**i',
  ),
  (
    'differences of the cache are not divided by their distance',
    'forecast.py',
    '(found[-1] - before) / distance',
    'found[-1] - before',
  ),
  (
    'a guided pass counts once',
    'generate.py',
    'return 2 * calls',
    'return calls',
  ),
  (
    'the likelihood lacks the trace of the drift',
    'likelihood.py',
    'path.log_det + step * (div_first + div_second) / 2',
    'path.log_det',
  ),
  (
    'the likelihood is of the last noise without its constant',
    'likelihood.py',
    'path.x**2 + np.log(2 * np.pi)',
    'path.x**2',
  ),
)
MODELS = _faults(
  'models',
  'models/test_precision.py models/test_dit.py models/test_backbones.py models/test_latents.py',
  (
    'time is cast to bfloat16 before the sinusoids',
    'layers.py',
    'angles = time.astype(jnp.float32)[:, None]',
    'angles = time.astype(jnp.bfloat16).astype(jnp.float32)[:, None]',
  ),
  (
    'LayerNorm takes its statistics in bfloat16',
    'dit.py',
    'use_scale=False, dtype=dtype)',
    'use_scale=False, dtype=dtype, force_float32_reductions=False)',
  ),
  (
    'the UNet’s GroupNorm takes its statistics in bfloat16',
    'unet_blocks.py',
    'epsilon=epsilon, dtype=dtype, name=name)',
    'epsilon=epsilon, dtype=dtype, name=name, force_float32_reductions=False)',
  ),
  (
    'the autoencoder’s GroupNorm takes its statistics in bfloat16',
    'vae.py',
    'epsilon=EPSILON, dtype=dtype, name=name)',
    'epsilon=EPSILON, dtype=dtype, name=name, force_float32_reductions=False)',
  ),
  (
    'norms before SiLU take their statistics in bfloat16',
    'layers.py',
    'nn.remat(NormSilu)(epsilon=epsilon, dtype=dtype, name=name)',
    'nn.remat(NormSilu)(\n    epsilon=epsilon, dtype=dtype, name=name, force_float32_reductions=False\n  )',
  ),
  (
    'softmax is taken in bfloat16',
    'attention.py',
    'h = jax.nn.dot_product_attention(q, k, v, implementation=implementation)',
    "logits = jnp.einsum('bnhd,bmhd->bhnm', q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype)\n"
    "  h = jnp.einsum('bhnm,bmhd->bnhd', jax.nn.softmax(logits, axis=-1), v)",
  ),
  (
    'gradients of biases are summed in bfloat16',
    'layers.py',
    'accumulator = jnp.promote_types(like.dtype, jnp.float32)',
    'accumulator = like.dtype',
  ),
  (
    'the row takes the half of the positions that is the column’s',
    'dit.py',
    'for coordinate in (column, row):',
    'for coordinate in (row, column):',
  ),
  (
    'latents are decoded without their shift',
    'latents.py',
    'return x0 / self.scale + self.shift',
    'return x0 / self.scale',
  ),
  (
    'mlp_ratio is ignored',
    'dit.py',
    'int(self.mlp_ratio * width)',
    'int(4 * width)',
  ),
)
DATA = _faults(
  'data',
  'data',
  (
    'every epoch has the same order',
    'pipeline.py',
    'np.random.SeedSequence([seed, epoch])',
    'np.random.SeedSequence([seed])',
  ),
  (
    'held-out padding is numbered like an example',
    'pipeline.py',
    "'index': np.where(valid, index, -1)",
    "'index': np.where(valid, index, 0)",
  ),
  (
    'held-out latents are those of mirrored training images',
    'latents.py',
    'posterior[len(posterior) - (total - train) :]',
    'posterior[train : total]',
  ),
  (
    'the deviation of latents forgets the posterior’s own',
    'latents.py',
    '(mean**2 + np.exp(logvar)).sum(0)',
    '(mean**2).sum(0)',
  ),
  (
    'mirrored latents are of images upside down',
    'latents.py',
    'images[:train, :, ::-1]',
    'images[:train, ::-1]',
  ),
  (
    'transparent pixels become black',
    'decode.py',
    "BACKGROUND = 'white'",
    "BACKGROUND = 'black'",
  ),
  (
    'rotated photographs stay rotated',
    'decode.py',
    'ImageOps.exif_transpose(image, in_place=True)',
    'ImageOps.exif_transpose(image)',
  ),
  (
    'images are not halved before the bicubic',
    'decode.py',
    'while min(image.size) >= 2 * size:',
    'while min(image.size) >= 20_000 * size:',
  ),
  (
    'more bad files are allowed than max_bad_fraction says',
    'prepare.py',
    'if len(bad) > self.max_bad_fraction * len(entries):',
    'if len(bad) > 10 * self.max_bad_fraction * len(entries):',
  ),
  (
    'the split ignores its seed',
    'plan.py',
    'random_state=recipe.split_seed',
    'random_state=0',
  ),
  (
    'the order of a class file is lost',
    'class_lists.py',
    "sorted(ids) if order == 'sorted' else ids",
    'sorted(ids)',
  ),
  (
    'a full verification reads 16 chunks only',
    'packed.py',
    '  if not full:\n    chosen',
    '  if True:\n    chosen',
  ),
)
EVALUATION = _faults(
  'evaluation',
  'evaluation/test_metrics.py evaluation/test_fid.py evaluation/test_kid.py evaluation/test_inception_score.py '
  'evaluation/test_precision_recall.py evaluation/test_features.py',
  (
    'covariances are divided by N',
    'fid.py',
    'blas.dsyrk(1 / (count - 1),',
    'blas.dsyrk(1 / count,',
  ),
  (
    'KID keeps its bias',
    'kid.py',
    'within = sum(total - diagonal for total, diagonal in',
    'within = sum(total for total, diagonal in',
  ),
  (
    'splits of the Inception Score are not shuffled',
    'inception_score.py',
    'np.random.RandomState(PERMUTATION_SEED).permutation(count)',
    'np.arange(count)',
  ),
  (
    'a feature counts as its own neighbour',
    'precision_recall.py',
    'self.neighbours + 1)[1]',
    'self.neighbours)[1]',
  ),
  (
    'cached features do not depend on which images were taken',
    'extract.py',
    'digest = hashlib.sha256(text.encode() + np.asarray(indices, np.int64).tobytes())',
    'digest = hashlib.sha256(text.encode())',
  ),
)
RUNTIME = _faults(
  'runtime',
  'runtime',
  (
    'swapped values have the same checksum',
    'checkpoint.py',
    'jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)',
    'jnp.sum(bits, dtype=jnp.uint32)',
  ),
  (
    'the worst checkpoints are kept where higher is better',
    'checkpoint.py',
    "'reverse': best_mode == 'min'",
    "'reverse': True",
  ),
  (
    'the best step is the lowest where higher is better',
    'checkpoint.py',
    "self._best = min if best_mode == 'min' else max",
    'self._best = min',
  ),
  (
    'the last sharding rule wins',
    'mesh.py',
    'for pattern, axes in rules if re.search(pattern, name)',
    'for pattern, axes in tuple(rules)[::-1] if re.search(pattern, name)',
  ),
  (
    'the body of a scan is counted once',
    'cost.py',
    "repeats = params['length'] if name == 'scan' else 1",
    'repeats = 1',
  ),
)
SAMPLING = _faults(
  'sampling',
  'sampling',
  (
    'sample sets of another seed are taken for the same',
    'sample_set.py',
    'differing = [key for key in wanted if found.get(key) != wanted[key]]',
    "differing = [key for key in wanted if key != 'seed' and found.get(key) != wanted[key]]",
  ),
  (
    'samples of another guidance scale are taken for the same',
    'samples.py',
    "    'cfg_scale': sample.cfg_scale,\n",
    '',
  ),
)
EXPERIMENT = _faults(
  'experiment',
  'experiment sampling',
  (
    'clip_x0 is ignored',
    'experiment.py',
    'clip_x0=sample.clip_x0',
    'clip_x0=False',
  ),
  (
    'a given scale of latents is ignored',
    'experiment.py',
    "if vae.scale and vae.shift == 'none':",
    "if vae.scale < 0 and vae.shift == 'none':",
  ),
)
CONFIG = _faults(
  'config',
  'config experiment/test_experiment.py',
  (
    'another schedule is accepted for a trained model',
    'schema.py',
    "'The noise schedule.', NEVER",
    "'The noise schedule.', IF_GIVEN",
  ),
)
PRETRAINED = _faults(
  'pretrained',
  'pretrained/test_weights.py',
  (
    'DiT-XL gets heads of 64',
    'dit.py',
    'HEAD_WIDTH = {1152: 72}',
    'HEAD_WIDTH = {}',
  ),
  (
    'raw parameters are preferred to the average',
    'weights.py',
    "for wrapper in ('ema', 'state_dict', 'model'):",
    "for wrapper in ('model', 'state_dict', 'ema'):",
  ),
  (
    'diffusers’ time frequencies are the published DiT’s',
    'diffusers.py',
    "'frequency_shift': 1,",
    "'frequency_shift': 0,",
  ),
  (
    'other positions than ours are accepted',
    'dit.py',
    'not np.allclose(stored[0], ours, atol=1e-5)',
    'not np.allclose(stored[0], ours, atol=1e5)',
  ),
)
REPORTING = _faults(
  'reporting',
  'reporting stages/test_report.py',
  (
    'higher FID counts as better',
    'records.py',
    'return (metric in HIGHER) - (metric in LOWER)',
    'return (metric in LOWER) - (metric in HIGHER)',
  ),
  (
    'results of different protocols stand in one table',
    'records.py',
    'key = (record.is_reconstruction, canonical(comparable(record.protocol)))',
    'key = (record.is_reconstruction, record.features)',
  ),
  (
    'deviations of splits stand as metrics of their own',
    'records.py',
    'n for n in others if not (n.endswith(STD) and n.removesuffix(STD) in found)',
    'n for n in others',
  ),
)
SWEEP = _faults(
  'sampling',
  'sampling stages/test_sweep.py',
  (
    'a sweep deletes samples that were there before',
    'sweep_work.py',
    "if not self.keep_samples and not (folder / 'meta.json').exists():",
    'if not self.keep_samples:',
  ),
  (
    'a sweep takes results of another number of seeds',
    'sweep_work.py',
    "            and len(result['seeds']) == seeds\n",
    '',
  ),
  (
    'cells whose flags differ share a sample set',
    'sweep.py',
    "f'{samples.set_name(found)}{_suffix(experiment, found, values)}'",
    'samples.set_name(found)',
  ),
  (
    'inversion goes on to t = 0',
    'inversion.py',
    'times=times[times > 0]',
    'times=times',
  ),
  (
    'interpolation is straight',
    'inversion.py',
    'np.sin(v * angle) / np.sin(angle)',
    'v + 0 * angle',
  ),
)

FAULTS = (
  *(
    TRAINING
    + OBJECTIVES
    + PROCESS
    + CHEAPER
    + MODELS
    + DATA
    + EVALUATION
    + RUNTIME
    + SAMPLING
    + EXPERIMENT
    + CONFIG
    + PRETRAINED
  ),
  *(REPORTING + SWEEP),
)
