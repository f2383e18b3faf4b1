"""The complete default configuration, and the preset of each data set.

A configuration is plain data; code builds everything else from it. The files in `configs/` change a few fields of
`default`, and the command line can change more (`--config.train.epochs=5`). Lengths in the image range (`epsilon`,
`step_size`) are text, so that "8/255" is stored as it was given; shares are of the whole training, in [0, 1]. Wherever
an attack, a model, a weighting or a data set is named, "package.module:function" names a user-defined one
(examples/custom_config.py).

The default of a new field must leave existing runs unchanged and be the same in all presets, because workdirs that are
older than the field take its default (`earlier.completed`).
"""

from typing import Any

from ml_collections import ConfigDict

from lrat_jax.config import argument
from lrat_jax.config.budgets import budget
from lrat_jax.config.train_attacks import validation_attack

# `train.variants`: each image has a variant by every attack, or only by one attack that is drawn for the batch.
ALL, SAMPLED = "all", "sampled"

SCHEDULES = ("constant", "piecewise", "cosine", "one_cycle")
OPTIMIZERS = ("sgd", "adamw")
# `optimizer.decay`: weight decay on every parameter, or only on kernels and matrices.
DECAYS = ("all", "kernels")
# `model.batch_norm`: statistics of the whole batch, or of each device's share of it.
SYNCHRONISED, LOCAL = "synchronised", "local"
# `eval.checkpoint`: the checkpoint of a run with the highest robust accuracy in validation, or the newest.
CHECKPOINTS = ("best", "last")
# `train.init_head`: whether the last layer is also loaded from `train.init_from`.
HEADS = ("loaded", "new")


def _data(
  source: str,
  validation_size: int,
  *,
  batch_size: int = 128,
  image_size: int = 0,
  random_resized_crop: float = 0.0,
  crop_padding: int = 0,
  flip: bool = False,
):
  return dict(
    source=source,  # digits | tfds:NAME | npz:PATH | npy:DIR | idx:DIR | images:DIR | package.module:function
    data_dir="",  # directory of the TFDS data sets; empty is TFDS's own default
    corruptions="",  # folder of CIFAR-10-C's files or the like, from which corruptions are read; empty computes them
    batch_size=batch_size,  # training images per batch, over all devices and hosts
    loading="auto",  # auto | memory | stream: hold images in memory or read them for each batch; auto prints its choice
    workers=0,  # threads that read and decode images; 0 is one per core, up to 16
    image_size=image_size,  # side in pixels of the squares to which pictures are resized and centre-cropped; 0 is off
    random_resized_crop=random_resized_crop,  # smallest share of a picture in a training crop, such as 0.08; 0 is off
    placement="auto",  # auto | device | host: where training images are; auto: device if they fit in 1/4 of its memory
    validation_size=validation_size,  # images held out of the training split
    train_size=0,  # number of the remaining images to train on, the same ones for every seed; 0 is all
    extra=dict(
      source="",  # npz:PATH, or npz:PART*.npz: additional training images, arrays "image" and "label"; empty is none
      fraction=0.7,  # their share of every batch
    ),
    crop_padding=crop_padding,  # random crops after padding by this many pixels; 0 is off
    flip=flip,  # random horizontal flips
    randaugment=dict(
      num_ops=0,  # number of operations applied to each image, drawn from 14 of Pillow's; 0 is off
      magnitude=9,  # strength of the operations, 0 to 30
    ),
    idbh="none",  # none | cifar10_weak | cifar10_strong | svhn: shift, colour or shape, erasing; needs crop_padding=0
    cutout=0,  # side in pixels of a black square at a random position; 0 is off
    mixup=0.0,  # alpha of MixUp: weighted means of two images, with shares from Beta(alpha, alpha); 0 is off
    cutmix=0.0,  # alpha of CutMix: a box of another image, sized by Beta(alpha, alpha); 0 is off. With mixup: either
  )


