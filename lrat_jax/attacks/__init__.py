"""Pure, jitted adversarial attacks on any `logits_fn: images -> logits`.

    result = attacks.pgd(key, logits_fn, images, labels, epsilon=8 / 255, step_size=2 / 255, num_steps=10)
    result.images, result.success

Images are float [batch, h, w, c] in [0, 1], labels int [batch]; normalisation belongs inside `logits_fn`.
A custom attack can use `starting_points`, `losses`, `get_norm` and `project` (see examples/custom_attack.py).
This package imports only `core` and `convolutions` from the rest of lrat_jax.
"""

from lrat_jax.attacks import losses, transforms
from lrat_jax.attacks._apgd import apgd
from lrat_jax.attacks._autoattack import autoattack
from lrat_jax.attacks._carlini_wagner import carlini_wagner
from lrat_jax.attacks._checks import check_batch, check_logits
from lrat_jax.attacks._ddn import ddn
from lrat_jax.attacks._deepfool import deepfool
from lrat_jax.attacks._ead import ead
from lrat_jax.attacks._entry import AttackResult, example_keys
from lrat_jax.attacks._fab import fab
from lrat_jax.attacks._fmn import fmn
from lrat_jax.attacks._hop_skip_jump import hop_skip_jump
from lrat_jax.attacks._lpips import lpips, lpips_distance
from lrat_jax.attacks._msd import msd
from lrat_jax.attacks._pgd import cw, fgsm, pgd, starting_points
from lrat_jax.attacks._spatial import spatial
from lrat_jax.attacks._spsa import spsa
from lrat_jax.attacks._square import square
from lrat_jax.attacks._transfer import transfer
from lrat_jax.attacks._unforeseen import unforeseen
from lrat_jax.attacks.corruptions import corruption
from lrat_jax.attacks.eval_state import FileStore
from lrat_jax.attacks.registry import Attack, from_config, microbatch, most_surviving_steps, scaled, takes_distributions
from lrat_jax.attacks.report import AutoAttackReport, robust_accuracy_curve, with_adversarials
from lrat_jax.attacks.stages import StageSummary
from lrat_jax.attacks.threat_model import get_norm, project
from lrat_jax.convolutions.rewrite import as_written
from lrat_jax.core.microbatch import at_batch_size

__all__ = [
  "Attack",
  "AttackResult",
  "AutoAttackReport",
  "FileStore",
  "StageSummary",
  "apgd",
  "as_written",
  "at_batch_size",
  "autoattack",
  "carlini_wagner",
  "check_batch",
  "check_logits",
  "corruption",
  "cw",
  "ddn",
  "deepfool",
  "ead",
  "example_keys",
  "fab",
  "fgsm",
  "fmn",
  "from_config",
  "get_norm",
  "hop_skip_jump",
  "losses",
  "lpips",
  "lpips_distance",
  "microbatch",
  "most_surviving_steps",
  "msd",
  "pgd",
  "project",
  "robust_accuracy_curve",
  "scaled",
  "spatial",
  "spsa",
  "square",
  "starting_points",
  "takes_distributions",
  "transfer",
  "transforms",
  "unforeseen",
  "with_adversarials",
]
