"""Optimizers by role, schedules as pure functions, weight averages."""
