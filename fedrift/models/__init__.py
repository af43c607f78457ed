"""Load language models, train many clients' copies of them at once, and export trained models."""
