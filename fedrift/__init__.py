"""fedrift: when, how and why federated fine-tuning of language models breaks under non-IID data."""

__version__ = "0.1.0"
