"""What every room stands on: arrays, clocks, files, specs, statistics; nothing of diffusion."""
