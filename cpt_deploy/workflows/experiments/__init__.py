"""Workflows that train or export several times: sweeps, grids, range tests, allocations of bits."""
