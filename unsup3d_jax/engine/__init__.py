"""Trains any task on any devices, and never loses a step."""
