"""A training run from start to end: data, model, optimizer, the loop, calibration and final evaluation."""
