"""Options of a training run, and the recipes that fill in what is not given."""

from dataclasses import asdict, dataclass

from qinco.config import PRECISIONS, ModelConfig, check_fields, option
from qinco.errors import ConfigError

OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "plateau")
RECIPES = ("default", "paper")


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained.

    Attributes:
        epochs: Number of epochs, ramp included; a plateau schedule may stop before.
        epoch_size: Vectors per epoch at most; a longer training set is walked through in turns.
        batch_size: Vectors per step, all processes together; fitted to the length of the run if None.
        grad_accumulate: Batches per optimizer step.
        num_valid: Vectors at the end of the training set kept for validation; min(10,000, a tenth) if None.
        optimizer: "adamw" or "adam".
        lr: Highest learning rate; fitted to the number of steps if None.
        weight_decay: Of AdamW, on all parameters.
        grad_clip: Largest absolute value of a gradient's element; None for no clipping.
        schedule: "cosine" (down to lr * lr_min_factor after a ramp) or "plateau" (lr drops after epochs without gain).
        ramp_epochs: Length of the ramp, at most a tenth of all steps.
        lr_min_factor: Final learning rate of "cosine" as a fraction of lr.
        stop_patience: "plateau": epochs without gain after which training ends.
        reduce_factor: "plateau": factor on the learning rate.
        patience: "plateau": epochs without gain before the rate is reduced.
        threshold: "plateau": relative gain that counts.
        exact_start: Start exactly at the residual quantizer; otherwise as in the paper's code.
        codebook_noise: Gaussian noise on the first codebooks, in units of their standard deviation.
        redraw: Put unused codewords beside a frequent one ("split"), or around the step's targets ("targets").
        range_scaling: Normalize by the range of the training set (QINCo1) instead of its standard deviation.
        narrow_beam: Encode training batches with at most C=16 B=4 instead of the options of evaluation.
        precision: "float32", "bf16", or "auto": bf16 products where the processor is fast at them.
        seed: Of every random choice.
    """

    epochs: int = option(60, key="epochs", help="epochs, ramp included", minimum=0)
    epoch_size: int = option(10_000_000, key="ds.loop", help="training vectors per epoch, at most")
    batch_size: int | None = option(None, key="batch", help="vectors per step; null: fitted to the run, 1024 or less")
    grad_accumulate: int = option(1, key="grad_accumulate", help="batches per optimizer step")
    num_valid: int | None = option(None, key="ds.valset", help="last vectors, for validation; at most a tenth if null")
    optimizer: str = option("adamw", key="optimizer", help="optimizer", choices=OPTIMIZERS)
    lr: float | None = option(None, key="lr", help="learning rate; null: fitted to the number of steps", above=0)
    weight_decay: float = option(0.1, key="wd", help="weight decay", minimum=0)
    grad_clip: float | None = option(0.1, key="grad_clip", help="clip gradients to this value; null: never", above=0)
    schedule: str = option("cosine", key="scheduler.name", help="learning rate schedule", choices=SCHEDULES,
                           spellings={"reduce_lr_plateau": "plateau"})  # fmt: skip
    ramp_epochs: float = option(3, key="scheduler.ramp_epochs", help="ramp, at most a tenth of the run", minimum=0)
    lr_min_factor: float = option(1e-3, key="scheduler.lr_min_fact", help="cosine: final learning rate as a fraction "
                                  "of lr", minimum=0, maximum=1)  # fmt: skip
    stop_patience: int = option(10, key="scheduler.stop_patience", help="plateau: epochs without gain before the end")
    reduce_factor: float = option(0.1, key="scheduler.reduce_fact", help="plateau: factor on the learning rate",
                                  minimum=0, maximum=1)  # fmt: skip
    patience: int = option(10, key="scheduler.patience", help="plateau: epochs without gain before a reduction")
    threshold: float = option(1e-4, key="scheduler.threshold_frac", help="plateau: least relative gain", minimum=0)
    exact_start: bool = option(True)
    codebook_noise: float = option(0.0, key="codebook_noise_init", help="noise on the first codebooks, in standard "
                                   "deviations", minimum=0)  # fmt: skip
    redraw: str = option("split", choices=("split", "targets"))
    range_scaling: bool = option(False)
    narrow_beam: bool = option(True)
    precision: str = option("auto", key="precision", help=f"arithmetic: {', '.join(PRECISIONS)}", choices=PRECISIONS)
    seed: int = option(0, key="seed", help="seed of all random choices", minimum=0, maximum=2**63 - 1)

    def __post_init__(self):
        check_fields(self)

    @staticmethod
    def from_recipe(recipe: str, model: ModelConfig, **given) -> "TrainOptions":
        """Options of a recipe, with the fields `given` in place of its own.

        The recipe is "default" or "paper": QINCo's for a model without codeword skip, QINCo2's for others.
        """
        if recipe not in RECIPES:
            raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, not {recipe!r}")
        fields = {}
        if recipe == "paper":
            fields = {"exact_start": False, "codebook_noise": 0.1, "redraw": "targets", "narrow_beam": False}
            fields["lr"] = 8e-4 if model.codeword_skip else 1e-4
        if recipe == "paper" and not model.codeword_skip:
            fields |= {"optimizer": "adam", "weight_decay": 0.0, "grad_clip": None, "schedule": "plateau",
                       "range_scaling": True, "stop_patience": 20}  # fmt: skip
        return TrainOptions(**(fields | given))

    def to_dict(self) -> dict:
        return asdict(self)
