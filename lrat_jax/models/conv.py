"""The convolution of every model here, with an input gradient that stays fast on CPU.

XLA:CPU brings convolutions into the layout of its fast path only in a program's entry computation. Inside a loop, where
an attack takes its gradients, autodiff's input gradient (a convolution with transposed kernel dimensions) keeps the
slow layout. Written as a plain NHWC/HWIO convolution it is 2 to 3 times faster. GPU and TPU have no such problem and
keep `lax.conv_general_dilated` with its own gradient.
"""

import functools

import jax
from flax import linen as nn
from jax import Array, lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _plain(x: Array, kernel: Array, strides, padding, dilation=(1, 1)) -> Array:
  return lax.conv_general_dilated(x, kernel, strides, padding, lhs_dilation=dilation, dimension_numbers=_DIMENSIONS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_cpu(x, kernel, strides, padding):
  return _plain(x, kernel, strides, padding)


def _conv_forward(x, kernel, strides, padding):
  return _plain(x, kernel, strides, padding), (x, kernel)


def _conv_backward(strides, padding, residuals, cotangent):
  x, kernel = residuals
  flipped = kernel[::-1, ::-1].swapaxes(2, 3)
  reach = []
  for axis in (0, 1):
    size, before = kernel.shape[axis], padding[axis][0]
    dilated = (cotangent.shape[1 + axis] - 1) * strides[axis] + 1
    left = size - 1 - before
    reach.append((left, x.shape[1 + axis] - (dilated + left - size + 1)))
  grad_x = _plain(cotangent, flipped, (1, 1), tuple(reach), dilation=strides)
  _, pull_kernel = jax.vjp(lambda k: _plain(x, k, strides, padding), kernel)
  return grad_x, pull_kernel(cotangent)[0]


_conv_cpu.defvjp(_conv_forward, _conv_backward)


def conv2d(x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[tuple[int, int], ...]) -> Array:
  """Two-dimensional convolution: x [batch, h, w, c_in], kernel [kh, kw, c_in, c_out] -> [batch, h', w', c_out].

  `padding` is (before, after) for the height and for the width.
  """
  if jax.default_backend() != "cpu":
    return _plain(x, kernel, strides, padding)
  return _conv_cpu(x, kernel, strides, padding)


def _for_flax(
  lhs, rhs, window_strides, padding, *, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision
):
  """`conv2d` in the signature that `nn.Conv` calls; the models here use none of the options it leaves out."""
  plain = (1,) * len(window_strides)
  if tuple(lhs_dilation) != plain or tuple(rhs_dilation) != plain or feature_group_count != 1 or precision is not None:
    raise ValueError("Conv of lrat_jax.models takes no dilation, feature groups or precision.")
  return conv2d(lhs, rhs, tuple(window_strides), tuple(padding))


# He et al. 2015, by the outputs' fan, as the PyTorch definitions of these networks have it.
Conv = functools.partial(
  nn.Conv,
  use_bias=False,
  kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
  conv_general_dilated=_for_flax,
)
