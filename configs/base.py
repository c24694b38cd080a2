"""Every field there is, with its default: a DiT-S/2 on digits. Other configs change what differs.

A choice is a `name` and one subsection per alternative; only the named one is used.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The defaults."""
  config = ConfigDict()
  config.task = 'diffusion'  # What is trained, a module of diffusion_jax/tasks.
  config.seed = 0  # Of initialisation, data order and training noise.
  config.space = 'pixel'  # What diffuses: 'pixel', or 'latent' of config.vae.checkpoint.
  config.num_classes = 10  # Labels of the data; 0: unconditional; -1: as many as the data have.
  config.dtype = (
    'auto'  # Activations: 'float32', 'bfloat16', 'auto' (float32 on CPU, else bfloat16).
  )

  # Weights to begin with: a published DiT (.pt, .safetensors), a diffusers directory, or a workdir.
  config.init_from = ''
  config.allow_pickle = (
    False  # Read foreign weights from PyTorch pickles: only from whom you trust.
  )

  config.data = ConfigDict()  # One prepared set; --mode=prepare makes it, every run finds it.
  # Of the set: its folder is DIR/NAME-SIZE-FINGERPRINT. '': after the class list or the source.
  config.data.name = 'digits'
  config.data.dir = 'data'  # Where prepared sets and evaluation classifiers are kept.
  config.data.image_size = (
    8  # Pixels a side; 0: of 32, 64 and 128 the largest that fits the images.
  )
  config.data.channels = 1  # 3: RGB, 1: luma, 0: as the images are.
  config.data.class_list = 'all'  # 'all', 'cmc' or 'kaggle' (ImageNet-100), or a file of classes.
  config.data.label_order = 'sorted'  # Labels number the classes by name, or as in the 'file'.
  # Images held out of a source that has no held-out set itself. -1: a tenth of every class, up to
  # 5,000 in all; or what the source holds out.
  config.data.holdout = 297
  config.data.split_seed = 0  # Which ones; the same share of every class.
  config.data.fingerprint = ''  # Of the set, where several have the same name and settings.
  config.data.flip = False  # Mirror half of the training images.
  config.data.device_resident = False  # Keep all training examples in the memory of each device.
  config.data.verify = 'full'  # At start, digests of all data ('full') or of 256 MiB ('quick').
  # For --mode=prepare: a folder or archive of images, ILSVRC2012's archives, a TFDS name, 'digits'.
  config.data.source = 'digits'
  config.data.max_bad_fraction = 1e-3  # Unreadable files among all, above which it stops.
  config.data.workers = 0  # Decoding processes; 0: one a core.

  time = dict(
    time_distribution='uniform',  # Of training times: 'uniform', 'logit_normal'.
    logit_mean=0.0,  # Of logit_normal; higher is noisier.
    logit_std=1.0,
  )
  config.schedule = ConfigDict()
  config.schedule.name = 'cosine'  # A module of diffusion_jax/diffusion/schedules.
  config.schedule.linear = ConfigDict(
    dict(num_timesteps=1000, beta_start=1e-4, beta_end=0.02, **time)
  )
  config.schedule.quadratic = ConfigDict(
    dict(num_timesteps=1000, beta_start=8.5e-4, beta_end=0.012, **time)
  )
  config.schedule.cosine = ConfigDict(
    dict(num_timesteps=1000, offset=0.008, max_beta=0.999, **time)
  )
  config.schedule.straight = ConfigDict(time)

  config.process = ConfigDict()
  config.process.prediction = 'v'  # 'eps', 'x0', 'v', 'velocity'.
  config.process.learned_variance = False  # Of the reverse steps too, in C more output channels.

  config.loss = ConfigDict()
  config.loss.label_drop = 0.1  # Share of labels hidden in training; guidance needs > 0.
  config.loss.weighting = 'none'  # 'none', 'min_snr'.
  config.loss.min_snr_gamma = 5.0
  config.loss.vlb_weight = 0.001  # Of the variational bound; only with process.learned_variance.

  config.model = ConfigDict()
  config.model.name = 'dit'  # A module of diffusion_jax/models.
  config.model.dit = ConfigDict()
  config.model.dit.patch_size = 2  # 0: the smallest that gives 16 x 16 patches at most.
  config.model.dit.hidden_size = 384  # A multiple of num_heads and of 4.
  config.model.dit.depth = 12
  config.model.dit.num_heads = 6
  config.model.dit.mlp_ratio = 4.0
  config.model.dit.frequency_shift = 0  # Of the time sinusoids: 0 published DiT, 1 diffusers'.
  config.model.dit.attention = 'xla'  # 'xla'; 'cudnn': NVIDIA GPUs, not with dtype float32.
  config.model.dit.remat = False  # Recompute blocks in the backward pass: less memory, more time.
  config.model.unet = ConfigDict()
  config.model.unet.channels = 64  # Of the first level, a multiple of 32.
  config.model.unet.channel_mult = (1, 2)  # Channels of each level, in units of `channels`.
  config.model.unet.num_res_blocks = 2  # A level, one more on the way up.
  config.model.unet.attention_resolutions = (4,)  # Sides of feature maps, in pixels.
  config.model.unet.num_heads = 4  # Of attention; DDPM has 1.
  config.model.unet.head_channels = 0  # Width of a head, for as many as fit; 0: num_heads of them.
  config.model.unet.dropout = 0.1
  config.model.unet.scale_shift_norm = True  # By the condition: ADM; False adds it, DDPM.
  config.model.unet.resample = 'conv'  # 'conv' (DDPM), 'residual' (ADM): pooling residual blocks.
  config.model.unet.frequency_shift = 0  # Of the time sinusoids: 0 (ADM), 1 (DDPM).
  config.model.unet.norm_epsilon = 1e-5  # 1e-5 (ADM), 1e-6 (DDPM).
  config.model.unet.attention = 'xla'  # 'xla', 'cudnn' (fused; on a GPU in bfloat16).
  config.model.unet.remat = False  # Recompute blocks in the backward pass: less memory, more time.

  config.vae = ConfigDict()  # The KL autoencoder; these are KL-f4.
  config.vae.channels = 128  # Of the first level, a multiple of 32.
  config.vae.channel_mult = (1, 2, 4)  # A level each, halved between them: f = 4.
  config.vae.num_res_blocks = 2
  config.vae.z_channels = 3
  config.vae.embed_channels = 3  # Of the latents.
  # Latent systems only: a workdir that trained it (its newest step), a CompVis .ckpt or .safetensors,
  # or a diffusers directory; its sizes are those above.
  config.vae.checkpoint = ''
  config.vae.fingerprint = ''  # Of its weights; '' takes whatever the checkpoint holds.
  config.vae.scale = 0.0  # Of latents for the backbone; 0: measured, so that their deviation is 1.
  config.vae.shift = 'none'  # 'none'; 'channel': less the measured mean of each channel.
  config.vae.batch_size = 16  # Images that a device encodes or decodes at once.
  # Training the autoencoder only (task 'autoencoder').
  config.vae.kl_weight = 1e-6  # Of sums over the latents, against sums over the pixels.
  config.vae.perceptual_weight = 1.0  # Of LPIPS; 0 leaves it out.
  config.vae.perceptual_weights = ''  # Folder or file with VGG16's and LPIPS's weights.
  config.vae.discriminator_start = 50_000  # Steps without it.
  config.vae.discriminator_weight = 0.5
  config.vae.discriminator_channels = 64
  config.vae.discriminator_layers = 3

  config.optimizer = ConfigDict()  # AdamW.
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 100
  config.optimizer.decay = 'cosine'  # 'cosine' to 0 at train.num_steps, or 'constant'.
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip_norm = 1.0  # Of the global gradient; 0 does not clip.

  config.train = ConfigDict()
  config.train.num_steps = 1000
  config.train.batch_size = 128  # Over all devices and hosts.
  config.train.ema_decay = 0.9999
  config.train.log_every_steps = 50
  config.train.holdout_every_steps = 500  # Held-out loss of the EMA parameters.
  config.train.preview_every_steps = 500
  config.train.preview_steps = 50  # Of the sampler, in previews: sample.num_steps if that is fewer.
  config.train.eval_every_steps = 0  # Metrics of config.eval on a few samples; 0: never.
  config.train.eval_num_samples = 500  # How many; the metrics say so: 'frechet_distance@500'.
  config.train.max_skipped = 10  # Non-finite steps in a row after which training stops.

  config.checkpoint = ConfigDict()
  config.checkpoint.every_steps = 500
  config.checkpoint.keep_newest = 2
  config.checkpoint.keep_best = 1
  # Of config.task, measured at every checkpoint; or of config.eval, as 'frechet_distance', for which
  # train.eval_every_steps divides checkpoint.every_steps.
  config.checkpoint.best_metric = 'holdout_loss'
  config.checkpoint.best_mode = 'min'  # 'min', 'max'.

  config.sampler = ConfigDict()
  config.sampler.name = 'ddim'  # A module of diffusion_jax/diffusion/samplers.
  config.sampler.ddim = ConfigDict(dict(eta=0.0))  # 0: deterministic, 1: like DDPM.
  # 'fixed_small', 'fixed_large', or with process.learned_variance 'learned'.
  config.sampler.ddpm = ConfigDict(dict(variance='fixed_small'))

  config.sample = ConfigDict()
  config.sample.name = ''  # Folder below DIR/samples; '' is made from sampler, steps and scale.
  config.sample.checkpoint = 'latest'  # 'latest', 'best' or a step.
  config.sample.num_samples = 1000
  config.sample.batch_size = 250  # At most; does not change the images.
  config.sample.num_steps = 50  # Up to the schedule's num_timesteps.
  config.sample.spacing = 'trailing'  # 'trailing', 'leading', 'linspace'.
  config.sample.cfg_scale = 1.0  # 1: no guidance.
  config.sample.guide_channels = 0  # How many of the first channels are guided; 0: all.
  config.sample.clip_x0 = False  # To [-1, 1]; pixel space only.
  config.sample.labels = ()  # In turn, numbers or class names; (): i mod num_classes for sample i.
  config.sample.label_counts = ()  # Or how many of each class, first all of class 0, and so on.
  config.sample.seed = 0
  config.sample.ema = True  # The averaged parameters, or the raw ones.
  config.sample.grid_columns = 10  # Of grid.png and the previews; rows are classes, 10 at most.
  config.sample.gif_frames = 25
  config.sample.export = ()  # For other tools: 'npz' (ADM's samples.npz), 'png' (a folder of files).

  config.eval = ConfigDict()
  config.eval.num_samples = 0  # 0: config.sample.num_samples.
  config.eval.num_seeds = 1  # Sample sets, of seeds sample.seed, +1, ...: mean and deviation.
  config.eval.reference = 'holdout'  # 'holdout', 'train', a folder of images, or ADM's .npz.
  config.eval.backend = 'jax'  # 'jax', or 'torch_fidelity': the reference itself, same images.
  config.eval.batch_size = 0  # Images of a device at once; 0: 8 on CPU, 100 elsewhere.
  # The FID network's .pth or .safetensors; '' finds it in torch's cache, or downloads it.
  config.eval.inception_weights = ''
  config.eval.neighbours = 0  # Samples shown beside their nearest training images; 0: none.
  config.eval.features = ConfigDict()
  # A module of diffusion_jax/evaluation/features: 'inception' (FID as published), or for images that
  # are not photographs 'dataset_classifier', 'pixels'.
  config.eval.features.name = 'dataset_classifier'
  config.eval.features.dataset_classifier = ConfigDict()
  config.eval.features.dataset_classifier.channels = (32, 64)  # Of its levels.
  config.eval.features.dataset_classifier.feature_size = 64
  config.eval.features.dataset_classifier.num_steps = 600
  config.eval.features.dataset_classifier.batch_size = 128
  config.eval.features.dataset_classifier.learning_rate = 2e-3
  config.eval.features.dataset_classifier.seed = 0
  config.eval.features.dataset_classifier.max_seconds = 120.0  # As many steps as fit; 0: all.
  config.eval.features.pixels = ConfigDict(dict(pixel_range=255.0))  # Pixels scaled to 0..range.
  config.eval.metrics = ('fid', 'inception_score', 'label_accuracy')  # Of diffusion_jax/evaluation.
  config.eval.inception_score = ConfigDict(dict(splits=10))
  config.eval.kid = ConfigDict(dict(subsets=100, subset_size=1000))
  config.eval.precision_recall = ConfigDict(dict(neighbours=3))
  config.eval.real_baseline = True  # Measure real training images against the reference too.

  # What this run is in the tables of --mode=report, and what was published of it (0: nothing).
  config.published = ConfigDict(
    dict(name='', fid=0.0, inception_score=0.0, inception_score_std=0.0)
  )

  config.report = ConfigDict()  # --mode=report over every run below the workdir.
  config.report.num_classes = 6  # Rows of the animation, and classes of the panel, at most.
  config.report.moments = 5  # Of denoising, for each class of the panel.

  config.bench = ConfigDict()
  config.bench.name = 'data'  # A module of diffusion_jax/benchmarks.
  config.bench.repeats = 5  # Of every measurement, in turns; the median counts.
  config.bench.data = ConfigDict()
  config.bench.data.batches = 100  # A measurement of reading.
  config.bench.data.batch_size = 256
  config.bench.data.num_files = 2000  # Written and read again as a folder of files and as TFDS.
  config.bench.data.num_photos = 4000  # Of 512 px, prepared by --mode=prepare and by a plain loop.
  config.bench.evaluation = ConfigDict()  # Against torch-fidelity.
  config.bench.evaluation.num_images = 1000  # Whose features are computed.
  config.bench.evaluation.num_features = 5000  # Of random vectors, for FID's second half.
  config.bench.evaluation.batch_sizes = (8, 64)  # Of torch-fidelity, whose default is 64.

  config.mesh = ConfigDict()  # Devices along each axis; -1 is what is left.
  config.mesh.data = -1
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  # (regular expression, (axis or '' a dimension)): the first one found in an array's path decides
  # how it is cut, for example ('mlp_in/kernel', ('', 'fsdp', 'tensor')). No rule: a copy each.
  config.mesh.rules = ()

  config.logging = ConfigDict()
  config.logging.wandb_project = ''  # '' is off; otherwise needs `pip install wandb`.
  return config
