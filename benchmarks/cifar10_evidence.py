"""The main comparison of this project on CIFAR-10, as one command for a machine with an accelerator; resumable.

    python -m benchmarks.cifar10_evidence --data_dir=DIR --workdir=runs/cifar10_evidence

ResNet-18, 30 epochs, PGD-10 in training, 8/255, learning rates that drop after half and three quarters of the epochs,
bfloat16, images on the device: AT, GAIRAT, LRAT, and GAIRAT with LRAT. Each run is evaluated twice: with APGD-CE and
APGD-T on all 10,000 test images, results in apgd/; and with the suite "full" (in a trial "full_apgd"), including
AutoAttack's standard version, on the first 1,000, results in the workdir itself.

Expected from published tables, in percent after a whole schedule: AT about 82 clean, 51 to 53 under PGD-20, 44 to 48
under AutoAttack; GAIRAT high under PGD, at most 45 under CW and 40 under AutoAttack. If GAIRAT stays high under
AutoAttack, an attack is weak.

`--trial` runs the same code at a small scale (256 images, two epochs, few steps), to check that everything works.
"""

import shutil
import sys
from pathlib import Path

from absl import app, flags

from lrat_jax.compare import __main__ as compare

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", "", "where TFDS keeps CIFAR-10; empty is its own default")
flags.DEFINE_string("workdir", "runs/cifar10_evidence", "where the runs and results live")
flags.DEFINE_string("seeds", "0", "the seeds")
flags.DEFINE_bool("trial", False, "a few steps of everything")

METHODS = "at,irat,lrat,lrat_irat"
RESULTS = ("comparison.json", "comparison.md", "comparison.png")

# The preset's schedule, on 30 epochs; the last learning rate is used long enough for robust accuracy to converge.
FULL = {"train.epochs": 30, "data.placement": "device", "model.dtype": "bfloat16"}
TRIAL = {
  "train.epochs": 2,
  "data.train_size": 256,
  "data.validation_size": 64,
  "data.batch_size": 64,
  "model.name": "resnet18_4",
  "train_attacks.pgd.num_steps": 2,
  "validation_attack.num_steps": 2,
  "eval.batch_size": 64,
  "eval.num_sanity_examples": 16,
}
# Fields that shorten the attacks, by suite.
SHORT = {
  "apgd": {},
  "full_apgd": {
    "eval.suite.apgd_l1.num_steps": 5,
    "eval.suite.apgd_l2.num_steps": 5,
    "eval.suite.square.num_queries": 5,
  },
}


def _compare(suite: str, num_images: int) -> int:
  fields = TRIAL | SHORT[suite] if FLAGS.trial else FULL
  fields = fields | {"data.data_dir": FLAGS.data_dir, "eval.num_images": 32 if FLAGS.trial else num_images}
  overrides = [f"--config.{field}={value}" for field, value in fields.items()]
  return compare.main(
    [
      f"--methods={METHODS}",
      f"--seeds={FLAGS.seeds}",
      "--data=cifar10",
      f"--suite={suite}",
      f"--workdir={FLAGS.workdir}",
      *overrides,
    ]
  )


def main(_) -> None:
  workdir = Path(FLAGS.workdir)
  if not (workdir / "apgd" / RESULTS[0]).exists():
    if code := _compare("apgd", 0):
      sys.exit(code)
    (workdir / "apgd").mkdir(exist_ok=True)
    for name in reversed(RESULTS):  # the file that marks this as done is copied last
      shutil.copy(workdir / name, workdir / "apgd" / name)
  sys.exit(_compare("full_apgd" if FLAGS.trial else "full", 1000))


if __name__ == "__main__":
  app.run(main)
