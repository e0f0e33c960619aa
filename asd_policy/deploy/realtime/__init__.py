"""A policy on a robot in real time: the control loop, its threads, its watchdog, its telemetry."""