def _model(name: str, mean: tuple[float, ...], std: tuple[float, ...]):
  return dict(
    name=name,  # cnn | resnet18 | preact_resnet18, also with _WIDTH | wide_resnet_DEPTH_WIDTH | others of models.NAMES
    activation="auto",  # auto | relu | silu | gelu | gelu_tanh; auto is the network's own
    dtype="auto",  # auto | float32 | bfloat16: for training; auto: bfloat16 on accelerators. Evaluation uses float32
    mean=mean,  # mean of the training images, per channel or one for all; the model subtracts it
    std=std,  # standard deviation of the training images, per channel or one for all; the model divides by it
    preprocessing="mean_std",  # mean_std | none | per_image | minus_one_to_one: scaling; mean_std alone uses mean, std
    remat=False,  # whether the backward pass recomputes the inside of each block: less memory, a third more computation
    batch_norm=SYNCHRONISED,  # synchronised | local: statistics of the whole batch, or of each device's share of it
  )


def _optimizer(learning_rate: float, schedule: str, weight_decay: float = 5e-4):
  return dict(
    name="sgd",  # sgd | adamw
    learning_rate=learning_rate,  # peak learning rate
    momentum=0.9,  # momentum of SGD, beta 1 of AdamW
    second_momentum=0.999,  # beta 2 of AdamW
    nesterov=False,  # whether to use Nesterov momentum
    weight_decay=weight_decay,  # factor of the weights; sgd adds the product to the gradient, adamw to the step
    decay="all",  # all | kernels: parameters with weight decay; kernels leaves out biases, norms, tokens and the like
    clip_norm=0.0,  # largest global norm of the gradient; a longer gradient is scaled to it; 0 is off
    schedule=schedule,  # constant | piecewise | cosine | one_cycle
    warmup=0.3 if schedule == "one_cycle" else 0.0,  # cosine, one_cycle: share of the steps before the peak
    boundary_fractions=(0.5, 0.75),  # piecewise: shares of the steps after which the learning rate falls
    decay_rate=0.1,  # piecewise: factor by which the learning rate is multiplied there
  )


