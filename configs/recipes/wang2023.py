"""Wang et al. 2023, "Better diffusion models further improve adversarial training" (arXiv:2302.04638): EDM images.

  python -m lrat_jax.main --config=configs/recipes/wang2023.py --config.data.data_dir=DIR

Needs CIFAR-10, the paper's EDM images (1m.npz, huggingface.co/datasets/P2333/DM-Improves-AT), and several
accelerators; `--dry_run` estimates memory and time on the machine at hand. RobustBench's entry
Wang2023Better_WRN-28-10, with 20M images and longer training: 92.44 % clean, 67.31 % under AutoAttack, L-infinity
8/255. These are the smaller settings that the paper's code gives as its example: 1M images, 400 epochs, batches of
512. It was not run here at full size.
"""

from lrat_jax.config import methods


def get_config(arg=None):
  """The configuration; `arg` names a suite in place of AutoAttack, "suite=apgd"."""
  config = methods.trades(f"cifar10,{arg or 'suite=autoattack'}")
  config.name = "wang2023"
  config.beta = 5.0
  config.model.name = "dm_wide_resnet_28_10"
  config.data.extra.source = "npz:1m.npz"
  config.data.extra.fraction = 0.7
  config.data.batch_size = 512
  config.data.validation_size = 1024
  config.train.epochs = 400
  config.train.ema_decay = 0.995
  config.train.label_smoothing = 1 / 9  # the paper's 0.1 is shared out among the nine wrong classes alone
  config.optimizer.learning_rate = 0.2
  config.optimizer.schedule = "one_cycle"
  config.optimizer.warmup = 0.025
  config.optimizer.nesterov = True
  return config
