"""A policy on a robot in real time: the control loop, its threads, its watchdog, what it tells of itself."""
