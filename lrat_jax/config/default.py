"""The complete default configuration, and the presets that go together with each data set.

Plain data only: everything is built from it in code. The files in `configs/` change a few fields of `default(arg)`, and
the command line changes more (`--config.train.epochs=5`). Lengths in the image range (`epsilon`, `step_size`) are text,
so that "8/255" stays what it was given as; shares are of the whole training, in [0, 1]. Where an attack, a model, a
weighting or a data set is named, "package.module:function" names one of the user's own (examples/custom_config.py).

The default of a field that is added leaves runs as they were and is alike in all presets: workdirs from before it take
it (`earlier.completed`).
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from lrat_jax.config.suites import DEFAULT as DEFAULT_SUITE
from lrat_jax.config.suites import NORMS, SUITES, iterated, kinds

# `train.variants`: every attack makes a variant of each image, or one attack that is drawn for the batch.
ALL, SAMPLED = "all", "sampled"

SCHEDULES = ("constant", "piecewise", "cosine", "one_cycle")
OPTIMIZERS = ("sgd", "adamw")
# `optimizer.decay`: weight decay on every parameter, or on kernels and matrices alone.
DECAYS = ("all", "kernels")
# `model.batch_norm`: statistics of the whole batch, or of each device's share of it.
SYNCHRONISED, LOCAL = "synchronised", "local"
# `eval.checkpoint`: of a run, the one with the highest robust accuracy in validation, or the newest.
CHECKPOINTS = ("best", "last")
# `train.init_head`: whether the last layer comes from `train.init_from` too.
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
    data_dir="",  # where TFDS keeps its data sets; empty is TFDS's own default
    corruptions="",  # CIFAR-10-C's files or the like, which the suite's corruptions are read from; empty computes them
    batch_size=batch_size,  # of all devices and hosts together
    loading="auto",  # auto | memory | stream: images are held in memory, or read for each batch; auto says which
    workers=0,  # threads that read and decode images; 0 is one for each core, up to 16
    image_size=image_size,  # pictures become squares of so many pixels: resized, centre cropped; 0 is off
    random_resized_crop=random_resized_crop,  # training crops: at least this share of a picture, as 0.08; 0 is off
    placement="auto",  # auto | device | host: where training images wait; auto is the device if they fit in a quarter
    validation_size=validation_size,  # images held out of the training split
    train_size=0,  # trains on so many of the rest, the same for every seed; 0 is all
    extra=dict(
      source="",  # npz:PATH, or npz:PART*.npz: images to train on besides, "image" and "label"; empty is none
      fraction=0.7,  # their share of every batch
    ),
    crop_padding=crop_padding,  # random crops after padding by so many pixels; 0 is off
    flip=flip,  # random horizontal flips
    randaugment=dict(
      num_ops=0,  # Pillow's operations that each image goes through, drawn of 14; 0 is off
      magnitude=9,  # how strong they are, 0 to 30
    ),
    idbh="none",  # none | cifar10_weak | cifar10_strong | svhn: shift, colour or shape, erasing; without crop_padding
    cutout=0,  # a black square of that side in pixels, anywhere; 0 is off
    mixup=0.0,  # images as means of two, with shares from Beta(alpha, alpha): alpha; 0 is off
    cutmix=0.0,  # a box of another image in each, of a size from Beta(alpha, alpha): alpha; 0 is off. Both: either
  )


def _model(name: str, mean: tuple[float, ...], std: tuple[float, ...]):
  return dict(
    name=name,  # cnn | resnet18 | preact_resnet18, each _WIDTH too | wide_resnet_DEPTH_WIDTH | others of models.NAMES
    activation="auto",  # auto | relu | silu | gelu | gelu_tanh; auto is the network's own
    dtype="auto",  # auto | float32 | bfloat16: in training; auto: bfloat16 on accelerators. Evaluation is in float32
    mean=mean,  # of the training images, for each channel or one for all: subtracted inside the model
    std=std,  # their standard deviations: divided by inside the model
    preprocessing="mean_std",  # mean_std | none | per_image | minus_one_to_one: by mean and std, or without them
    remat=False,  # whether a backward pass computes each block's inside once more: less memory, a third more work
    batch_norm=SYNCHRONISED,  # synchronised | local: statistics of the whole batch, or of each device's share of it
  )


def _optimizer(learning_rate: float, schedule: str, weight_decay: float = 5e-4):
  return dict(
    name="sgd",  # sgd | adamw
    learning_rate=learning_rate,  # the peak
    momentum=0.9,  # SGD's, AdamW's first
    second_momentum=0.999,  # AdamW's second
    nesterov=False,  # whether the momentum is Nesterov's
    weight_decay=weight_decay,  # that many times the weights: sgd adds it to the gradient, adamw to the step
    decay="all",  # all | kernels: what decays; kernels leaves out biases, norms, tokens and the like
    clip_norm=0.0,  # gradients whose global norm is longer are scaled to it; 0 is off
    schedule=schedule,  # constant | piecewise | cosine | one_cycle
    warmup=0.3 if schedule == "one_cycle" else 0.0,  # cosine, one_cycle: share of the steps before the peak
    boundary_fractions=(0.5, 0.75),  # piecewise: shares of the steps after which the rate falls
    decay_rate=0.1,  # piecewise: by how much it falls there
  )


def _budget(
  linf: tuple[str, str], l2: tuple[str, str], l1: tuple[str, str], *, num_steps: int, spatial: tuple[float, float]
):
  """Radius and step size by norm, the steps of training attacks, and degrees and pixels of movements.

  L1's step sizes were chosen on validation images of networks trained in L2: PGD leaves what as many steps of APGD do.
  """
  return dict(linf=linf, l2=l2, l1=l1, num_steps=num_steps, spatial=spatial)


# Before the name of a suite in the config's argument.
_SUITE = "suite="
# What "union" stands for among the training attacks there: a variant in each of three norms.
UNION = ("pgd", "pgd_l2", "pgd_l1")

# What goes together. Each names its data, model, optimiser, epochs, epsilon ramp and attack budget.
PRESETS: dict[str, dict[str, Any]] = {
  "digits": dict(
    data=_data("digits", 197, batch_size=64),
    model=_model("cnn", (0.305,), (0.376,)),
    optimizer=_optimizer(0.1, "one_cycle"),
    epochs=40,
    # by validation: over half of the steps APGD-CE + APGD-T leave 64 % and PGD-10 84, over a quarter 71 and 87
    epsilon_ramp_fraction=0.25,
    budget=_budget(("0.2", "0.05"), ("0.6", "0.15"), ("1.25", "0.4375"), num_steps=10, spatial=(15.0, 0.5)),
  ),
  "fashion_mnist": dict(
    data=_data("tfds:fashion_mnist", 2000),
    model=_model("cnn", (0.286,), (0.353,)),
    optimizer=_optimizer(0.1, "one_cycle"),
    epochs=10,
    epsilon_ramp_fraction=0.7,
    budget=_budget(("0.1", "0.035"), ("1.5", "0.5"), ("5", "2.5"), num_steps=5, spatial=(15.0, 1.0)),
  ),
  "cifar10": dict(
    data=_data("tfds:cifar10", 1000, crop_padding=4, flip=True),
    model=_model("resnet18", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    optimizer=_optimizer(0.1, "piecewise"),
    epochs=100,
    epsilon_ramp_fraction=0.0,
    budget=_budget(("8/255", "2/255"), ("128/255", "32/255"), ("12", "6"), num_steps=10, spatial=(30.0, 3.0)),
  ),
  "svhn": dict(
    data=_data("tfds:svhn_cropped", 1000),
    model=_model("resnet18", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    optimizer=_optimizer(0.05, "piecewise"),
    epochs=60,
    epsilon_ramp_fraction=0.1,  # from the full epsilon at once, SVHN often stays at chance
    budget=_budget(("8/255", "2/255"), ("128/255", "32/255"), ("12", "6"), num_steps=10, spatial=(30.0, 3.0)),
  ),
  "cifar100": dict(
    data=_data("tfds:cifar100", 1000, crop_padding=4, flip=True),
    model=_model("resnet18", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    optimizer=_optimizer(0.1, "piecewise"),
    epochs=100,
    epsilon_ramp_fraction=0.0,
    budget=_budget(("8/255", "2/255"), ("128/255", "32/255"), ("12", "6"), num_steps=10, spatial=(30.0, 3.0)),
  ),
  # The folder of the archive that Stanford publishes. Radii are CIFAR's, but for L1's, which grows with the side.
  "tiny_imagenet": dict(
    data=_data("images:tiny-imagenet-200", 2000, image_size=64, crop_padding=8, flip=True),
    model=_model("preact_resnet18", (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    optimizer=_optimizer(0.1, "piecewise"),
    epochs=100,
    epsilon_ramp_fraction=0.0,
    budget=_budget(("8/255", "2/255"), ("128/255", "32/255"), ("24", "12"), num_steps=10, spatial=(30.0, 6.0)),
  ),
  # Radii of Croce & Hein (arXiv:2105.12508); three steps of 2/3, as Salman et al. train (arXiv:2007.08489). Random
  # crops make it a stream.
  "imagenet": dict(
    data=_data("tfds:imagenet2012", 10_000, batch_size=256, image_size=224, random_resized_crop=0.08, flip=True),
    model=_model("imagenet_resnet50", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    optimizer=_optimizer(0.1, "cosine", 1e-4),
    epochs=90,
    epsilon_ramp_fraction=0.0,
    budget=_budget(("4/255", "8/765"), ("2", "4/3"), ("255", "170"), num_steps=3, spatial=(30.0, 24.0)),
  ),
}


def _training_attacks(budget: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """The training attacks that a config can ask for by name."""
  steps = budget["num_steps"]
  return {
    "pgd": iterated(budget, "linf", steps, name="pgd", loss="ce", random_start="uniform"),
    "cw": iterated(budget, "linf", steps, name="cw", random_start="uniform"),
    "dlr": iterated(budget, "linf", steps, name="pgd", loss="dlr", random_start="uniform"),
    "kl": iterated(budget, "linf", steps, name="pgd", loss="kl", random_start="gaussian"),
    "pgd_l2": iterated(budget, "l2", steps, name="pgd", loss="ce", random_start="uniform"),
    "pgd_l1": iterated(budget, "l1", steps, name="pgd", loss="ce", random_start="uniform"),
    "msd": _msd(budget, NORMS, steps),
    "fgsm": dict(name="fgsm", norm="linf", epsilon=budget["linf"][0], loss="ce"),
  }


def _msd(budget: dict[str, Any], norms: Iterable[str], num_steps: int) -> dict[str, Any]:
  """One attack in several norms at once."""
  return dict(
    name="msd",
    radii={norm: budget[norm][0] for norm in norms},
    step_sizes={norm: budget[norm][1] for norm in norms},
    num_steps=num_steps,
    loss="ce",
  )


def _validation_attack(budget: dict[str, Any], train_attacks: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """PGD-10 in L-infinity, or where training goes by other norms too, ten steps in all of them at once."""
  norms = {norm for entry in train_attacks.values() for _, norm in kinds(entry)}
  if norms <= {"linf"}:
    return dict(SUITES["pgd"](budget)["pgd20"], num_steps=10)
  return _msd(budget, sorted(norms), num_steps=10)


def _expanded(names: Iterable[str]) -> list[str]:
  """The names of training attacks with those that "union" stands for."""
  return [attack for name in names for attack in (UNION if name == "union" else (name,))]


def _parse(arg: str | None) -> tuple[str, list[str], str]:
  """The preset, the training attacks and the suite that a config's argument names."""
  preset_name, *more = (arg or "digits").split(",")
  attack_names = [name for name in more if not name.startswith(_SUITE)]
  suite_names = [name.removeprefix(_SUITE) for name in more if name.startswith(_SUITE)] or [DEFAULT_SUITE]
  if preset_name not in PRESETS:
    raise ValueError(
      f"data set {preset_name!r} is unknown in the config's argument {arg!r}; choose from {sorted(PRESETS)}."
    )
  attacks = _training_attacks(PRESETS[preset_name]["budget"])
  for name in attack_names:
    if name not in (*attacks, "union"):
      choices = sorted((*attacks, "union"))
      raise ValueError(f"training attack {name!r} is unknown in the config's argument {arg!r}; choose from {choices}.")
  expanded = _expanded(attack_names)
  if len(set(expanded)) < len(expanded):
    raise ValueError(f"the config's argument {arg!r} names a training attack twice.")
  if len(suite_names) > 1 or suite_names[0] not in SUITES:
    raise ValueError(
      f"suite {','.join(suite_names)!r} is unknown in the config's argument {arg!r}; choose one from {sorted(SUITES)}."
    )
  return preset_name, attack_names, suite_names[0]


