"""Singh et al. 2023, "Revisiting adversarial training for ImageNet" (arXiv:2303.01870): ConvNeXt-T with a ConvStem.

  python -m lrat_jax.main --config=configs/recipes/singh2023.py --config.data.data_dir=DIR \\
    --config.train.init_from=convnext_t_cvst_clean.pt

Needs ImageNet as TFDS prepares it (imagenet2012, array_record), read batch by batch, the clean weights from which the
paper starts, and several accelerators; `--dry_run` estimates memory and time on the current machine. RobustBench's
entry Singh2023Revisiting_ConvNeXt-T-ConvStem: 72.72 % clean, 49.46 % under AutoAttack, L-infinity 4/255. It was not run
here at full size.

Constants are those of github.com/nmndeep/revisiting-at (run_train.sh on 8 GPUs). What differs here: no random erasing
(original: on a quarter of the images); RandAugment draws from Pillow's operations at magnitude 9 (original: timm's, at
magnitudes around 9); APGD starts at a random point of the ball (original: at the image); MixUp and CutMix draw a share
for each image (original: for the batch); gains of layer norm and of layer scale have no weight decay; the moving
average starts with a smaller decay. The best epoch is selected by PGD-10 (original: no selection).
"""

from lrat_jax.config import methods

EPSILON = "4/255"


def get_config(arg=None):
  """The configuration; `arg` names a suite in place of AutoAttack, such as "suite=apgd"."""
  config = methods.at(f"cifar10,pgd,{arg or 'suite=autoattack'}")
  config.name = "singh2023"
  config.model.name = "convnext_tiny_convstem"
  config.model.mean, config.model.std = (0.0,), (1.0,)  # no normalisation
  config.data.source = "tfds:imagenet2012"
  config.data.image_size = 224
  config.data.random_resized_crop = 0.08
  config.data.batch_size = 640
  config.data.validation_size = 5000
  config.data.crop_padding = 0
  config.data.randaugment.update(num_ops=2, magnitude=9)
  config.data.mixup = 0.8
  config.data.cutmix = 1.0
  config.train.epochs = 300
  config.train.ema_decay = 0.9999
  config.train.label_smoothing = 0.1
  with config.unlocked():
    config.train_attacks = dict(apgd=dict(name="apgd", norm="linf", epsilon=EPSILON, num_steps=2, loss="ce"))
  config.validation_attack.update(epsilon=EPSILON, step_size="1/255")
  for entry in config.eval.suite.values():
    entry.epsilon = EPSILON
  config.optimizer.name = "adamw"
  config.optimizer.second_momentum = 0.95
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 0.05
  config.optimizer.decay = "kernels"
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup = 20 / 300
  return config
