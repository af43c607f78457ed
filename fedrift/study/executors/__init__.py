"""Where a study's runs are done. On the command line ``executor=processes`` is the class named in ``__all__``."""

from .executor import Executor as Executor
from .local import Local
from .on_ray import Ray
from .on_slurm import Slurm
from .processes import Processes
from .stacked import Stacked

__all__ = ["Local", "Processes", "Ray", "Slurm", "Stacked"]
