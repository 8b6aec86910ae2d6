"""Where examples come from and how they reach the device."""
