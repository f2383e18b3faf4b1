"""How images are loaded: fields that cannot be combined are a one-line error."""

import pytest

from lrat_jax.config import validate
from lrat_jax.core.errors import ConfigError
from tests.helpers import make_config


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"loading": "disk"}, r"config.data.loading='disk' is unknown; choose from \['auto', 'memory', 'stream'\]"),
    ({"loading": "stream", "placement": "device"}, "data.placement='device': images cannot be kept on the device"),
    ({"random_resized_crop": 0.1}, "config.data.random_resized_crop=0.1 needs config.data.image_size"),
    ({"random_resized_crop": 1.5, "image_size": 8}, r"random_resized_crop=1.5 is outside \[0, 1\]"),
    ({"random_resized_crop": 0.1, "image_size": 8, "loading": "memory"}, "it needs loading=stream or auto"),
    ({"random_resized_crop": 0.1, "image_size": 8, "placement": "device"}, "and placement=host or auto"),
    ({"workers": -1}, r"config.data.workers=-1 is outside \[0, 1024\]"),
    ({"image_size": -1}, "config.data.image_size=-1 is outside"),
  ],
)
def test_what_cannot_be_is_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    validate.check(make_config(**{f"data__{name}": value for name, value in fields.items()}))


def test_what_can_be_passes():
  validate.check(make_config(data__loading="stream", data__image_size=8, data__random_resized_crop=0.08))
