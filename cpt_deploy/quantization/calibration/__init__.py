"""Calibration of activation ranges and BatchNorm statistics, bias rounding, and bit allocation."""
