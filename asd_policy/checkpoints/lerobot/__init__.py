"""LeRobot's diffusion folders."""