# The presets. Each has its data, model, optimiser, epochs, epsilon ramp and attack budget.
PRESETS: dict[str, dict[str, Any]] = {
  "digits": dict(
    data=_data("digits", 197, batch_size=64),
    model=_model("cnn", (0.305,), (0.376,)),
    optimizer=_optimizer(0.1, "one_cycle"),
    epochs=40,
    # selected by validation: with a ramp over half of the steps, robust accuracy under APGD-CE + APGD-T is 64 % and
    # under PGD-10 84 %; over a quarter of the steps, 71 % and 87 %
    epsilon_ramp_fraction=0.25,
    budget=budget(("0.2", "0.05"), ("0.6", "0.15"), ("1.25", "0.4375"), num_steps=10, spatial=(15.0, 0.5)),
  ),
  "fashion_mnist": dict(
    data=_data("tfds:fashion_mnist", 2000),
    model=_model("cnn", (0.286,), (0.353,)),
    optimizer=_optimizer(0.1, "one_cycle"),
    epochs=10,
    epsilon_ramp_fraction=0.7,
    budget=budget(("0.1", "0.035"), ("1.5", "0.5"), ("5", "2.5"), num_steps=5, spatial=(15.0, 1.0)),
  ),
  "cifar10": dict(
    data=_data("tfds:cifar10", 1000, crop_padding=4, flip=True),
    model=_model("resnet18", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    optimizer=_optimizer(0.1, "piecewise"),
    epochs=100,
    epsilon_ramp_fraction=0.0,
    budget=budget(("8/255", "2/255"), ("128/255", "32/255"), ("12", "6"), num_steps=10, spatial=(30.0, 3.0)),
  ),
  "svhn": dict(
    data=_data("tfds:svhn_cropped", 1000),
    model=_model("resnet18", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    optimizer=_optimizer(0.05, "piecewise"),
    epochs=60,
    epsilon_ramp_fraction=0.1,  # without a ramp, training on SVHN often stays at chance
    budget=budget(("8/255", "2/255"), ("128/255", "32/255"), ("12", "6"), num_steps=10, spatial=(30.0, 3.0)),
  ),
  "cifar100": dict(
    data=_data("tfds:cifar100", 1000, crop_padding=4, flip=True),
    model=_model("resnet18", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    optimizer=_optimizer(0.1, "piecewise"),
    epochs=100,
    epsilon_ramp_fraction=0.0,
    budget=budget(("8/255", "2/255"), ("128/255", "32/255"), ("12", "6"), num_steps=10, spatial=(30.0, 3.0)),
  ),
  # The folder of the archive that Stanford publishes. Radii are CIFAR's, except L1's, which grows with the side.
  "tiny_imagenet": dict(
    data=_data("images:tiny-imagenet-200", 2000, image_size=64, crop_padding=8, flip=True),
    model=_model("preact_resnet18", (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    optimizer=_optimizer(0.1, "piecewise"),
    epochs=100,
    epsilon_ramp_fraction=0.0,
    budget=budget(("8/255", "2/255"), ("128/255", "32/255"), ("24", "12"), num_steps=10, spatial=(30.0, 6.0)),
  ),
  # Radii of Croce & Hein (arXiv:2105.12508); three steps of 2/3 of the radius, as in Salman et al. (arXiv:2007.08489).
  # Random crops require streaming.
  "imagenet": dict(
    data=_data("tfds:imagenet2012", 10_000, batch_size=256, image_size=224, random_resized_crop=0.08, flip=True),
    model=_model("imagenet_resnet50", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    optimizer=_optimizer(0.1, "cosine", 1e-4),
    epochs=90,
    epsilon_ramp_fraction=0.0,
    budget=budget(("4/255", "8/765"), ("2", "4/3"), ("255", "170"), num_steps=3, spatial=(30.0, 24.0)),
  ),
}


def variant_names(config: ConfigDict) -> list[str]:
  """The names of a pair's variants: those of the attacks that make them, or "sampled"."""
  return [SAMPLED] if config.train.variants == SAMPLED else list(config.train_attacks)


def default(method: str, arg: str | None = None, attack: str = "pgd") -> ConfigDict:
  """The full configuration of plain adversarial training for a data set.

  Args:
    method: the first part of the run's name; the caller sets the fields of the method.
    arg: the text after the colon of `--config=configs/NAME.py:ARG`: a preset, then the training attacks of each
      pair, the radii that differ from the preset's, and the suite for evaluation, separated by commas: "cifar10",
      "digits,pgd,cw", "cifar10,linf=4/255", "digits,suite=unforeseen". Empty is "digits"; the default attack is
      `attack`, the default suite "apgd". A radius holds for training, validation and the suite, and step sizes stay
      the same share of it.
    attack: the method's default training attack, or "union": one in each of three norms.

  Returns:
    A type-safe ConfigDict whose keys are fixed.

  Raises:
    ValueError: an unknown preset, attack or suite (with the choices), one named twice, or a radius that is not a
      number above 0, or of a norm in which there is no attack.
  """
  given = argument.parse(arg, PRESETS, attack)
  preset = given.preset
  return ConfigDict(
    dict(
      name="_".join([method, *given.words]),  # name of the run; with the seed, also of its workdir
      seed=0,  # seed of everything random in the run
      mesh=dict(
        model_devices=1,  # devices that share large arrays of the state (FSDP), with the same result; 1: all replicated
        shard_above=2**16,  # arrays with at most this many entries are replicated
      ),
      compilation_cache="auto",  # auto | off | DIR: where compiled programs are stored; auto is beside the workdir
      data=preset["data"],
      model=preset["model"],
      optimizer=preset["optimizer"],
      train=dict(
        epochs=preset["epochs"],  # passes over the training images
        # share of the steps over which epsilon and step size grow from 0
        epsilon_ramp_fraction=preset["epsilon_ramp_fraction"],
        variants=ALL,  # all | sampled: a variant by every attack, or by one attack drawn per batch, by its robust error
        attack_batch_norm="eval",  # eval | train: batch norm in attacks uses running averages or the batch's statistics
        microbatches=1,  # parts in which a device processes its share of a batch: less memory, batch norm per part
        steps_per_call=1,  # steps per call from Python; a call ends where a metrics row, checkpoint or epoch end is due
        label_smoothing=0.0,  # share of each label that is spread over all classes; attacks do not use it; 0 is off
        ema_decay=0.0,  # decay of the averaged weights, which are validated and evaluated; 0 is off
        init_from="",  # fine-tuning: initial weights, from a workdir, .pt, .safetensors or directory; empty is none
        init_head="loaded",  # loaded | new: whether the last layer is also loaded from init_from, or newly initialised
        log_every_steps=20,  # steps between two rows of metrics
        checkpoint_every_steps=500,  # steps between checkpoints; the best epoch since the last is saved with the next
        num_logged_examples=2048,  # number of training images whose weights are recorded in every epoch
      ),
      train_attacks=given.train_attacks,  # each makes one variant of the pair
      objective="ce",  # ce | trades | mart: the loss of each member of a pair
      beta=6.0,  # trades, mart: weight of the divergence from the natural prediction
      logit_pairing=dict(
        weight=0.0,  # weight of the divergence of a pair's variants from one of them, if classified correctly; 0 is off
        attack="pgd",  # the training attack that makes that variant
      ),
      local_weights=dict(
        kind="none",  # none | lrat | max | softmax
        begin_fraction=0.5,  # share of the epochs, at the start, that use plain adversarial training
        total=1.0,  # C, the weight of a pair
        minimum_natural=0.1,  # omega_min, the smallest weight of a natural image
        slope=5.0,  # of the curve h, or of softmax; h's slope and bias were selected by validation, results/README.md
        bias=-1.0,  # the vulnerability at which h is 1/2
      ),
      global_weights=dict(
        kind="none",  # none | gairat | mail
        begin_fraction=0.5,  # share of the epochs, at the start, with equal weights for all pairs
        gairat=dict(slope=5.0, bias=0.2),  # the paper's constants, as arguments of reweighting.increasing_weight
        mail=dict(slope=5.0, bias=0.5),  # the paper's constants, as arguments of reweighting.increasing_weight
      ),
      awp=dict(
        gamma=0.0,  # relative length of the adversarial weight perturbation; 0 is off
        begin_fraction=0.0,  # share of the epochs, at the start, without it
      ),
      validation_attack=validation_attack(given.budget, given.train_attacks),  # selects the best checkpoint
      eval=dict(
        batch_size=256,  # images evaluated at once, over all devices and hosts
        checkpoint="best",  # best | last: which checkpoint of a run: best in validation, or newest
        split="test",  # test | validation | train: split to evaluate; select on validation, report on test, once
        num_images=0,  # number of images to evaluate, from the start of the split; 0 is all
        image_list="",  # file that lists the test images to evaluate, one file name or index per line; empty is all
        num_sanity_examples=64,  # images for the sanity checks of whether a robust accuracy is too high; 0 is off
        attack_dtype="float32",  # float32 | bfloat16: dtype of the network in attacks; results are checked in float32
        save_images=False,  # whether all adversarial images are written, in one file per attack
        robustbench=False,  # whether RobustBench's model JSON is written; needs a suite with standard AutoAttack
        references="",  # JSON file {attack: best known accuracy} for the metric competitiveness; empty is none
        suite=given.suite,  # the attacks of the evaluation, by name
      ),
    )
  )
