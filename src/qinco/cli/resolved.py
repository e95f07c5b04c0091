"""Until the tasks have moved to `qinco.cli.tasks`."""

from qinco.cli import defaults
from qinco.cli.tasks import TASKS
from qinco.config import EncodeOptions, ModelConfig, field_keys
from qinco.training.options import TrainOptions

SIZES = {key: field for field, key in field_keys(ModelConfig).items()}
RULE = {key: field for field, key in field_keys(EncodeOptions).items() if key in "ACB"}
TRAINING = {key: field for field, key in field_keys(TrainOptions).items()}
SCHEDULES = {"cosine": "cosine", "plateau": "plateau"}


def chosen_preset(task, given):
    return defaults.chosen_preset(TASKS[task], given)
