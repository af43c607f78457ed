"""Calibration of the detectors: false alarms on healthy runs, and recall on runs with injected failures."""
