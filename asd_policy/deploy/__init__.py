"""A policy on a robot: in real time on its own machine, or served from another."""
