"""Devices, launchers, collectives, signals and helper processes, for trainings with one or several processes."""
