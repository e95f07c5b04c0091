"""What work on many vectors takes, before it is begun: `qinco.planning.plan`."""

from qinco.planning.plan import Plan, Stage, plan
from qinco.planning.rates import Rates, measure_rates

__all__ = ["Plan", "Rates", "Stage", "measure_rates", "plan"]
