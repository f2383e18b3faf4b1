"""Rice et al. 2020, "Overfitting in adversarially robust deep learning" (arXiv:2002.11569): PGD-10 and early stopping.

  python -m lrat_jax.main --config=configs/recipes/rice2020.py --config.data.data_dir=DIR

Needs CIFAR-10 and an accelerator; `--dry_run` estimates memory and time on the current machine. RobustBench's entry
Rice2020Overfitting (WRN-34-20): 85.34 % clean, 53.42 % under AutoAttack, L-infinity 8/255. It was not run here at full
size.

Constants are those of github.com/locuslab/robust_overfitting (train_cifar.py --model=WideResNet --width-factor=20
--val). What differs here: images are padded with zeros before they are cropped (original: by reflection); running
averages of batch norm are updated once per step, with the adversarial images (original: also with every iterate of the
attack and with the natural images). The epoch that is best under PGD-10 on 1000 validation images is evaluated, as with
--val; the published weights were selected on test images.
"""

from lrat_jax.config import methods


def get_config(arg=None):
  """The configuration; `arg` names a suite in place of AutoAttack, such as "suite=apgd"."""
  config = methods.at(f"cifar10,{arg or 'suite=autoattack'}")
  config.name = "rice2020"
  config.model.name = "wide_resnet_34_20"
  config.train.epochs = 200  # the learning rate falls after 100 and 150
  config.validation_attack.step_size = "2/255"
  config.train.attack_batch_norm = "train"  # the attack uses the batch's own statistics
  return config
