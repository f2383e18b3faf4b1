"""What the arrays of public signatures look like, in jaxtyping's words; axes of one name are of one length.

They are annotations alone: nothing is checked as a program runs, where attacks check what can go wrong by themselves.
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
# The true classes, or how likely each class is to be the true one.
AnyLabels = Labels | Distributions
Logits = Float[Array, "batch classes"]
PerImage = Float[Array, "batch"]
Answers = Bool[Array, "batch"]
Counts = Integer[Array, "batch"]
OneKey = Key[Array, ""]
KeyPerImage = Key[Array, "batch"]
# A single key is split over the batch.
Keys = KeyPerImage | OneKey
# Numbers that may be traced.
Scalar = float | int | Real[Array, ""]
Rank = int | Integer[Array, ""]
LogitsFn = Callable[..., Logits]  # of images, and for a random model of a key for each
Activations = Float[Array, "batch height width channel"]  # of one layer, whose sizes are its own
FeaturesFn = Callable[[Images], Sequence[Activations]]
# In host memory, or brought there.
HostImages = Float[np.ndarray, "batch height width channel"] | Images
HostPixels = UInt8[np.ndarray, "batch height width channel"] | HostImages  # bytes too
HostIntegers = Integer[np.ndarray, "batch"] | Integer[Array, "batch"]
# Always in host memory.
NumpyImages = Float[np.ndarray, "batch height width channel"]
NumpyIntegers = Integer[np.ndarray, "batch"]
HostFloats = Float[np.ndarray, "batch"]
HostAnswers = Bool[np.ndarray, "batch"]
# Of pairs: one entry for each adversarial variant.
PerVariant = Float[Array, "batch variants"]
VariantLogits = Float[Array, "batch variants classes"]
# What collectives take: a mesh's axis, or several as one.
AxisName = str | tuple[str, ...]
# A Flax module's: params and batch_stats.
Variables = dict[str, Any]
