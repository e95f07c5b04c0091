"""Run a script of the folder of user reports, which names modules as they were at commit 7aeb394."""

import runpy
import sys
import types
from pathlib import Path

import qinco.cli
from qinco import config, machine
from qinco.model.qinco import random_model

old = types.ModuleType("qinco.cli.bench")
old.__dict__.update(random_model=random_model, group_limits=machine.group_limits)
sys.modules |= {"qinco.cli.bench": old, "qinco.memory": machine}
qinco.cli.__dict__["bench"], qinco.__dict__["memory"] = old, machine
config.__dict__["DEFAULT_SEARCH"] = config.DEFAULT_ENCODE_OPTIONS
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
