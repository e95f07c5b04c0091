"""The preset "auto": which size of network learns most in the minutes of a run."""

import logging

import numpy as np

from qinco.codec.plan import TrainingPlan
from qinco.model.qinco import random_model
from qinco.training.budget import MEASURED_BATCHES, MEASURED_SECONDS, MEASURED_SHARE, measure
from qinco.training.loop import Training
from qinco.training.processes import Processes
from qinco.vectors.rows import as_source

_LOG = logging.getLogger(__name__)
_BATCH = MEASURED_BATCHES[-1]
# With fewer optimizer steps than this for each step of the quantizer, qinco2-XS ends at less error than qinco2-S:
# docs/log.md, "The size of the network".
_FEWEST = 200


def is_short(plan: TrainingPlan, processes: Processes, num_parts: int) -> bool:
    """Whether the minutes of a run are too few for the network of its plan: steps are timed on this processor.

    They are of random vectors, as those of the run have not been checked yet. A GPU takes as long for the smaller
    network, so that the time is always enough there.
    """
    options = plan.train_options
    if options.minutes is None or processes.device.type != "cpu":
        return False
    seconds = 60 * options.minutes / num_parts
    drawn = np.random.default_rng(0).standard_normal((2 * _BATCH, plan.model_config.dim), np.float32)
    train, valid = map(as_source, np.split(drawn, 2))
    model = random_model(plan.model_config).train().requires_grad_(True)
    training = Training(model, train, valid, options, plan.encode_options, processes)
    pace = measure(training, (_BATCH,), min(MEASURED_SECONDS, MEASURED_SHARE * seconds))
    count = processes.from_main(seconds / pace.step(_BATCH))
    needed = _FEWEST * plan.model_config.num_steps
    if count < needed and processes.is_main:
        _LOG.info(
            f"qinco2-XS learns faster than qinco2-S: {options.minutes:g} minutes are some {count:,.0f} steps of "
            f"qinco2-S, which needs {needed:,} to be better (preset=, model_args=)"
        )
    return count < needed
