"""Language models: found by name, worn by many clients at once, saved for others to read."""

import logging
import os

# transformers imports torchao where it is installed, which then warns of GPU kernels that this machine cannot load; none is used.
os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
