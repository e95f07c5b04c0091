"""Options of a training run, and the recipes that fill in what is not given."""

from dataclasses import asdict, dataclass

from qinco.config import MAX_INTEGER, PRECISIONS, ModelConfig, check_fields, documented, option, require_choice
from qinco.errors import ConfigError

OPTIMIZERS = ("adamw", "adam", "muon")
SCHEDULES = ("cosine", "plateau", "cooldown")
RECIPES = ("default", "paper")
EARLIER = {"shrinks": False, "mixing": 0.0}  # what runs did before they had these options


@documented
@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained."""

    epochs: int | None = option(60, key="epochs", help="epochs, ramp included", minimum=0)
    minutes: float | None = option(None, key="minutes", help="instead of epochs: minutes that all of it may take, to "
                                   "which epochs, batch and lr are fitted", above=0)  # fmt: skip
    epoch_size: int = option(10_000_000, key="ds.loop", help="training vectors per epoch, at most")
    batch_size: int | None = option(None, key="batch", help="vectors per step; null: fitted to the run, 1024 or less")
    grad_accumulate: int = option(1, key="grad_accumulate", help="batches per optimizer step")
    num_valid: int | None = option(
        None,
        key="ds.valset",
        help="vectors for validation; if not given a fortieth, or 1,000 where these are at most a tenth",
    )
    rows_shuffled: bool = option(False, help="the rows are in random order, so the last are for validation, as in the "
                                 "papers; else some of all parts")  # fmt: skip
    optimizer: str = option(
        "muon", key="optimizer", help="optimizer; muon: Muon for matrices, AdamW for codebooks", choices=OPTIMIZERS
    )
    lr: float | None = option(None, key="lr", help="learning rate; null: fitted to the number of steps", above=0)
    weight_decay: float = option(0.1, key="wd", help="weight decay", minimum=0)
    grad_clip: float | None = option(0.1, key="grad_clip", help="clip gradients to this value; null: never", above=0)
    schedule: str = option("cosine", key="scheduler.name", help="learning rate schedule", choices=SCHEDULES,
                           spellings={"reduce_lr_plateau": "plateau"})  # fmt: skip
    ramp_epochs: float = option(3, key="scheduler.ramp_epochs", help="ramp, at most a tenth of the run", minimum=0)
    lr_min_factor: float = option(1e-3, key="scheduler.lr_min_fact", help="cosine: final learning rate as a fraction "
                                  "of lr", minimum=0, maximum=1)  # fmt: skip
    stop_patience: int = option(10, key="scheduler.stop_patience", help="plateau: epochs without gain before the end")
    least_gain: float = option(0.02, help="cooldown: relative gain of the last doubling of the run, below which it "
                               "ends; with epochs or minutes only if it overfits", minimum=0, maximum=1)  # fmt: skip
    reduce_factor: float = option(0.1, key="scheduler.reduce_fact", help="plateau: factor on the learning rate",
                                  minimum=0, maximum=1)  # fmt: skip
    patience: int = option(10, key="scheduler.patience", help="plateau: epochs without gain before a reduction")
    threshold: float = option(1e-4, key="scheduler.threshold_frac", help="plateau: least relative gain", minimum=0)
    exact_start: bool = option(True, help="start exactly at the residual quantizer; else as the paper's code does")
    shrinks: bool = option(True, help="shorten codewords of the start as far as few vectors overstate them")
    codebook_noise: float = option(0.0, key="codebook_noise_init", help="noise on the first codebooks, in standard "
                                   "deviations", minimum=0)  # fmt: skip
    redraw: str = option("split", help="put unused codewords beside a frequent one, or around the step's targets",
                         choices=("split", "targets"))  # fmt: skip
    range_scaling: bool = option(False, help="normalize by the range (QINCo1) instead of the standard deviation")
    narrow_beam: bool = option(
        True, help="encode training batches with at most C=4 B=2, and C=16 B=4 once the rate has halved"
    )
    mixing: float | None = option(None, key="mixing", help="move training vectors by up to this share of the way to "
                                  "near ones; null: 1 for few vectors, 0 for many", minimum=0, maximum=1)  # fmt: skip
    precision: str = option("auto", key="precision", help=f"arithmetic: {', '.join(PRECISIONS)}", choices=PRECISIONS)
    seed: int = option(0, key="seed", help="seed of all random choices", minimum=0, maximum=MAX_INTEGER)

    def __post_init__(self):
        check_fields(self)
        if self.epochs is not None and self.minutes is not None:
            raise ConfigError(f"epochs={self.epochs} and minutes={self.minutes:g} exclude each other: give one of them")

    @staticmethod
    def from_recipe(recipe: str, model: ModelConfig, **given) -> "TrainOptions":
        """Options of a recipe, with the fields `given` in place of its own.

        The recipe is "default" or "paper": QINCo's for a model without codeword skip, QINCo2's for others. The default
        recipe without epochs, minutes and schedule trains until it pays no more.
        """
        require_choice("recipe", recipe, RECIPES)
        fields = {}
        if recipe == "paper":
            fields = {"exact_start": False, "codebook_noise": 0.1, "redraw": "targets", "narrow_beam": False}
            fields |= {"optimizer": "adamw", "lr": 8e-4 if model.codeword_skip else 1e-4}
            fields |= EARLIER | {"rows_shuffled": True}
        if recipe == "paper" and not model.codeword_skip:
            fields |= {"optimizer": "adam", "weight_decay": 0.0, "grad_clip": None, "schedule": "plateau",
                       "range_scaling": True, "stop_patience": 20}  # fmt: skip
        given = {name: value for name, value in given.items() if name != "epochs" or value is not None}
        is_fitted = recipe == "default" and "schedule" not in given
        if "epochs" not in given and (is_fitted or given.get("minutes") is not None):
            fields |= {"epochs": None} | ({"schedule": "cooldown"} if is_fitted else {})
        return TrainOptions(**(fields | given))

    def to_dict(self) -> dict:
        return asdict(self)
