"""Whether a file of a workdir was written before its fields and keys had the names that they have now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrat_jax.core.errors import ConfigError

_CONFIG_FIELDS = {
  "train": {"attack_mode", "log_every", "checkpoint_every", "epsilon_ramp", "weights_sample"},
  "optimizer": {"boundaries", "factor"},
  "local_weights": {"begin"},
  "global_weights": {"begin"},
  "awp": {"begin"},
  "eval": {"check_images"},
}
_RESULT_KEYS = {"worst_case", "configuration", "epsilons"}


def refuse_earlier(path: Path, content: Mapping[str, Any]) -> None:
  """Raises ConfigError, in one line, for a config.json or results.json of an earlier version."""
  groups = ((content.get(group), fields) for group, fields in _CONFIG_FIELDS.items())
  if _RESULT_KEYS & set(content) or any(isinstance(group, Mapping) and fields & set(group) for group, fields in groups):
    raise ConfigError(f"{path} was written by an earlier version of lrat_jax and cannot be read.")
