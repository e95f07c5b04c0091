"""The settings of one training run, and the recipes that fill in what a run does not give."""

import dataclasses
from dataclasses import dataclass

from qinco.config import PRECISIONS, ModelConfig, require_bool, require_int
from qinco.errors import ConfigError

OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "plateau")
RECIPES = ("default", "paper")


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained.

    epochs:           N, exactly as many are run (a plateau schedule may stop before)
    epoch_size:       vectors in an epoch at most (`ds.loop`); a longer training set is walked through in turns
    batch_size:       vectors in a step, all processes together; fitted to the length of the run if None
    grad_accumulate:  batches in an optimizer step
    num_valid:        vectors at the end of the training set that are kept for validation; min(10,000, a tenth) if None
    optimizer:        "adamw" or "adam"
    lr:               the highest learning rate; fitted to the number of steps if None
    weight_decay:     of AdamW, on everything
    grad_clip:        largest absolute value of a gradient's element; None for none
    schedule:         "cosine": a linear ramp, then a quarter cosine down to lr · lr_min_factor;
                      "plateau": lr · reduce_factor after `patience` epochs without gain
    ramp_epochs:      length of the ramp, a tenth of all steps at most
    stop_patience:    plateau: epochs without gain after which training ends
    threshold:        plateau: the relative gain that counts
    exact_start:      start at the residual quantizer exactly; otherwise as the paper's code does
    codebook_noise:   Gaussian noise added to the first codebooks, in units of their standard deviation
    redraw:           what becomes of codewords that an epoch did not use: "split" puts them beside a frequent codeword,
                      "targets" draws them around the step's targets
    range_scaling:    normalise by the training set's range (QINCo1) instead of its standard deviation
    narrow_beam:      encode training batches with a beam of C=16 B=4 at most instead of evaluation's
    precision:        "float32", "bf16", or "auto": bf16 products where the processor multiplies it fast
    seed:             of every random choice
    """

    epochs: int = 60
    epoch_size: int = 10_000_000
    batch_size: int | None = None
    grad_accumulate: int = 1
    num_valid: int | None = None
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float = 0.1
    grad_clip: float | None = 0.1
    schedule: str = "cosine"
    ramp_epochs: float = 3
    lr_min_factor: float = 1e-3
    stop_patience: int = 10
    reduce_factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    exact_start: bool = True
    codebook_noise: float = 0.0
    redraw: str = "split"
    range_scaling: bool = False
    narrow_beam: bool = True
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self):
        require_int("epochs", self.epochs, 0)
        for name in ("epoch_size", "grad_accumulate", "stop_patience", "patience"):
            require_int(name, getattr(self, name))
        require_int("seed", self.seed, 0, 2**63 - 1)
        for name, label in (("num_valid", "num_valid (ds.valset)"), ("batch_size", "batch_size (batch)")):
            if getattr(self, name) is not None:
                require_int(label, getattr(self, name))
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS),
                              ("redraw", ("split", "targets"))):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("exact_start", "range_scaling", "narrow_beam"):
            require_bool(name, getattr(self, name))
        for name in ("lr", "grad_clip"):
            if getattr(self, name) is not None and not 0 < self._number(name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "ramp_epochs", "codebook_noise", "threshold"):
            if not 0 <= self._number(name) < float("inf"):
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("lr_min_factor", "reduce_factor"):
            if not 0 <= self._number(name) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, not {getattr(self, name)}")

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name} must be a number, not {value!r}")
        return value

    @staticmethod
    def from_recipe(recipe: str, model: ModelConfig, **given) -> "TrainOptions":
        """The options of `recipe` ("default" or "paper") for a model, with the fields that are given instead.

        The paper's recipe of a model without codeword skip is QINCo's, of others QINCo2's.
        """
        if recipe not in RECIPES:
            raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, not {recipe!r}")
        fields = {}
        if recipe == "paper":
            fields = {
                "exact_start": False,
                "codebook_noise": 0.1,
                "redraw": "targets",
                "narrow_beam": False,
                "lr": 8e-4,
            }
            if not model.codeword_skip:
                fields |= {"optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0, "grad_clip": None,
                           "schedule": "plateau", "range_scaling": True, "stop_patience": 20}  # fmt: skip
        return TrainOptions(**(fields | given))

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
