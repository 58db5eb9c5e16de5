"""One process or several: devices, launchers, what processes do together, what asks them to stop."""
