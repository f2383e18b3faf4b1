"""Wang et al. 2023, "Better diffusion models further improve adversarial training" (arXiv:2302.04638): EDM images.

  python -m lrat_jax.main --config=configs/recipes/wang2023.py --config.data.data_dir=DIR

Needs CIFAR-10, the paper's EDM images (1m.npz, huggingface.co/datasets/P2333/DM-Improves-AT), and several
accelerators; `--dry_run` estimates memory and time on the current machine. RobustBench's entry
Wang2023Better_WRN-28-10, with 20M images and longer training: 92.44 % clean, 67.31 % under AutoAttack, L-infinity
8/255. These are the smaller settings of the example in the paper's code: 1M images, 400 epochs, batches of
512. It was not run here at full size.

Constants are those of github.com/wzekai99/DM-Improves-AT, and so is the attack, which uses the batch's own statistics.
What differs here: natural and adversarial images share batch-norm statistics (original: each half has its own); running
averages of batch norm move by 0.1 per step (original: 0.01); the last layer's bias has no weight decay. The learning
rate changes with every step (original: with every epoch, and the momentum with it, from 0.95 down to 0.85 and back).
The moving average starts at once (original: after 2.5 % of the steps). The best epoch is selected by PGD-10 (original:
by 40 steps on the margin).
"""

from lrat_jax.config import methods


def get_config(arg=None):
  """The configuration; `arg` names a suite in place of AutoAttack, such as "suite=apgd"."""
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
  config.train.label_smoothing = 0.1
  config.train.attack_batch_norm = "train"
  config.train_attacks.kl.random_start = "uniform"
  config.optimizer.learning_rate = 0.2
  config.optimizer.schedule = "one_cycle"
  config.optimizer.warmup = 0.025
  config.optimizer.nesterov = True
  config.optimizer.decay = "kernels"
  return config