def variant_names(config: ConfigDict) -> list[str]:
  """What the variants of a pair are called: as the attacks that make them, or "sampled"."""
  return [SAMPLED] if config.train.variants == SAMPLED else list(config.train_attacks)


def default(method: str, arg: str | None = None, attack: str = "pgd") -> ConfigDict:
  """The full configuration of plain adversarial training for a data set.

  Args:
    method: the first part of the run's name; the file in `configs/` that calls this makes it true.
    arg: what stands behind the colon of `--config=configs/NAME.py:ARG`: a preset, then the training attacks of each
      pair, and the suite that evaluates, separated by commas: "cifar10", "digits,pgd,cw", "digits,suite=unforeseen".
      Empty is "digits"; without attacks it is `attack`, without a suite "apgd".
    attack: the method's own training attack, or "union": one in each of three norms.

  Returns:
    A type-safe ConfigDict whose keys are fixed.

  Raises:
    ValueError: an unknown preset, attack or suite (with the choices), or one named twice.
  """
  preset_name, attack_names, suite_name = _parse(arg)
  preset = PRESETS[preset_name]
  attacks = _training_attacks(preset["budget"])
  attacks = {name: attacks[name] for name in _expanded(attack_names or [attack])}
  return ConfigDict(
    dict(
      name="_".join([method, preset_name, *attack_names]),  # of the run, and with the seed of its workdir
      seed=0,  # of all that is random in the run
      mesh=dict(
        model_devices=1,  # so many share the large arrays of the state (FSDP), and results stay; 1: each device has all
        shard_above=2**16,  # arrays of so many entries or fewer are not shared
      ),
      compilation_cache="auto",  # auto | off | DIR: where compiled programs are kept; auto is beside the workdir
      data=preset["data"],
      model=preset["model"],
      optimizer=preset["optimizer"],
      train=dict(
        epochs=preset["epochs"],  # passes over the training images
        # share of the steps over which epsilon and step size grow from 0
        epsilon_ramp_fraction=preset["epsilon_ramp_fraction"],
        variants=ALL,  # all | sampled: of each image by every attack, or by one drawn for the batch by its robust error
        attack_batch_norm="eval",  # eval | train: which batch-norm statistics the training attacks see
        microbatches=1,  # parts in which a device goes through its share of a batch: less memory, batch norm by part
        steps_per_call=1,  # steps that run on the devices before Python has its turn; rows, saves and epochs end a call
        label_smoothing=0.0,  # share of each label that is spread over all classes; attacks do not see it; 0 is off
        ema_decay=0.0,  # of the weights that are validated and evaluated; 0 is off
        init_from="",  # fine-tuning: weights to begin with, of a workdir, .pt, .safetensors or directory; empty is none
        init_head="loaded",  # loaded | new: whether the last layer is from there too, or begins anew
        log_every_steps=20,  # steps between two rows of metrics
        checkpoint_every_steps=500,  # steps between checkpoints; the best epoch since the last is saved with the next
        num_logged_examples=2048,  # training images whose weights are kept for every epoch
      ),
      train_attacks=attacks,  # one variant in the pair for each
      objective="ce",  # ce | trades | mart: the loss of each member of a pair
      beta=6.0,  # trades, mart: what the divergence from the natural prediction weighs
      logit_pairing=dict(
        weight=0.0,  # of the divergence of a pair's variants from one of them, where that is classified; 0 is off
        attack="pgd",  # the training attack of that one
      ),
      local_weights=dict(
        kind="none",  # none | lrat | max | softmax
        begin_fraction=0.5,  # share of the epochs that train as plain adversarial training first
        total=1.0,  # C, a pair's weight
        minimum_natural=0.1,  # omega_min, the least weight of a natural image
        slope=5.0,  # of the curve h, or of softmax; h's slope and bias were chosen by validation, results/README.md
        bias=-1.0,  # the vulnerability at which h is 1/2
      ),
      global_weights=dict(
        kind="none",  # none | gairat | mail
        begin_fraction=0.5,  # share of the epochs in which all pairs count alike first
        gairat=dict(slope=5.0, bias=0.2),  # the paper's own constants, in the terms of reweighting.increasing_weight
        mail=dict(slope=5.0, bias=0.5),  # the paper's own, in the same terms
      ),
      awp=dict(
        gamma=0.0,  # adversarial weight perturbation of that relative length; 0 is off
        begin_fraction=0.0,  # share of the epochs without it first
      ),
      validation_attack=_validation_attack(preset["budget"], attacks),  # chooses the best checkpoint
      eval=dict(
        batch_size=256,  # images evaluated at a time, on all devices and hosts together
        checkpoint="best",  # best | last: of a run, by validation or the newest
        split="test",  # test | validation | train: what is evaluated; choose on validation, report on test, once
        num_images=0,  # evaluates the first so many images of the split; 0 is all
        image_list="",  # a file that names the test images to evaluate, a file name or an index a line; empty is all
        num_sanity_examples=64,  # images for the checks of whether a robust accuracy is too high; 0 is off
        attack_dtype="float32",  # float32 | bfloat16: what the network computes in under attack; verdicts are float32's
        save_images=False,  # whether every adversarial is written, a file for each attack
        robustbench=False,  # whether RobustBench's model JSON is written; needs the suite "autoattack"
        references="",  # a JSON file {attack: best known accuracy}, to be shares of; empty is none
        suite=SUITES[suite_name](preset["budget"]),  # the attacks that evaluate, by name
      ),
    )
  )
