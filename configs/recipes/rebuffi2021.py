"""Rebuffi et al. 2021, "Fixing data augmentation to improve adversarial robustness" (arXiv:2103.01946): TRADES, CutMix.

  python -m lrat_jax.main --config=configs/recipes/rebuffi2021.py --config.data.data_dir=DIR

Needs CIFAR-10, the DDPM images that DeepMind publishes (cifar10_ddpm.npz, 1M, in EDM's layout), and several
accelerators; `--dry_run` estimates memory and time on the current machine. RobustBench's entry
Rebuffi2021Fixing_28_10_cutmix_ddpm: 87.33 % clean, 60.75 % under AutoAttack, L-infinity 8/255. It was not run here at
full size.

Constants are those of github.com/google-deepmind/deepmind-research (adversarial_robustness/jax), with its use_cutmix on
and four devices or more. What differs here: the attack is PGD-10 with step size 2/255, away from the mixed labels
(original: with Adam); natural and adversarial images share batch-norm statistics on each device, and running averages
use both (original: only adversarial images); each image has its own CutMix box (original: one per batch); the last
layer's bias has no weight decay; label smoothing of the DDPM images by 0.1 must already be in the file (labels as
distributions). The best epoch is selected by PGD-10 on validation images (original: by 40 steps on the margin).
"""

from lrat_jax.config import methods


def get_config(arg=None):
  """The configuration; `arg` names a suite in place of AutoAttack, such as "suite=apgd"."""
  config = methods.trades(f"cifar10,pgd,{arg or 'suite=autoattack'}")
  config.name = "rebuffi2021"
  config.model.name = "dm_wide_resnet_28_10"
  config.model.batch_norm = "local"
  config.data.extra.source = "npz:cifar10_ddpm.npz"
  config.data.extra.fraction = 0.7
  config.data.batch_size = 1024
  config.data.validation_size = 1024
  config.data.cutmix = 1.0
  config.train.epochs = 400
  config.train.ema_decay = 0.995
  config.train.attack_batch_norm = "train"
  config.optimizer.learning_rate = 0.4  # 0.1 per 256 images
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup = 10 / 400
  config.optimizer.nesterov = True
  config.optimizer.decay = "kernels"
  return config
