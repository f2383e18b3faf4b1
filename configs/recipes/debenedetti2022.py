"""Debenedetti et al. 2022, "A light recipe to train robust vision transformers" (arXiv:2209.07399): ImageNet.

  python -m lrat_jax.main --config=configs/recipes/debenedetti2022.py --config.data.data_dir=DIR

Needs ImageNet as TFDS prepares it (imagenet2012, array_record), read batch by batch, and several accelerators;
`--dry_run` estimates memory and time on the current machine. RobustBench's entry Debenedetti2022Light_XCiT-S12: 72.34 %
clean, 41.78 % under AutoAttack, L-infinity 4/255. It was not run here at full size.

Constants are those of github.com/dedeswim/vits-robustness-torch (configs/xcit-adv-training.yaml on 8 TPU cores, where
the attack uses the batch's own statistics). What differs here: no colour augmentation, and no drop path (original:
0.05); the learning rate falls to 0 over all 110 epochs (original: to 1e-5 over 100 epochs, then constant); epsilon
grows with every step (original: with every epoch).
"""

from lrat_jax.config import methods

EPSILON = "4/255"


def get_config(arg=None):
  """The configuration; `arg` names a suite in place of AutoAttack, such as "suite=apgd"."""
  config = methods.at(f"cifar10,pgd,{arg or 'suite=autoattack'}")
  config.name = "debenedetti2022"
  config.model.name = "xcit_small_12_p16"
  config.model.mean, config.model.std = (0.0,), (1.0,)  # no normalisation
  config.model.batch_norm = "local"
  config.data.source = "tfds:imagenet2012"
  config.data.image_size = 224
  config.data.random_resized_crop = 0.08
  config.data.batch_size = 512
  config.data.validation_size = 5000
  config.data.crop_padding = 0
  config.train.epochs = 110
  config.train.epsilon_ramp_fraction = 10 / 110
  config.train.label_smoothing = 0.1
  config.train.attack_batch_norm = "train"
  config.train_attacks.pgd.update(epsilon=EPSILON, step_size="6/255", num_steps=1)
  config.validation_attack.update(epsilon=EPSILON, step_size="1/255")
  for entry in config.eval.suite.values():
    entry.epsilon = EPSILON
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 5e-4
  config.optimizer.weight_decay = 0.5
  config.optimizer.decay = "kernels"
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup = 10 / 110
  return config
