"""Imported once by a server that ranks on CPUs are forked from, so that no rank has to: DeepSpeed and the engine.

A rank spends 0.6 s of a core on these imports, and worlds of ranks come and go. Nothing is joined and no thread started by
importing them; what `start_world` has to set is set in the rank. DeepSpeed settles on an accelerator when it is imported, so this
is for CPUs alone: a rank on a GPU imports it itself.
"""

import importlib
import logging
import os

os.environ["DS_ACCELERATOR"] = "cpu"
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
for _module in ("deepspeed", "deepspeed.ops", "pretrain.engine.build"):
    importlib.import_module(_module)
