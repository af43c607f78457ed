"""Studies: one YAML file defines factors, seeds and hypotheses; the result is a set of runs and one table.

Everything exported here works without torch. ``fedrift.studies.run`` executes a study and needs torch.
"""

from .archive import export_study, import_study
from .manifest import ManifestEntry, StudyManifest, find_study, list_studies
from .outcomes import build_study_table, evaluate_study_hypotheses
from .spec import Study, Tuning, load_study, parse_study

__all__ = [
    "ManifestEntry",
    "Study",
    "StudyManifest",
    "Tuning",
    "build_study_table",
    "evaluate_study_hypotheses",
    "export_study",
    "find_study",
    "import_study",
    "list_studies",
    "load_study",
    "parse_study",
]
