"""Types of the arrays in public signatures, in jaxtyping's notation; axes with the same name have the same length.

They are only annotations: nothing is checked at run time. Attacks check their inputs themselves.
`jaxtyping.jaxtyped(typechecker=...)` around a function checks its calls.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Integer, Key, Real, UInt8

Images = Float[Array, "batch height width channel"]  # in [0, 1]
Labels = Integer[Array, "batch"]  # in [0, classes)
Distributions = Float[Array, "batch classes"]  # of labels: each row sums to 1
# The true classes, or the probability of each class to be the true one.
AnyLabels = Labels | Distributions
Logits = Float[Array, "batch classes"]
PerImage = Float[Array, "batch"]
Answers = Bool[Array, "batch"]
Counts = Integer[Array, "batch"]
OneKey = Key[Array, ""]
KeyPerImage = Key[Array, "batch"]
# A single key is split into one key per image.
Keys = KeyPerImage | OneKey
# Numbers that may be traced.
Scalar = float | int | Real[Array, ""]
Rank = int | Integer[Array, ""]
LogitsFn = Callable[..., Logits]  # of images, and for a random model also of one key per image
Activations = Float[Array, "batch height width channel"]  # of one layer; sizes differ between layers
FeaturesFn = Callable[[Images], Sequence[Activations]]
# In host memory, or copied there.
HostImages = Float[np.ndarray, "batch height width channel"] | Images
HostPixels = UInt8[np.ndarray, "batch height width channel"] | HostImages  # or bytes
HostIntegers = Integer[np.ndarray, "batch"] | Integer[Array, "batch"]
# Always in host memory.
NumpyImages = Float[np.ndarray, "batch height width channel"]
NumpyIntegers = Integer[np.ndarray, "batch"]
HostFloats = Float[np.ndarray, "batch"]
HostAnswers = Bool[np.ndarray, "batch"]
# For pairs: one entry per adversarial variant.
PerVariant = Float[Array, "batch variants"]
VariantLogits = Float[Array, "batch variants classes"]
# For collectives: a mesh axis, or several as one.
AxisName = str | tuple[str, ...]
# Of a Flax module: params and batch_stats.
Variables = dict[str, Any]
