"""Load language models, train many clients' copies of them at once, and export trained models."""

import logging
import os

# transformers imports torchao if it is installed. torchao then warns about GPU kernels that it cannot load and fedrift does not use.
os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
