"""Loading of YAML into plain values, and of plain values into configuration classes.

Plain values are checked strictly against the annotated types of dataclass fields. An error message names the key and, for an unknown
key, the closest key that exists. A class that can be chosen is named by the key ``type``: ``algorithm: {type: FedProx, mu: 0.1}``, or
``algorithm: FedProx`` for its defaults. A ``Registry`` defines which classes can be chosen.
"""

from .choices import Registry
from .parsing import dump_value, parse_value, plain_type, validate_fields
from .yaml_text import MAX_BYTES, apply_overrides, check_no_override_is_lost, dump_yaml, edit_config, load_yaml, parse_yaml, set_key

__all__ = [
    "MAX_BYTES",
    "Registry",
    "apply_overrides",
    "check_no_override_is_lost",
    "dump_value",
    "dump_yaml",
    "edit_config",
    "load_yaml",
    "parse_value",
    "parse_yaml",
    "plain_type",
    "set_key",
    "validate_fields",
]
